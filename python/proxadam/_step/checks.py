"""What is wrong with a tensor, in one sentence, before anything is written.

The kernel has a gatekeeper of its own, in C++, that gives a reason for each parameter that it turns
away. What torch ops could not finish either is an error here; else the reason is put into words
where the kernel is demanded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.optim.optimizer import _get_capturable_supported_devices

from .allocated import UNALLOCATED, bounds, check_allocated, has_memory
from .dtensor import has_even_rows, is_dtensor
from .group import EXPONENT_LISTS, LISTS, Group
from .options import unread
from .rounding_ops import BLOCK
from .state import DTYPES, goes_with, takes_small_state

_SPARSE = "Adam does not support sparse gradients, please consider SparseAdam instead"
_INFERENCE = (
    "Inplace update to inference tensor outside InferenceMode is not allowed."
    " ProxAdam found this in {what}; clone it outside InferenceMode first."
)
_OVERLAP = (
    "unsupported operation: more than one element of the written-to tensor refers to a single"
    " memory location. ProxAdam found this in {what}; please clone() it before the step."
)
_LEAF = (
    "{leaf} Variable that requires grad is being used in an in-place operation. ProxAdam found this"
    " in {what}; step under torch.no_grad(), or with differentiable=True what is no leaf."
)
_CONJUGATE = (
    "{what} is a lazily conjugated view, which cannot be written in place; call its"
    " resolve_conj() before the step."
)
# By the gatekeeper's names for its reasons. {what} is the parameter, {name} the tensor of it that
# was looked at, and {it} the same as a subject.
_REASONS = {
    "subclass": "{what} has {name} of the type {kind}",
    "no_view": "{what} has {name} that DLPack cannot show, with layout {layout} and dtype {dtype}",
    "device": "{what} has {name} on {device}, where the kernel does not step it",
    "dtype": "{what} has its exp_avg in {exp_avg_dtype} and its {name} in {dtype}",
    "dtype of data": "{what} has dtype {dtype}",
    "not_dense": "{what} has gaps or overlaps in memory, with strides {strides}",
    "exponents": "{what} has codes and not a byte for each 256 of them in its {name}",
    "layout": "{what} has strides {param_strides} and its {name} {strides}",
    "misaligned": "{what} cannot be read in whole elements: the address of {it} is no multiple of"
    " {itemsize} bytes",
    "no_memory": "{what} has {name} without memory of its own to read",
    "negated": "{what} cannot be written in place: {it} is a lazily negated view",
    "inference": "{what} cannot be written outside InferenceMode: {it} is an inference tensor",
    "step": "{what} has its step on {device} in {dtype}",
    "betas": "{what} has betas that give no bias correction at this step",
    "shares_memory": "{what} shares memory with another parameter, a gradient or a state",
    "unwanted": "{what} is left to torch ops by differentiable=True or a transform of torch.func",
    "rows": "{what} has rows that l21 cannot take there: they lie apart in memory, are cut over"
    " processes, are too long, or part blocks of codes, with strides {strides}",
    "option_device": "{what} is on {param_device} and an option's tensor on another device",
}


def check_betas(group: Group) -> None:
    """Raise where a parameter's bias correction cannot be taken with betas that are on the host.

    Betas of 1 and above step as in torch as long as they can; schedulers of momentum set such.

    Raises:
        ValueError: 1 − beta1ᵗ is 0, 1 − beta2ᵗ is not above 0, or a power overflows.
    """
    for i, beta in enumerate((group.options.beta1, group.options.beta2)):
        if unread(beta) or 0 <= beta < 1:
            continue
        for step_t in group.state_steps:
            if not isinstance(step_t, Tensor) or step_t.is_meta or not step_t.is_cpu:
                continue  # the checks of the tensors say what it is
            if step_t.numel() != 1 or not step_t.untyped_storage().nbytes():
                continue  # likewise
            try:
                correction = 1 - float(beta) ** (step_t.item() + 1)
            except (OverflowError, ZeroDivisionError):
                correction = 0.0
            real = not isinstance(correction, complex) and math.isfinite(correction)
            if not real or correction == 0 or (i and correction < 0):
                raise ValueError(f"Invalid beta parameter at index {i}: {beta}")


def check_capturable(group: Group) -> None:
    """Raise torch.optim's AssertionError where ``capturable`` meets a device that is not."""
    if not group.options.capturable:
        return
    devices = _get_capturable_supported_devices(supports_xla=not group.options.foreach)
    for param, step_t in zip(group.params, group.state_steps, strict=True):
        if not param.device.type == step_t.device.type or param.device.type not in devices:
            raise AssertionError(
                "If capturable=True, params and state_steps must be on supported devices: "
                f"{devices}."
            )


