"""The step on torch ops: torch's own functional ``adam``, and the prox behind it.

So it has torch's bits where l1 = l2 = 0. ``lr`` = 0 leaves the parameters as they are, to the bit.
16-bit tensors and codes are computed in float32 and rounded once. What comes here has been checked:
``adam`` counts before it can raise, so it is given copies of the counters, and these are advanced
last.
"""

from __future__ import annotations

import inspect
import math
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.nn import Parameter
from torch.optim.adam import adam
from torch.optim.optimizer import _default_to_fused_or_foreach

from ..prox import log_slope
from . import prox_ops, stored
from .group import Group
from .options import TYPES, Options, unread
from .rounding_ops import BLOCK
from .stored import Entry, entries_of

# Elements of CPU tensors taken at a time: what two dozen elementwise passes touch stays in cache.
# Measured; with fewer, calls weigh more, and waiting for all threads at the end of each op.
BLOCK_NUMEL = 1 << 18

_ADAMS = [name for name in inspect.signature(adam).parameters if name in TYPES]


def step(group: Group, grad_scale: Tensor | None = None) -> None:
    """Update a checked group in place; its gradients are divided by ``grad_scale``, in place."""
    traced = torch.compiler.is_compiling()
    if grad_scale is not None:
        scale, grads = grad_scale.squeeze(), _upcast(group.grads)
        unscaled = [grad / scale.to(grad.device, non_blocking=True) for grad in grads]
        _write(group.grads, unscaled, foreach=False)
        group = replace(group, grads=unscaled)
    entries = entries_of(group)
    kinds = defaultdict(list)
    for entry in entries:
        kinds[_kind(entry)].append(entry)
    listed = {k for k, alike in kinds.items() if _uses_foreach(group.options, alike, traced)}
    # The others in list order: they may share memory.
    for together in [
        *(kinds[k] for k in listed),
        *([r] for r in entries if _kind(r) not in listed),
    ]:
        foreach = _kind(together[0]) in listed
        tensors = *together[0].tensors, *together[0].exponents, together[0].step
        whole = traced or group.options.differentiable or not all(map(_is_plain, tensors))
        if not whole and (foreach or together[0].numel > BLOCK_NUMEL):
            torch.empty(8 * BLOCK_NUMEL)  # glibc keeps as much as was ever freed at once
        for block in _blocks(together, sys.maxsize if whole else BLOCK_NUMEL):
            _update(group.options, block, foreach, whole, traced)
        if not traced:  # a number would be wrapped into a tensor once for each of them
            steps = [entry.step for entry in together]
            torch._foreach_add_(steps, torch.ones((), device=steps[0].device))


def rehearse(group: Group, grad_scale: Tensor | None = None) -> None:
    """Step copies of what torch ops may fail on half-way, so that it raises before all writing.

    That is numbers that may overflow, and subclasses that need not have the ops of a step.
    """
    devices = {param.device for param in group.params}
    fallible = {device for device in devices if group.options.may_fail(device)}
    for i, entry in enumerate(zip(*group.lists().values(), strict=True)):
        kinds = {*map(type, entry)} - {Tensor, Parameter}
        if entry[0].device in fallible or any(map(_has_own_ops, kinds)):
            copies = group.take([i])
            for tensors in copies.lists().values():
                tensors[:] = [tensor.clone() for tensor in tensors]
            step(copies, grad_scale)


def _kind(entry: Entry) -> tuple[Any, ...]:
    """What entries have in common that may go through one list."""
    param, _, exp_avg = entry.tensors[:3]
    return param.device, param.dtype, exp_avg.dtype


def _has_own_ops(kind: type) -> bool:
    own = {n for c in kind.__mro__ if c not in Parameter.__mro__ for n in vars(c)}
    return not own.isdisjoint(("__torch_function__", "__torch_dispatch__"))


