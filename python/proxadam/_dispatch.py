"""Which path takes which tensor: check everything, then write."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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
    traced = torch.compiler.is_compiling()
    wanted = [group for group in groups if group.allows_kernel and not traced]
    on_torch = [group for group in groups if traced or not group.allows_kernel]
    for group in on_torch:
        check_tensors(group, writes_grads=writes_grads)
        _torch.check_capturable(group)
    if found_inf is not None and (on_torch or any(map(_counts_on_host, wanted))):
        if found_inf.item() != 0:
            return

    plans, left = _plan(wanted, grad_scale, found_inf)
    for group, indices in left:
        check_tensors(group, indices, writes_grads=writes_grads)
        _check_not_demanded(group, indices)
        part = group.take(indices)
        _torch.check_capturable(part)
        on_torch.append(part)
    if left and found_inf is not None and found_inf.item() != 0:
        return
    if plans:
        plans[0][0].launch([plan for _, plan in plans])
    for group in wanted:
        increment_version(group.params)
        if writes_grads:
            increment_version(group.grads)
    for group in on_torch:
        _torch.step(group, grad_scale)
    for group, local in zip(given, groups, strict=True):
        _dtensor.increment_versions(group, local, writes_grads=writes_grads)


def _plan(
    groups: list[Group], grad_scale: Tensor | None, found_inf: Tensor | None
) -> tuple[list[Any], list[tuple[Group, Sequence[int]]]]:
    """Hand the groups to the kernels of the devices that they are on.

    Returns:
        Plans to launch, and the (group, parameters) that no kernel takes. Nothing has been written
        yet, unless there is nothing left to look at: a kernel that fits every tensor it is shown
        steps at once.
    """
    plans: list[Any] = []
    left: list[tuple[Group, Sequence[int]]] = [(g, range(len(g.params))) for g in groups]
    tried: list[str] = []
    while device_type := _first_device_type(left, tried):
        tried.append(device_type)
        kernel = backends.kernel(device_type)
        if kernel is None:
            continue
        shown = [group.take(indices) for group, indices in left] if plans else groups
        amp = _amp_arguments(device_type, shown, grad_scale, found_inf)
        plan = kernel.admit(shown, *amp, launch=not plans)
        if plan is None:
            return plans, []
        plans.append((kernel, plan))
        rejected: dict[int, list[int]] = {}
        for i, j, _, _ in plan.rejected:
            rejected.setdefault(i, []).append(left[i][1][j])
        left = [(left[i][0], js) for i, js in rejected.items()]
    return plans, left


def _first_device_type(left: list[tuple[Group, Sequence[int]]], tried: list[str]) -> str | None:
    for group, indices in left:
        for i in indices:
            device_type = group.params[i].device.type
            if device_type not in tried:
                return device_type
    return None


def _amp_arguments(
    device_type: str, groups: list[Group], grad_scale: Tensor | None, found_inf: Tensor | None
) -> tuple[Any, ...]:
    """What a kernel's step() takes beside the groups; on CUDA a copy for each device."""
    if grad_scale is None and found_inf is None:
        return ()
    if device_type == "cpu":
        return () if grad_scale is None else ([grad_scale.to("cpu", torch.float64)],)
    devices = {param.device for group in groups for param in group.params}
    there = [device for device in devices if device.type == device_type]
    return tuple(
        [] if value is None else [value.to(device, non_blocking=True) for device in there]
        for value in (grad_scale, found_inf)
    )


def _counts_on_host(group: Group) -> bool:
    return any(step_t.is_cpu for step_t in group.state_steps if isinstance(step_t, Tensor))


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
