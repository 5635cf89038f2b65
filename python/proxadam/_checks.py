"""What torch ops could not finish, said in one sentence before anything is written.

The kernel has a gatekeeper of its own, in C++; a tensor it turns away comes here.
"""

from __future__ import annotations

import torch
from torch import Tensor

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
_DTYPES = (
    torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64, torch.complex128,
)  # fmt: skip


def check_tensors(group: Group) -> None:
    """Raise where a parameter, its gradient or its state does not fit the step.

    Raises:
        RuntimeError: sparse gradient; unsupported dtype; shape, dtype or device that does not fit
            the parameter's; storage that was freed; inference tensor; overlapping parameter.
        ValueError: complex parameter with an adaptive prox.
    """
    if torch.compiler.is_compiling():
        return
    state_lists = {
        "exp_avg": group.exp_avgs,
        "exp_avg_sq": group.exp_avg_sqs,
        "max_exp_avg_sq": group.max_exp_avg_sqs,
    }
    for i, (param, grad) in enumerate(zip(group.params, group.grads, strict=True)):
        what = f"parameter {i} of shape {tuple(param.shape)}"
        _check_param(group, param, what)
        _check_grad(param, grad, what)
        for name, tensors in state_lists.items():
            if tensors:
                _check_state(param, tensors[i], f"{name} of {what}")
        _check_step(param, group.state_steps[i], f"step of {what}")


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
    if 0 in param.stride() and any(
        size > 1 and stride == 0 for size, stride in zip(param.shape, param.stride(), strict=True)
    ):
        raise RuntimeError(_OVERLAP.format(what=what))


def _check_grad(param: Tensor, grad: Tensor, what: str) -> None:
    check_not_sparse(grad)
    what = f"the gradient of {what}"
    _check_like(param, grad, what)
    if grad.dtype != param.dtype and not _widens(param, grad):
        raise RuntimeError(f"{what} has dtype {grad.dtype}, expected {param.dtype}.")
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


def _check_like(param: Tensor, tensor: Tensor, what: str) -> None:
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
    _check_allocated(tensor, what)


def _check_allocated(tensor: Tensor, what: str) -> None:
    plain = type(tensor) in (Tensor, torch.nn.Parameter)  # a subclass may have no storage to ask
    if not plain or tensor.is_meta or tensor.numel() == 0:
        return
    last = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    needed = (tensor.storage_offset() + last + 1) * tensor.element_size()
    if tensor.untyped_storage().nbytes() < needed:
        raise RuntimeError(_UNALLOCATED.format(what=what))