def _uses_foreach(options: Options, entries: list[Entry], traced: bool) -> bool:
    params = [entry.tensors[0] for entry in entries]
    if options.has_rows or (options.has_prox and params[0].is_complex()):
        return False
    foreach = options.foreach
    if foreach is None:
        _, foreach = _default_to_fused_or_foreach(params, options.differentiable, use_fused=False)
        in_tensors = any(isinstance(v, Tensor) for v in (options.lr, options.beta1, options.beta2))
        foreach = foreach and (options.capturable or not in_tensors)
        kept = [(entry.tensors[0], *entry.tensors[2:], entry.step) for entry in entries]
        written = [id(tensor) for tensors in kept for tensor in tensors]
        foreach = foreach and len(written) == len({*written})
    # torch lists no counts in 16 bits.
    foreach = foreach and all(entry.step.dtype.itemsize > 2 for entry in entries)
    # torch writes no list that has a lazily negated view in it; a compiler cannot be asked.
    return foreach and (traced or not any(t.is_neg() for entry in entries for t in entry.tensors))


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor may be cut, and be written by an op on lists."""
    odd = tensor.is_complex() or tensor.is_neg() or is_functorch_wrapped_tensor(tensor)
    return type(tensor) in (Tensor, Parameter) and tensor.is_cpu and not odd


def _blocks(entries: list[Entry], limit: int) -> Iterator[list[Entry]]:
    """Cut contiguous entries into pieces and hand these out, about ``limit`` elements at a time."""
    block: list[Entry] = []
    numel = 0
    for entry in entries:
        for piece in _pieces(entry, limit):
            if block and numel + piece.numel > limit:
                yield block
                block, numel = [], 0
            block.append(piece)
            numel += piece.numel
    if block:
        yield block


def _pieces(entry: Entry, limit: int) -> list[Entry]:
    cut_rows = entry.rows is not None and entry.rows.ranks  # in one piece on all ranks
    if entry.numel <= limit or cut_rows or not all(t.is_contiguous() for t in entry.tensors):
        return [entry]
    unit = math.lcm(BLOCK if entry.exponents else 1, entry.rows.numel if entry.rows else 1)
    limit = -(-limit // unit) * unit  # whole blocks of codes, and whole rows
    cut = list(zip(*(t.view(-1).split(limit) for t in entry.tensors), strict=True))
    blocks = [e.split(limit // BLOCK) for e in entry.exponents]
    exponents = list(zip(*blocks, strict=True)) if blocks else [()] * len(cut)
    return [
        replace(entry, tensors=tensors, exponents=of, offset=entry.offset + i * limit)
        for i, (tensors, of) in enumerate(zip(cut, exponents, strict=True))
    ]


def _update(
    options: Options, entries: list[Entry], foreach: bool, whole: bool, traced: bool
) -> None:
    """Adam and the prox on tensors of one kind, all but the counters."""
    params, grads, *moments = map(list, zip(*(entry.tensors for entry in entries), strict=True))
    steps = [entry.step for entry in entries]
    asked = unread(options.lr)  # only the device knows whether lr is 0
    moves = options.differentiable or asked or options.lr != 0
    working = [_upcast(tensors) for tensors in (params, grads, *moments)]
    if entries[0].exponents:
        working[2:] = map(list, zip(*map(stored.decoded, entries), strict=True))
    if options.differentiable:  # the backward pass needs them as they are; the next step overwrites
        working[2:] = [[tensor.clone() for tensor in tensors] for tensors in working[2:]]
    if asked or not moves:
        working[0] = [w.clone() if w is p else w for p, w in zip(params, working[0], strict=True)]
    if params[0].is_complex():
        working[1] = [grad.resolve_conj() for grad in working[1]]
    if not traced:  # a graph has been traced to its end before it writes
        copies = {id(step_t): step_t.clone() for step_t in steps}  # one may be there twice
        steps = [copies[id(step_t)] for step_t in steps]

    settings: dict[str, Any] = {name: getattr(options, name) for name in _ADAMS}
    settings |= {"foreach": foreach, "fused": False, "has_complex": params[0].is_complex()}
    settings["capturable"] = traced or options.capturable
    lists = [*map(list, working), []][:5]
    zeros = [weight == 0 for weight in working[0]] if options.keep_zeros and moves else []
    knee = moves and options.has_prox and options.has_knee
    slopes = [log_slope(weight, options.l1_knee) for weight in working[0]] if knee else None
    adam(*lists, steps, **settings)  # type: ignore[arg-type, call-arg]

    if options.has_prox and moves:
        counts: Any = steps
        if not (traced or options.capturable or options.differentiable):
            counts = [step_t.item() for step_t in steps]
        roots = [(1 - options.beta2**count) ** 0.5 for count in counts]
        if options.has_rows:
            rows = [entry.rows for entry in entries]
            prox_ops.rows_(options, working[0], working[-1], roots, slopes, zeros, rows)
        else:
            prox_ = prox_ops.list_ if foreach or not whole else prox_ops.each_
            prox_(options, working[0], working[-1], roots, slopes)
    for weight, zero in zip(working[0] if zeros else [], zeros, strict=True):
        weight.masked_fill_(zero, 0.0)
    chances = [
        stored.Chance(options, entry, step_t) for entry, step_t in zip(entries, steps, strict=True)
    ]
    if entries[0].exponents or chances[0].rounds_state:
        for chance, *values in zip(chances, *working[2:], strict=True):
            chance.write_state(values)
    else:
        for tensors, computed in zip(moments, working[2:], strict=True):
            _write(tensors, computed, foreach)
    if moves and (asked or working[0][0] is not params[0]):
        rounded = [chance.param(w) for chance, w in zip(chances, working[0], strict=True)]
        if options.has_prox:  # float16 may have rounded a tiny negative value to −0.0
            rounded = [value + 0.0 for value in rounded]
        if asked:
            pairs = zip(params, rounded, strict=True)
            rounded = [torch.where(options.lr == 0, p, r) for p, r in pairs]  # type: ignore[arg-type]
        _write(params, rounded, foreach)


def _upcast(tensors: list[Tensor]) -> list[Tensor]:
    """The tensors as they are computed with: themselves, or float32 copies of 16-bit ones."""
    return [t.to(torch.float32) if t.dtype.itemsize == 2 else t for t in tensors]


def _write(tensors: list[Tensor], values: list[Tensor], foreach: bool) -> None:
    if foreach and tensors[0] is not values[0]:
        torch._foreach_copy_(tensors, values)
        return
    for tensor, value in zip(tensors, values, strict=True):
        if tensor is not value:
            tensor.copy_(value.to(tensor.dtype))  # torch's cast into a negated view loses the sign
