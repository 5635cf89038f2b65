"""What torch ops could not finish, said in one sentence before anything is written.

The kernel has a gatekeeper of its own, in C++; a tensor it turns away comes here.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ._dtensor import is_dtensor
from ._group import Group

_SPARSE = "Adam does not support sparse gradients, please consider SparseAdam instead"
_UNALLOCATED = (
    "The tensor has a non-zero number of elements, but its data is not allocated yet."
    " ProxAdam found this in {what}; allocate its storage before the step."
)
_INFERENCE = (
    "Inplace update to inference tensor outside InferenceMode is not allowed."
    " ProxAdam found this in {what}; clone it outside InferenceMode first."
)
_OVERLAP = (
    "unsupported operation: more than one element of the written-to tensor refers to a single"
    " memory location. ProxAdam found this in {what}; please clone() it before the step."
)
_CONJUGATE = (
    "{what} is a lazily conjugated view, which cannot be written in place; call its"
    " resolve_conj() before the step."
)
_KERNEL_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_DTYPES = (*_KERNEL_DTYPES, torch.complex64, torch.complex128)


def check_tensors(
    group: Group, indices: Sequence[int] | None = None, *, writes_grads: bool = False
) -> None:
    """Raise where a parameter, its gradient or its state does not fit the step.

    Args:
        group: parameters, gradients, state and options.
        indices: the parameters to look at; None for all.
        writes_grads: whether the gradients are to be divided in place.

    Raises:
        RuntimeError: sparse gradient; unsupported dtype; shape, dtype or device that does not fit
            the parameter's; storage that was freed; inference tensor; overlapping parameter.
        ValueError: complex parameter with an adaptive prox.
    """
    if torch.compiler.is_compiling():
        return
    for i in range(len(group.params)) if indices is None else indices:
        param, what = group.params[i], group.name(i)
        _check_param(group, param, what)
        _check_grad(param, group.grads[i], f"the gradient of {what}", writes_grads)
        for name, state in _states(group, i).items():
            _check_state(param, state, f"{name} of {what}")
        _check_step(param, group.state_steps[i], f"step of {what}")


def why_kernel_cannot(group: Group, index: int) -> str:
    """Say what the kernel's gatekeeper has against a parameter that torch ops can step.

    Args:
        group: parameters, gradients, state and options, checked.
        index: which of the parameters was turned away.

    Returns:
        A clause, such as "parameter 0 of shape (2, 3) has dtype torch.complex64".
    """
    param, grad, step_t = group.params[index], group.grads[index], group.state_steps[index]
    beside = {"gradient": grad, **_states(group, index)}
    what = group.name(index)
    for name, tensor in {"data": param, **beside, "step": step_t}.items():
        if type(tensor) not in (Tensor, torch.nn.Parameter):
            return f"{what} has {name} of the type {type(tensor).__name__}"
    if param.dtype not in _KERNEL_DTYPES:
        return f"{what} has dtype {param.dtype}"
    if not _is_dense(param):
        return f"{what} has gaps or overlaps in memory, with strides {param.stride()}"
    moment_dtype = group.exp_avgs[index].dtype
    for name, tensor in beside.items():
        if name != "gradient" and tensor.dtype != moment_dtype:
            return f"{what} has its exp_avg in {moment_dtype} and its {name} in {tensor.dtype}"
        if tensor.numel() and _walk(tensor) != _walk(param):
            return f"{what} has strides {param.stride()} and its {name} {tensor.stride()}"
    if param.is_neg() or grad.is_neg():
        return f"{what} or its gradient is a lazily negated view"
    if param.is_inference():
        return f"{what} is an inference tensor"
    if step_t.device != param.device or step_t.dtype not in (torch.float32, torch.float64):
        return f"{what} has its step on {step_t.device} in {step_t.dtype}"
    return f"{what} shares memory with another parameter"


def _states(group: Group, index: int) -> dict[str, Tensor]:
    states = {"exp_avg": group.exp_avgs[index], "exp_avg_sq": group.exp_avg_sqs[index]}
    if group.max_exp_avg_sqs:
        states["max_exp_avg_sq"] = group.max_exp_avg_sqs[index]
    return states


def _walk(tensor: Tensor) -> list[tuple[int, int]]:
    """(stride, size) of the dimensions that have more than one element."""
    return [(s, n) for s, n in zip(tensor.stride(), tensor.shape, strict=True) if n != 1]


def _is_dense(tensor: Tensor) -> bool:
    expected = 1
    for stride, size in sorted(_walk(tensor)):
        if stride != expected and tensor.numel():
            return False
        expected *= size
    return True


def check_not_sparse(grad: Tensor) -> None:
    """Raise torch.optim.Adam's RuntimeError for a gradient that is not dense."""
    if grad.layout is not torch.strided and grad.layout is not torch._mkldnn:  # type: ignore[attr-defined]
        raise RuntimeError(_SPARSE)


