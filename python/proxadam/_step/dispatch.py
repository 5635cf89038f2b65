"""Which path takes which tensor: check everything, then write."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from .. import backends
from . import compiled, dtensor, torch_ops
from .checks import check_betas, check_capturable, check_tensors, why_kernel_cannot
from .group import Group

# Some parameters of a group, by their indices.
_Part = tuple[Group, Sequence[int]]


def step(
    groups: list[Group], grad_scale: Tensor | None = None, found_inf: Tensor | None = None
) -> None:
    """Step every group, on its kernel where one is wanted and fits, on torch ops elsewhere.

    Nothing is written before every tensor of every group has been looked at. Options are read
    first, for that may run code of the user's; a kernel looks at its tensors again when it writes.
    Under torch.compile a group is one op, that takes an eager step when the graph runs, or torch
    ops, which the compiler fuses.

    Args:
        groups: parameters, gradients, state and options.
        grad_scale: one element; the gradients are divided by it, and written back divided.
        found_inf: one element; anything but zero skips the step, counters included.

    Raises:
        RuntimeError, ValueError, AssertionError: see :class:`proxadam.ProxAdam`.
    """
    for group in groups:
        group.check()
    if not torch.compiler.is_compiling():
        _step(groups, grad_scale, found_inf)
        return
    on_torch = [g for g in groups if not compiled.call_op(g, grad_scale, found_inf)]
    if not (on_torch and _overflowed(found_inf)):
        for group in on_torch:
            torch_ops.step(group, grad_scale)


def _step(groups: list[Group], grad_scale: Tensor | None, found_inf: Tensor | None) -> None:
    writes_grads = grad_scale is not None
    given, groups = groups, [dtensor.to_local(g, writes_grads=writes_grads) for g in groups]
    for group in groups:
        check_betas(group)
    on_kernel = [group for group in groups if group.options.allows_kernel]
    on_torch = [group for group in groups if not group.options.allows_kernel]
    for group in on_torch:
        check_tensors(group, writes_grads=writes_grads)
        check_capturable(group)
    if (on_torch or any(map(_counts_on_host, on_kernel))) and _overflowed(found_inf):
        return

    plans, refused = _admit(on_kernel, grad_scale, found_inf)
    for (group, indices), why in refused:
        check_tensors(group, indices, writes_grads=writes_grads)
        _check_not_demanded(group, indices[0], why)
        on_torch.append(group.take(indices))
        check_capturable(on_torch[-1])
    if refused and _overflowed(found_inf):
        return
    if plans:
        kernel = plans[0][0]
        kernel.launch([plan for _, plan in plans])
    for group in on_torch:
        torch_ops.step(group, grad_scale)

    for group in on_kernel:
        increment_version(group.params)
        if writes_grads:
            increment_version(group.grads)
    for group, local in zip(given, groups, strict=True):
        dtensor.increment_versions(group, local, writes_grads=writes_grads)


def _overflowed(found_inf: Tensor | None) -> bool:
    return found_inf is not None and found_inf.item() != 0


def _counts_on_host(group: Group) -> bool:
    return any(step_t.is_cpu for step_t in group.state_steps if isinstance(step_t, Tensor))


def _admit(
    groups: list[Group], grad_scale: Tensor | None, found_inf: Tensor | None
) -> tuple[list[tuple[Any, Any]], list[tuple[_Part, tuple[str, str]]]]:
    """Hand the groups to the kernels of the devices that they are on.

    Returns:
        (kernel, plan) to launch, and what no kernel takes, with the (reason, list) of the first of
        its parameters. Nothing has been written yet, unless there is nothing left to look at: a
        kernel that fits every tensor it is shown steps at once.
    """
    plans: list[tuple[Any, Any]] = []
    left: list[_Part] = [(group, range(len(group.params))) for group in groups if group.params]
    reasons = [("", "")] * len(left)
    tried: list[str] = []
    while device_type := _first_device_type(left, tried):
        tried.append(device_type)
        kernel = backends.kernel(device_type)
        if kernel is None:
            continue
        shown = [group.take(indices) if plans else group for group, indices in left]
        amp = _amp_arguments(device_type, shown, grad_scale, found_inf)
        plan = kernel.admit(shown, *amp, launch=not plans)
        if plan is None:
            return [], []
        plans.append((kernel, plan))
        rejected = defaultdict(list)
        for i, j, *why in plan.rejected:
            rejected[i].append((left[i][1][j], tuple(why)))
        reasons = [found[0][1] for found in rejected.values()]
        left = [(left[i][0], [index for index, _ in found]) for i, found in rejected.items()]
    return plans, list(zip(left, reasons, strict=True))


def _first_device_type(left: list[_Part], tried: list[str]) -> str | None:
    for group, indices in left:
        for i in indices:
            device_type = group.params[i].device.type
            if device_type not in tried:
                return device_type
    return None


def _amp_arguments(
    device_type: str, groups: list[Group], grad_scale: Tensor | None, found_inf: Tensor | None
) -> tuple[Any, ...]:
    """What a kernel's admit() takes beside the groups; on CUDA a copy for each device."""
    if grad_scale is None and found_inf is None:
        return ()
    if device_type == "cpu":  # found_inf has been asked
        return () if grad_scale is None else ([grad_scale.to("cpu", torch.float64)],)
    devices = {param.device for group in groups for param in group.params}
    there = [device for device in devices if device.type == device_type]
    return tuple(
        [] if value is None else [value.to(device, non_blocking=True) for device in there]
        for value in (grad_scale, found_inf)
    )


def _check_not_demanded(group: Group, index: int, why: tuple[str, str]) -> None:
    """Raise where ``fused=True`` demands the kernel for a parameter that it has turned away."""
    if not group.options.fused:
        return
    device_type = group.params[index].device.type
    reason = backends.reason_for_fallback(device_type) or why_kernel_cannot(group, index, *why)
    raise RuntimeError(
        f"`fused=True` needs the kernel for every parameter, and {reason}; fused=None takes"
        " torch ops there."
    )


compiled.define_op(_step)