def check_rows(group: Group) -> None:
    """Raise where l21 cannot see the rows of a parameter that has some.

    Raises:
        ValueError: a flat piece of a parameter, as FSDP1 leaves it; DTensors under torch.compile
            whose rows are cut into uneven pieces.
    """
    if not group.options.has_rows:
        return
    check_not_flat(group.params)
    for i in range(len(group.params)) if torch.compiler.is_compiling() else ():
        if not has_even_rows(group.params[i]):
            raise ValueError(
                f"{group.name(i)} has rows that are cut into uneven pieces, which l21 does not take"
                " under torch.compile; take its steps outside of it."
            )


def check_not_flat(params: Sequence[Tensor]) -> None:
    """Raise ValueError for a piece of an FSDP1 parameter, whose rows nobody can tell any more."""
    for param in params:
        if param.ndim < 2 and getattr(param, "_fsdp_flattened", False):
            raise ValueError(
                f"expected parameters that have their rows for l21, got {param.numel()} elements of"
                " a flat one of FSDP1; use FSDP2 (fully_shard), whose shards keep them, or l21=0."
            )


def check_leaves(group: Group) -> None:
    """Raise where autograd, being on, forbids to write a parameter or its state.

    Raises:
        RuntimeError: torch's, for a leaf that requires grad, or a view of one.
    """
    for i in range(len(group.params)):
        for name, tensor in group.of(i).items():
            base = tensor if tensor._base is None else tensor._base
            if name != "grads" and base.requires_grad and base.is_leaf:
                what = "a leaf" if base is tensor else "a view of a leaf"
                raise RuntimeError(_LEAF.format(leaf=what, what=group.name(i)))


def check_tensors(
    group: Group, indices: Sequence[int] | None = None, *, writes_grads: bool = False
) -> None:
    """Raise where a parameter, its gradient or its state does not fit the step.

    Args:
        group: parameters, gradients, state and options.
        indices: the parameters to look at; None for all.
        writes_grads: whether the gradients are to be divided in place.

    Raises:
        RuntimeError: sparse or nested tensor; unsupported dtype; shape, dtype or device that does
            not fit the parameter's; freed storage; inference tensor; overlapping parameter.
        ValueError: complex parameter with an adaptive prox.
    """
    for i in range(len(group.params)) if indices is None else indices:
        param, what = group.params[i], group.name(i)
        for name, tensor in group.of(i).items():
            if name == "params":
                _check_param(group, param, what)
            elif name == "grads":
                _check_grad(param, tensor, f"the gradient of {what}", writes_grads)
            elif name == "state_steps":
                check_step(group, param, tensor, f"step of {what}")
            elif name in EXPONENT_LISTS:
                check_exponents(param, tensor, f"{LISTS[name]} of {what}")
            else:
                check_state(group, param, tensor, f"{LISTS[name]} of {what}")
        check_apart(group, i, writes_grads)


