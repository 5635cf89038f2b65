"""Which path takes which tensor: check everything, then write."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from . import _dtensor, _torch, backends
from ._checks import check_tensors, why_kernel_cannot
from ._group import Group, check_step_options


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
        check_step_options(group)
    writes_grads = grad_scale is not None
    given, groups = groups, [_dtensor.to_local(g, writes_grads=writes_grads) for g in groups]
    wanted = [group for group in groups if _wants_kernel(group)]
    on_torch = [group for group in groups if not _wants_kernel(group)]
    for group in on_torch:
        check_tensors(group, writes_grads=writes_grads)
        _torch.check_capturable(group)
    if found_inf is not None and found_inf.item() != 0:
        return
    scale = float(grad_scale) if writes_grads else 1.0

    kernel = backends.kernel("cpu") if wanted else None
    if kernel is None:
        plan, left = None, [(group, range(len(group.params))) for group in wanted]
    else:
        # Returns None when it took every tensor; else nothing has been written yet.
        plan = kernel.step(wanted, scale)
        left = [] if plan is None else [(wanted[i], indices) for i, indices in plan.rejected]
    for group, indices in left:
        check_tensors(group, indices, writes_grads=writes_grads)
        _check_not_demanded(group, indices)
        part = group.take(indices)
        _torch.check_capturable(part)
        on_torch.append(part)
    if plan is not None:
        plan.launch()
    for group in wanted:
        increment_version(group.params)
        if writes_grads:
            increment_version(group.grads)
    for group in on_torch:
        _torch.step(group, grad_scale)
    for group, local in zip(given, groups, strict=True):
        _dtensor.increment_versions(group, local, writes_grads=writes_grads)


def _wants_kernel(group: Group) -> bool:
    if torch.compiler.is_compiling() or group.differentiable:
        return False
    return bool(group.fused) or (group.fused is None and group.foreach is None)


def _check_not_demanded(group: Group, indices: Sequence[int]) -> None:
    """Raise where ``fused=True`` demands the kernel for parameters that it has turned away."""
    if group.fused and indices:
        first = indices[0]
        device_type = group.params[first].device.type
        reason = backends.reason_for_fallback(device_type) or why_kernel_cannot(group, first)
        raise RuntimeError(
            f"`fused=True` needs the kernel for every parameter, and {reason}; fused=None takes"
            " torch ops there."
        )
