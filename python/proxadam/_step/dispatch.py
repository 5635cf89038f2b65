"""Which path takes which tensor: check everything, then write."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from .. import backends
from . import compiled, dtensor, torch_ops
from .checks import (
    check_betas,
    check_capturable,
    check_leaves,
    check_rows,
    check_tensors,
    why_kernel_cannot,
)
from .group import Group

# Some parameters of a group, by their indices, and why no kernel takes them: (reason, list) for
# each of them, or for all.
_Part = tuple[Group, Sequence[int], list[tuple[str, str]]]


def step(
    groups: list[Group], grad_scale: Tensor | None = None, found_inf: Tensor | None = None
) -> None:
    """Step every group, on its kernel where one is wanted and fits, on torch ops elsewhere.

    Nothing is written before every tensor of every group has been looked at. Options are read
    first, for that may run code of the user's; a kernel looks at its tensors again when it writes.
    Under torch.compile a group is one op, that takes an eager step when the graph runs, or torch
    ops, which the compiler fuses. A TorchDispatchMode, such as make_fx traces with, sees the same
    op; a transform of torch.func sees torch ops.

    Args:
        groups: parameters, gradients, state and options.
        grad_scale: one element; the gradients are divided by it, and written back divided.
        found_inf: one element; anything but zero skips the step, counters included.

    Raises:
        RuntimeError, ValueError, AssertionError: see :class:`proxadam.ProxAdam`.
    """
    for group in groups:
        group.check()
        check_rows(group)
    transformed = torch._C._functorch.maybe_current_level() is not None
    if torch.compiler.is_compiling():
        on_torch = [g for g in groups if not compiled.call_op(g, grad_scale, found_inf)]
        if not (on_torch and _overflowed(found_inf)):
            for group in on_torch:
                torch_ops.step(group, grad_scale)
    elif torch._C._len_torch_dispatch_stack() and not transformed:
        on_torch = [g for g in groups if not compiled.call_op(g, grad_scale, found_inf)]
        _step(on_torch, grad_scale, found_inf, native=False)
    else:
        _step(groups, grad_scale, found_inf, native=not transformed)


def _step(
    groups: list[Group],
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
    *,
    native: bool = True,
) -> None:
    writes_grads = grad_scale is not None
    given, groups = groups, [dtensor.to_local(g, writes_grads=writes_grads) for g in groups]
    for group in groups:
        check_betas(group)
        if native and torch.is_grad_enabled():
            check_leaves(group)
    asks_host = (not g.options.allows_kernel or _counts_on_host(g) for g in groups)
    if any(asks_host) and _overflowed(found_inf):
        return

    plans, refused = _admit(groups, grad_scale, found_inf, native)
    on_torch = []
    for group, indices, whys in refused:
        check_tensors(group, indices, writes_grads=writes_grads)
        _check_not_demanded(group, indices[0], whys[0])
        on_torch.append(group.take(indices))
        check_capturable(on_torch[-1])
        if group.options.foreach is None and any(why[0] == "shares_memory" for why in whys):
            on_torch[-1].options = replace(group.options, foreach=False)  # in list order
    if refused and _overflowed(found_inf):
        return
    for group in on_torch if native else ():
        torch_ops.rehearse(group, grad_scale)
    if plans:
        kernel = plans[0][0]
        kernel.launch([plan for _, plan in plans])
    for group in on_torch:
        torch_ops.step(group, grad_scale)

    for group in groups:
        if group.options.allows_kernel:
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
    groups: list[Group], grad_scale: Tensor | None, found_inf: Tensor | None, native: bool
) -> tuple[list[tuple[Any, Any]], list[_Part]]:
    """Hand the groups to the kernels of the devices that they are on.

    Groups that are to go to torch ops are shown too, for the memory that they may share.
    Without ``native`` all go to torch ops. So do, on every rank and without being shown, those
    whose rows are cut over ranks: they wait for one another, also where one has an empty shard.

    Returns:
        (kernel, plan) to launch, and what no kernel takes. Nothing has been written yet, unless
        there is nothing left to look at: a kernel that fits every tensor it is shown steps at once.
    """
    plans: list[tuple[Any, Any]] = []
    unwanted = [("unwanted", "params")]
    left: list[_Part] = [(g, range(len(g.params)), unwanted) for g in groups if g.params]
    cut: list[_Part] = []
    if any(any(group.row_cuts) for group in groups):
        left, cut = _apart(left)
    tried: list[str] = []
    while native and (device_type := _first_device_type(left, tried)):
        tried.append(device_type)
        kernel = backends.kernel(device_type)
        if kernel is None:
            continue
        shown = [group.take(indices) if plans or cut else group for group, indices, _ in left]
        amp = _amp_arguments(device_type, shown, grad_scale, found_inf)
        plan = kernel.admit(shown, *amp, launch=not (plans or cut))
        if plan is None:
            return [], []
        plans.append((kernel, plan))
        parts: dict[int, tuple[Group, list[int], list[tuple[str, str]]]] = {}
        for i, j, *why in plan.rejected:
            group, indices, _ = left[i]
            _, rejected, whys = parts.setdefault(i, (group, [], []))
            rejected.append(indices[j])
            whys.append(tuple(why))
        left = list(parts.values())
    return plans, left + cut


def _apart(parts: list[_Part]) -> tuple[list[_Part], list[_Part]]:
    """Those whose rows are whole, and those whose rows are cut over ranks."""
    whole: list[_Part] = []
    cut: list[_Part] = []
    for group, indices, whys in parts:
        cuts = group.row_cuts or [None] * len(indices)
        for chosen, kind, own in ((whole, False, whys), (cut, True, [("rows", "params")])):
            alike = [i for i in indices if bool(cuts[i]) is kind]
            if alike:
                chosen.append((group, alike, own))
    return whole, cut


def _first_device_type(left: list[_Part], tried: list[str]) -> str | None:
    for group, indices, _ in left:
        for i in indices if group.options.allows_kernel else ():
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