def why_kernel_cannot(group: Group, index: int, reason: str, slot: str) -> str:
    """Say what the kernel's gatekeeper has against a parameter that torch ops can step.

    Args:
        group: parameters, gradients, state and options.
        index: which of the parameters was turned away.
        reason: the gatekeeper's name for it.
        slot: the list in which it was found; "" where it is the parameter as a whole.

    Returns:
        A clause, such as "parameter 0 of shape (2, 3) has dtype torch.complex64".
    """
    param = group.params[index]
    tensor = group.of(index).get(slot, param)
    name = LISTS[slot or "params"]
    if reason == "dtype" and name == "data":
        reason = "dtype of data"
    return _REASONS[reason].format(
        what=group.name(index),
        name=name,
        it="it" if name == "data" else f"its {name}",
        kind=type(tensor).__name__,
        strides=_strides(tensor),
        param_strides=_strides(param),
        param_device=param.device,
        exp_avg_dtype=group.exp_avgs[index].dtype,
        **{fact: getattr(tensor, fact) for fact in ("layout", "dtype", "device", "itemsize")},
    )


def check_dense(tensor: Tensor, what: str) -> None:
    """Raise RuntimeError for a tensor that is not dense, of a sparse gradient in torch's words."""
    if tensor.layout is torch.sparse_coo and what.startswith("the gradient"):
        raise RuntimeError(_SPARSE)
    if tensor.is_nested or tensor.layout not in (torch.strided, torch._mkldnn):  # type: ignore[attr-defined]
        kind = "a nested tensor" if tensor.is_nested else f"of layout {tensor.layout}"
        raise RuntimeError(f"{what} is {kind}, expected a dense tensor, such as to_dense() makes.")


def _strides(tensor: Tensor) -> tuple[int, ...]:
    return tensor.stride() if tensor.layout is torch.strided and not tensor.is_nested else ()


def _walk(tensor: Tensor) -> list[tuple[int, int]]:
    """(stride, size) of the dimensions that have more than one element."""
    return [(s, n) for s, n in zip(tensor.stride(), tensor.shape, strict=True) if n != 1]


def _check_param(group: Group, param: Tensor, what: str) -> None:
    check_dense(param, what)
    if param.dtype not in DTYPES:
        raise RuntimeError(f"{what} has dtype {param.dtype}, expected one of {DTYPES}.")
    if param.is_complex() and not group.options.euclidean and group.options.has_prox:
        raise ValueError(
            f"{what} is complex, and l1 or l2 with metric='adaptive' has no closed form there;"
            " use metric='euclidean' for its group, or l1=l2=0."
        )
    if param.is_complex() and group.options.has_rows:
        raise ValueError(f"{what} is complex, and l21 takes real rows alone; use l21=0.")
    _check_writable(param, what)


def _check_grad(param: Tensor, grad: Tensor, what: str, written: bool) -> None:
    check_dense(grad, what)
    _check_like(param, grad, what)
    if not goes_with(param.dtype, grad.dtype):
        raise RuntimeError(f"{what} has dtype {grad.dtype}, expected {param.dtype}.")
    if written:
        _check_writable(grad, what)
    else:
        check_allocated(grad, what)


def check_state(group: Group, param: Tensor, state: Tensor, what: str) -> None:
    """Raise RuntimeError where a moment does not fit its parameter, or cannot be written."""
    if not isinstance(state, Tensor):
        raise RuntimeError(f"{what} is a {type(state).__name__}, expected a tensor.")
    _check_like(param, state, what)
    if group.exp_avg_exponents:
        fits = takes_small_state(param.dtype) and state.dtype == torch.uint8
    else:
        small = group.options.stochastic_state and takes_small_state(param.dtype)
        fits = goes_with(param.dtype, state.dtype) or (small and state.dtype == torch.bfloat16)
    if not fits:
        raise RuntimeError(
            f"{what} has dtype {state.dtype}, expected {param.dtype}; was the parameter cast after"
            " the optimizer had made its state?"
        )
    _check_writable(state, what)