def _check_param(group: Group, param: Tensor, what: str) -> None:
    if param.dtype not in _DTYPES:
        raise RuntimeError(f"{what} has dtype {param.dtype}, expected one of {_DTYPES}.")
    if param.is_complex() and group.metric == "adaptive" and group.has_prox:
        raise ValueError(
            f"{what} is complex, and l1 or l2 with metric='adaptive' has no closed form there;"
            " use metric='euclidean' for its group, or l1=l2=0."
        )
    _check_writable(param, what)


def _check_grad(param: Tensor, grad: Tensor, what: str, written: bool) -> None:
    check_not_sparse(grad)
    _check_like(param, grad, what)
    if grad.dtype != param.dtype and not _widens(param, grad):
        raise RuntimeError(f"{what} has dtype {grad.dtype}, expected {param.dtype}.")
    if written:
        _check_writable(grad, what)
    else:
        _check_allocated(grad, what)


def _check_state(param: Tensor, state: Tensor, what: str) -> None:
    _check_like(param, state, what)
    if state.dtype != param.dtype and not _widens(param, state):
        raise RuntimeError(
            f"{what} has dtype {state.dtype}, expected {param.dtype}; was the parameter cast after"
            " the optimizer had made its state?"
        )
    _check_writable(state, what)


def _check_step(param: Tensor, step_t: Tensor, what: str) -> None:
    if not isinstance(step_t, Tensor):
        raise RuntimeError(
            "API has changed, `state_steps` argument must contain a list of singleton tensors;"
            f" {what} is a {type(step_t).__name__}."
        )
    if step_t.numel() != 1 or not step_t.is_floating_point():
        raise RuntimeError(
            f"{what} must be a floating point tensor of one element, got {step_t.dtype} of shape"
            f" {tuple(step_t.shape)}."
        )
    if not step_t.is_cpu and step_t.device != param.device:
        raise RuntimeError(f"{what} is on {step_t.device}, expected cpu or {param.device}.")
    _check_writable(step_t, what)
    if step_t.is_cpu and not step_t.item() >= 0:
        raise RuntimeError(f"{what} is {step_t.item()}, expected a count of steps, ≥ 0.")


def _check_like(param: Tensor, tensor: Tensor, what: str) -> None:
    if is_dtensor(tensor) != is_dtensor(param):
        kinds = [type(t).__name__ for t in (tensor, param)]
        raise RuntimeError(f"{what} is a {kinds[0]} and the parameter a {kinds[1]}; make it alike.")
    if tensor.shape != param.shape:
        raise RuntimeError(
            f"{what} has shape {tuple(tensor.shape)}, expected {tuple(param.shape)}; the"
            " parameter and its state must keep the shape they had when the state was made."
        )
    if tensor.device != param.device:
        raise RuntimeError(
            f"{what} is on {tensor.device}, expected {param.device}, where the parameter is."
        )


def _widens(param: Tensor, tensor: Tensor) -> bool:
    return param.dtype in (torch.bfloat16, torch.float16) and tensor.dtype == torch.float32


def _check_writable(tensor: Tensor, what: str) -> None:
    if tensor.is_inference() and not torch.is_inference_mode_enabled():
        raise RuntimeError(_INFERENCE.format(what=what))
    if tensor.is_conj():
        raise RuntimeError(_CONJUGATE.format(what=what))
    if tensor.numel() and any(stride == 0 for stride, _ in _walk(tensor)):
        raise RuntimeError(_OVERLAP.format(what=what))
    _check_allocated(tensor, what)


def _check_allocated(tensor: Tensor, what: str) -> None:
    plain = type(tensor) in (Tensor, torch.nn.Parameter)  # a subclass may have no storage to ask
    if not plain or tensor.is_meta or tensor.numel() == 0:
        return
    last = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    needed = (tensor.storage_offset() + last + 1) * tensor.element_size()
    if tensor.untyped_storage().nbytes() < needed:
        raise RuntimeError(_UNALLOCATED.format(what=what))
