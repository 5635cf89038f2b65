"""The step under torch.compile: the kernel as one op of the graph.

The op takes an eager step when the graph runs. So a compiled step checks what an eager one checks,
leaves to torch ops what an eager one does, and gives its bits; there is nothing for a compiler to
fuse with a step that reads and writes each number once. Eager steps go around the op: handing the
lists of tensors to torch's dispatcher and back would cost more than a small step.
"""

from __future__ import annotations

from itertools import islice
from typing import Any

import torch
from torch import Tensor, library
from torch.nn import Parameter

from . import _dispatch, backends
from ._group import LISTS, Group

_STRENGTHS = ("lr", "beta1", "beta2", "l1", "l2")
_CONSTANTS = ("eps", "weight_decay", "max_shrink")
_FLAGS = ("amsgrad", "maximize", "decoupled_weight_decay", "fused")


def step(
    groups: list[Group], grad_scale: Tensor | None = None, found_inf: Tensor | None = None
) -> None:
    """Trace the step of every group: as the op, or, where that is not for it, as torch ops.

    Torch ops, which the compiler fuses, are for groups whose options forbid the kernel, for
    devices without one, and for tensor subclasses.

    Args:
        groups: parameters, gradients, state and options.
        grad_scale: one element; the gradients are divided by it, and written back divided.
        found_inf: one element; anything but zero skips the step, counters included.
    """
    on_kernel = [group for group in groups if _takes(group)]
    if on_kernel:
        _call(on_kernel, grad_scale, found_inf)
    _dispatch.step([group for group in groups if not _takes(group)], grad_scale, found_inf)


def _takes(group: Group) -> bool:
    if not group.allows_kernel or not group.params:
        return False
    if not all(type(tensor) in (Tensor, Parameter) for tensor in group.params + group.grads):
        return False
    return all(_has_kernel(name) for name in {param.device.type for param in group.params})


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _has_kernel(device_type: str) -> bool:
    return backends.kernel(device_type) is not None


def _call(groups: list[Group], grad_scale: Tensor | None, found_inf: Tensor | None) -> None:
    strengths = [(group, getattr(group, name)) for group in groups for name in _STRENGTHS]
    op = torch.ops.proxadam.step if grad_scale is None else torch.ops.proxadam.unscale_and_step
    op(
        *([tensor for group in groups for tensor in getattr(group, name)] for name in LISTS),
        grad_scale,
        found_inf,
        [_as_tensor(value, group.params[0].device) for group, value in strengths],
        [not isinstance(value, Tensor) for _, value in strengths],
        [getattr(group, name) for group in groups for name in _CONSTANTS],
        [group.metric for group in groups],
        [bool(getattr(group, name)) for group in groups for name in _FLAGS],
        [len(group.params) for group in groups],
    )


def _as_tensor(value: float | Tensor, device: torch.device) -> Tensor:
    # A number would be compiled in, and each change of it a recompilation. Of a product with a
    # tensor the compiler makes an input of the graph, once it has seen the number change.
    if isinstance(value, Tensor):
        return value
    return torch.ones((), dtype=torch.float64, device=device) * value


# ---- the op -----------------------------------------------------------------------------------

_SCHEMA = (
    "(Tensor(a!)[] params, {grads} grads, Tensor(c!)[] exp_avgs, Tensor(d!)[] exp_avg_sqs,"
    " Tensor(e!)[] max_exp_avg_sqs, Tensor(f!)[] state_steps, Tensor? grad_scale,"
    " Tensor? found_inf, Tensor[] strengths, bool[] are_numbers, float[] constants, str[] metrics,"
    " bool[] flags, int[] lengths) -> ()"
)


def _run(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    max_exp_avg_sqs: list[Tensor],
    state_steps: list[Tensor],
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
    strengths: list[Tensor],
    are_numbers: list[bool],
    constants: list[float],
    metrics: list[str],
    flags: list[bool],
    lengths: list[int],
) -> None:
    """Take an eager step. Each list is that of all groups, one after the other.

    Args:
        params: ``lengths[i]`` of them are of group i, and so with the other lists of tensors.
        grads: written by ``proxadam::unscale_and_step`` alone.
        exp_avgs: as in :class:`Group`.
        exp_avg_sqs: likewise.
        max_exp_avg_sqs: none for a group without amsgrad.
        state_steps: likewise.
        grad_scale: see :func:`step`.
        found_inf: likewise.
        strengths: ``_STRENGTHS`` of each group.
        are_numbers: which of these were numbers before they were put into the graph.
        constants: ``_CONSTANTS`` of each group.
        metrics: the metric of each group.
        flags: ``_FLAGS`` of each group; fused is demanded, or else left to choose.
        lengths: the number of parameters of each group.
    """
    tensors = (params, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, state_steps)
    lists = dict(zip(LISTS, map(iter, tensors), strict=True))
    values = [
        value.item() if is_number and value.is_cpu else value
        for value, is_number in zip(strengths, are_numbers, strict=True)
    ]
    options = [
        (_STRENGTHS, iter(values)),
        (_CONSTANTS, iter(constants)),
        (_FLAGS, iter(flags)),
    ]
    groups = []
    for metric, length in zip(metrics, lengths, strict=True):
        fields: dict[str, Any] = {"metric": metric, "foreach": None, "differentiable": False}
        for names, rest in options:
            fields |= zip(names, islice(rest, len(names)), strict=True)
        for name, rest in lists.items():
            has_none = name == "max_exp_avg_sqs" and not fields["amsgrad"]
            fields[name] = list(islice(rest, 0 if has_none else length))
        fields["fused"] = fields["fused"] or None
        # While it traces, torch.compile says True of all groups; their counters know.
        fields["capturable"] = not any(step_t.is_cpu for step_t in fields["state_steps"])
        groups.append(Group(**fields))
    _dispatch.step(groups, grad_scale, found_inf)


def _define(name: str, grads: str) -> None:
    library.define(name, _SCHEMA.format(grads=grads), tags=torch.Tag.pt2_compliant_tag)
    library.impl(name, "CompositeExplicitAutograd")(_run)
    library.register_fake(name)(lambda *_: None)


_define("proxadam::step", grads="Tensor[]")
_define("proxadam::unscale_and_step", grads="Tensor(b!)[]")
