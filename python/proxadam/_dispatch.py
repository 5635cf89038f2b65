"""Which path takes which tensor: check everything, then write."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from . import _torch, backends
from ._checks import check_tensors
from ._group import Group, check_prox_options


def step(
    groups: list[Group], grad_scale: Tensor | None = None, found_inf: Tensor | None = None
) -> None:
    """Step every group, on its kernel where one is wanted and fits, on torch ops elsewhere.

    Nothing is written before every tensor of every group has been looked at.

    Args:
        groups: parameters, gradients, state and options.
        grad_scale: one element; the gradients are divided by it, and written back divided.
        found_inf: one element; anything but zero skips the step, counters included.

    Raises:
        RuntimeError, ValueError, AssertionError: see :class:`proxadam.ProxAdam`.
    """
    for group in groups:
        check_prox_options(group.l1, group.l2, group.metric, group.max_shrink)
    wanted = [group for group in groups if _wants_kernel(group)]
    on_torch = [group for group in groups if not _wants_kernel(group)]
    for group in on_torch:
        check_tensors(group)
        _torch.check_capturable(group)
    if found_inf is not None and found_inf.item() != 0:
        return
    scale = 1.0 if grad_scale is None else float(grad_scale)

    kernel = backends.kernel("cpu")
    if not kernel:
        plan, left = None, [(group, range(len(group.params))) for group in wanted]
    else:
        # Returns None when it took every tensor; else nothing has been written yet.
        plan = kernel.step(wanted, scale)
        left = [] if plan is None else [(wanted[i], indices) for i, indices in plan.rejected]
    for group, indices in left:
        part = group.take(indices)
        _check_left(part)
        on_torch.append(part)
    if plan is not None:
        plan.launch()
    for group in wanted:
        increment_version(group.params)
        if grad_scale is not None:
            increment_version(group.grads)
    for group in on_torch:
        _torch.step(group, grad_scale)


def _wants_kernel(group: Group) -> bool:
    if torch.compiler.is_compiling() or group.differentiable:
        return False
    return bool(group.fused) or (group.fused is None and group.foreach is None)


def _check_left(group: Group) -> None:
    """Check what the kernel has turned away; ``fused=True`` takes no for an error."""
    check_tensors(group)
    if group.fused and group.params:
        param = group.params[0]
        raise RuntimeError(
            "`fused=True` needs the kernel for every parameter, and "
            + (backends.reason_for_fallback(param.device.type) or _why_not(group))
            + "; fused=None takes torch ops there."
        )
    _torch.check_capturable(group)