def check_exponents(param: Tensor, exponents: Tensor, what: str) -> None:
    """Raise RuntimeError where the exponents of codes do not fit them, or cannot be written."""
    if not isinstance(exponents, Tensor):
        raise RuntimeError(f"{what} is a {type(exponents).__name__}, expected a tensor.")
    blocks = -(-param.numel() // BLOCK)
    if exponents.dtype != torch.uint8 or exponents.shape != (blocks,):
        raise RuntimeError(
            f"{what} is of {exponents.dtype} and shape {tuple(exponents.shape)}, expected"
            f" torch.uint8 and ({blocks},): a byte for each {BLOCK} elements."
        )
    if exponents.device != param.device:
        raise RuntimeError(
            f"{what} is on {exponents.device}, expected {param.device}, where the parameter is."
        )
    _check_writable(exponents, what)


def check_step(group: Group, param: Tensor, step_t: Tensor, what: str) -> None:
    """Raise RuntimeError where a count of steps is none, or cannot be written."""
    if not isinstance(step_t, Tensor):
        raise RuntimeError(
            "API has changed, `state_steps` argument must contain a list of singleton tensors;"
            f" {what} is a {type(step_t).__name__}."
        )
    check_dense(step_t, what)
    if step_t.layout is not torch.strided:
        raise RuntimeError(f"{what} is of layout {step_t.layout}, expected {torch.strided}.")
    counts = step_t.is_floating_point() and step_t.itemsize > 1  # 8 bits cannot be added to
    if step_t.numel() != 1 or not counts:
        raise RuntimeError(
            f"{what} must be a floating point tensor of one element, got {step_t.dtype} of shape"
            f" {tuple(step_t.shape)}."
        )
    if not step_t.is_cpu and step_t.device != param.device:
        raise RuntimeError(f"{what} is on {step_t.device}, expected cpu or {param.device}.")
    _check_writable(step_t, what)
    if step_t.is_neg():
        raise RuntimeError(f"{what} is a lazily negated view; call its resolve_neg() before it.")
    if group.options.differentiable and step_t.requires_grad:
        raise RuntimeError("`requires_grad` is not supported for `step` in differentiable mode")
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
    if tensor.layout is not param.layout:
        raise RuntimeError(
            f"{what} is of layout {tensor.layout}, expected {param.layout}, as its parameter."
        )
    if tensor.device != param.device:
        raise RuntimeError(
            f"{what} is on {tensor.device}, expected {param.device}, where the parameter is."
        )


def _check_writable(tensor: Tensor, what: str) -> None:
    if tensor.is_inference() and not torch.is_inference_mode_enabled():
        raise RuntimeError(_INFERENCE.format(what=what))
    if tensor.is_conj():
        raise RuntimeError(_CONJUGATE.format(what=what))
    if tensor.numel() and any(stride == 0 for stride, _ in _walk(tensor)):
        raise RuntimeError(_OVERLAP.format(what=what))
    if tensor._is_zerotensor():
        raise RuntimeError(UNALLOCATED.format(what=what))
    check_allocated(tensor, what)


def check_apart(group: Group, index: int, writes_grads: bool) -> None:
    """Raise RuntimeError where tensors of one parameter share memory."""
    tensors = group.of(index)
    stretches = []
    for name, tensor in tensors.items():
        address = tensor.untyped_storage().data_ptr() if has_memory(tensor) else 0
        if address:
            begin, end = bounds(tensor)
            stretches.append((address + begin, address + end, tensor.stride(), name))
    for one, other in pairwise(sorted(stretches)):
        if other[0] >= one[1]:
            continue
        names = one[-1], other[-1]
        if one[:-1] == other[:-1] and {*names} == {"params", "grads"} and not writes_grads:
            continue  # Adam reads the gradient before it writes the parameter
        raise RuntimeError(
            f"the {LISTS[names[0]]} and the {LISTS[names[1]]} of {group.name(index)} share memory,"
            " expected memory of its own for each; please clone() one before the step."
        )
