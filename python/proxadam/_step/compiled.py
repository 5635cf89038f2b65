"""The step under torch.compile: a group on its kernel as one op of the graph.

The op takes an eager step when the graph runs. So a compiled step checks what an eager one checks,
leaves to torch ops what an eager one does, and gives its bits; there is nothing for a compiler to
fuse with a step that reads and writes each number once. Eager steps go around the op: handing the
lists of tensors to torch's dispatcher and back would cost more than a small step.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, library
from torch._subclasses import FakeTensor
from torch.nn import Parameter

from .. import backends
from .group import LISTS, Group
from .options import NUMBERS, STATE_DTYPES, TYPES, Options

_PLAIN = (Tensor, Parameter, FakeTensor)
# How an option of each type goes through the op. Numbers go as tensors, see _as_tensor.
_OP_TYPES = {
    "float | Tensor": "Tensor",
    "bool": "bool",
    "bool | None": "bool?",
    "str": "str",
    "int": "int",
}
_OPTIONS = {name: _OP_TYPES[kind] for name, kind in TYPES.items() if kind in _OP_TYPES}
_SCHEMA = (
    "(Tensor(a!)[] params, {grads} grads, Tensor(c!)[] exp_avgs, Tensor(d!)[] exp_avg_sqs,"
    " Tensor(e!)[] max_exp_avg_sqs, Tensor(g!)[] exp_avg_exponents,"
    " Tensor(h!)[] exp_avg_sq_exponents, Tensor(f!)[] state_steps, Tensor? grad_scale,"
    " Tensor? found_inf, int[] numbers, str? state_dtype, str[] plain,"
    f" {', '.join(f'{t} {n}' for n, t in _OPTIONS.items())}) -> ()"
)

# A dtype goes through the op by its name.
_NAMES = {dtype: None if dtype is None else str(dtype) for dtype in STATE_DTYPES}
_STATE_DTYPES = {name: dtype for dtype, name in _NAMES.items()}

_run: Any  # what the op does


def call_op(group: Group, grad_scale: Tensor | None, found_inf: Tensor | None) -> bool:
    """Put the step of a group into the graph as an op, if it is one for the kernel.

    It is not where the options forbid the kernel, for devices without one, and for tensor
    subclasses.

    Args:
        group: parameters, gradients, state and options.
        grad_scale: one element; the gradients are divided by it, and written back divided.
        found_inf: one element; anything but zero skips the step, counters included.

    Returns:
        Whether the op was called.
    """
    if not _takes(group):
        return False
    options = {name: getattr(group.options, name) for name in _OPTIONS}
    plain = [name for name in NUMBERS if not isinstance(options[name], Tensor)]
    for name, kind in _OPTIONS.items():
        if kind == "Tensor":
            options[name] = _as_tensor(options[name], group.params[0].device)
        elif kind == "bool":
            options[name] = bool(options[name])
    op = torch.ops.proxadam.step if grad_scale is None else torch.ops.proxadam.unscale_and_step
    lists = [getattr(group, name) for name in LISTS]
    state_dtype = _NAMES[group.options.state_dtype]
    op(*lists, grad_scale, found_inf, group.numbers, state_dtype, plain, *options.values())
    return True


def _takes(group: Group) -> bool:
    if not group.options.allows_kernel or not group.params:
        return False
    if not all(type(tensor) in _PLAIN for tensor in group.params + group.grads):
        return False
    return all(_has_kernel(name) for name in {param.device.type for param in group.params})


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _has_kernel(device_type: str) -> bool:
    return backends.kernel(device_type) is not None


def _as_tensor(value: float | Tensor, device: torch.device) -> Tensor:
    # A number would be compiled in, and each change of it a recompilation. Of a product with a
    # tensor the compiler makes an input of the graph, once it has seen the number change.
    if isinstance(value, Tensor):
        return value
    return torch.ones((), dtype=torch.float64, device=device) * value


def define_op(step: Any) -> None:
    """Define the op, as one that takes the eager ``step(groups, grad_scale, found_inf)``.

    Torch defines an op once in a process. Where this package is imported again, it takes the newer
    step.
    """

    def run(*arguments: Any) -> None:
        lists, rest = arguments[: len(LISTS)], arguments[len(LISTS) :]
        grad_scale, found_inf, numbers, state_dtype, plain, *given = rest
        values: dict[str, Any] = dict(zip(_OPTIONS, given, strict=True))
        for name in plain:  # these were numbers before they were put into the graph
            if values[name].is_cpu:
                values[name] = values[name].item()
        # While it traces, torch.compile says True of all groups; their counters know.
        values["capturable"] = not any(step_t.is_cpu for step_t in lists[-1])
        values["state_dtype"] = _STATE_DTYPES[state_dtype]
        named = dict(zip(LISTS, lists, strict=True))
        group = Group(**named, numbers=list(numbers), options=Options(**values))
        with torch.no_grad():  # whether autograd lets it write was asked where the op was called
            step([group], grad_scale, found_inf)

    global _run
    _run = run
    for name, grads in (("step", "Tensor[]"), ("unscale_and_step", "Tensor(b!)[]")):
        if hasattr(torch.ops.proxadam, name):
            continue
        schema = _SCHEMA.format(grads=grads)
        library.define(f"proxadam::{name}", schema, tags=torch.Tag.pt2_compliant_tag)
        library.impl(f"proxadam::{name}", "CompositeExplicitAutograd")(
            lambda *arguments: sys.modules[__name__]._run(*arguments)
        )
        library.register_fake(f"proxadam::{name}")(lambda *_: None)
