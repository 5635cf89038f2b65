"""The step on torch ops: torch's own functional ``adam``, and the prox behind it.

So it has torch's bits where l1 = l2 = 0. ``lr`` = 0 leaves the parameters as they are, to the bit.
16-bit tensors are computed in float32 and rounded once. What comes here has been checked: ``adam``
counts before it can raise, so it is given copies of the counters, and these are advanced last.
"""

from __future__ import annotations

import inspect
import math
from collections import defaultdict
from collections.abc import Iterator
from itertools import repeat
from typing import Any

import torch
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.optimizer import (
    _default_to_fused_or_foreach,
    _get_capturable_supported_devices,
)

from ..prox import prox_elastic_net
from .group import Group
from .options import TYPES, Options, unread

# Elements of CPU tensors taken at a time: what a dozen elementwise passes touch stays in cache.
# Measured; with twice as many, the allocator gives temporaries back and pays for them again.
BLOCK_NUMEL = 1 << 16

_ADAMS = [name for name in inspect.signature(adam).parameters if name in TYPES]
_Row = tuple[Tensor, ...]  # param, grad, exp_avg, exp_avg_sq, with amsgrad its maximum, step


def step(group: Group, grad_scale: Tensor | None = None) -> None:
    """Update the parameters and the state of ``group`` in place.

    Args:
        group: checked parameters, gradients, state and options.
        grad_scale: what the gradients were multiplied by; they are divided by it in place.
    """
    traced = torch.compiler.is_compiling()
    lists = group.lists()
    if grad_scale is not None:
        lists["grads"] = _unscale(group.grads, grad_scale)
    kinds = defaultdict(list)  # what may go through one list: same device and dtypes
    for row in zip(*lists.values(), strict=True):
        kinds[row[0].device, row[0].dtype, row[2].dtype].append(row)
    for rows in kinds.values():
        foreach = _uses_foreach(group.options, rows, traced)
        whole = traced or group.options.differentiable or not rows[0][0].is_cpu
        for together in [rows] if foreach else [[row] for row in rows]:
            for block in _blocks(together, math.inf if whole else BLOCK_NUMEL):
                _update(group.options, block, foreach, traced)
            if not traced:
                _count([row[-1] for row in together])


def check_capturable(group: Group) -> None:
    """Raise torch.optim's AssertionError where ``capturable`` meets a device that is not."""
    devices = _get_capturable_supported_devices(supports_xla=not group.options.foreach)
    if group.options.capturable:
        for param, step_t in zip(group.params, group.state_steps, strict=True):
            if not param.device.type == step_t.device.type or param.device.type not in devices:
                raise AssertionError(
                    "If capturable=True, params and state_steps must be on supported devices: "
                    f"{devices}."
                )


def _uses_foreach(options: Options, rows: list[_Row], traced: bool) -> bool:
    params = [row[0] for row in rows]
    if options.has_prox and params[0].is_complex():
        return False
    foreach = options.foreach
    if foreach is None:
        _, foreach = _default_to_fused_or_foreach(params, options.differentiable, use_fused=False)
        in_tensors = any(isinstance(v, Tensor) for v in (options.lr, options.beta1, options.beta2))
        foreach = foreach and (options.capturable or not in_tensors)
    # torch writes no list that has a lazily negated view in it; a compiler cannot be asked.
    return foreach and (traced or not any(tensor.is_neg() for row in rows for tensor in row))


def _blocks(rows: list[_Row], limit: float) -> Iterator[list[_Row]]:
    """Cut contiguous rows into pieces and hand these out, about ``limit`` elements at a time."""
    block: list[_Row] = []
    numel = 0
    for *tensors, step_t in rows:
        pieces: Any = [(*tensors, step_t)]
        if tensors[0].numel() > limit and all(t.is_contiguous() for t in tensors):
            pieces = zip(*(t.view(-1).split(int(limit)) for t in tensors), repeat(step_t))
        for piece in pieces:
            if block and numel + piece[0].numel() > limit:
                yield block
                block, numel = [], 0
            block.append(piece)
            numel += piece[0].numel()
    if block:
        yield block


def _update(options: Options, rows: list[_Row], foreach: bool, traced: bool) -> None:
    """Adam and the prox on tensors of one kind, all but the counters."""
    params, grads, *moments, steps = map(list, zip(*rows, strict=True))
    lr = _scalar(options.lr)
    asked = unread(lr)  # only the device knows whether lr is 0
    moves = options.differentiable or asked or lr != 0
    working = [_upcast(tensors) for tensors in (params, grads, *moments)]
    if options.differentiable:  # the backward pass needs them as they are; the next step overwrites
        working[2:] = [[tensor.clone() for tensor in tensors] for tensors in working[2:]]
    if asked or not moves:
        working[0] = [w.clone() if w is p else w for p, w in zip(params, working[0], strict=True)]
    if params[0].is_complex():
        working[1] = [grad.resolve_conj() for grad in working[1]]
    if not traced:  # a graph has been traced to its end before it writes
        copies = {id(step_t): step_t.clone() for step_t in steps}  # one may be there twice
        steps = [copies[id(step_t)] for step_t in steps]

    settings: dict[str, Any] = {name: _scalar(getattr(options, name)) for name in _ADAMS}
    settings |= {"foreach": foreach, "fused": False, "has_complex": params[0].is_complex()}
    on_device = traced or options.capturable or options.differentiable
    settings["capturable"] = traced or options.capturable
    maxima = list(working[4]) if options.amsgrad else []
    adam(*map(list, working[:4]), maxima, steps, **settings)  # type: ignore[arg-type, call-arg]

    if options.has_prox and moves:
        counts: Any = steps if on_device else [step_t.item() for step_t in steps]
        (_prox_list_ if foreach else _prox_each_)(options, working[0], working[-1], counts, lr)
    for tensors, computed in zip(moments, working[2:], strict=True):
        _write(tensors, computed, foreach)
    if moves and (asked or working[0][0] is not params[0]):
        rounded = [w.to(p.dtype) for p, w in zip(params, working[0], strict=True)]
        if options.has_prox:  # float16 may have rounded a tiny negative value to −0.0
            rounded = [value + 0.0 for value in rounded]
        if asked:
            still = lr == 0
            rounded = [torch.where(still, p, r) for p, r in zip(params, rounded, strict=True)]
        _write(params, rounded, foreach)


def _prox_each_(
    o: Options, params: list[Tensor], second_moments: list[Tensor], counts: list[Any], lr: Any
) -> None:
    """Replace Adam's results z by their elastic-net prox in the group's metric, bounded."""
    l1, l2, beta2, eps, max_shrink = map(_scalar, (o.l1, o.l2, o.beta2, o.eps, o.max_shrink))
    for param, second_moment, count in zip(params, second_moments, counts, strict=True):
        z = param.clone() if o.differentiable else param
        step_size = lr
        if not o.euclidean:
            step_size = lr / (second_moment.sqrt() / (1 - beta2**count) ** 0.5).add_(eps)
        shrunk = prox_elastic_net(z, l1, l2, step_size)
        if unread(max_shrink) or max_shrink < math.inf:
            bound = max_shrink * lr
            if z.is_complex():
                pull = shrunk - z
                shrunk = torch.where(pull.abs() > bound, z + pull * (bound / pull.abs()), shrunk)
            else:
                shrunk = shrunk.clamp(z - bound, z + bound)
        param.copy_(shrunk.add_(0.0))  # −0.0 + 0.0 = +0.0: under the prox no zero has a sign


def _prox_list_(
    o: Options, params: list[Tensor], second_moments: list[Tensor], counts: list[Any], lr: Any
) -> None:
    """:func:`_prox_each_` on a list at a time, of real tensors."""
    l1, l2, beta2, eps, max_shrink = map(_scalar, (o.l1, o.l2, o.beta2, o.eps, o.max_shrink))
    if o.euclidean:
        divisors: Any = 1 + lr * l2
        clamped = torch._foreach_clamp_max(params, lr * l1)
        torch._foreach_clamp_min_(clamped, -lr * l1)
    else:
        divisors = torch._foreach_sqrt(second_moments)
        bias_corrections: Any = [(1 - beta2**t) ** 0.5 for t in counts if not isinstance(t, Tensor)]
        if not bias_corrections:
            bias_corrections = torch._foreach_pow(beta2, counts)
            torch._foreach_sub_(bias_corrections, 1)
            torch._foreach_neg_(bias_corrections)
            torch._foreach_sqrt_(bias_corrections)
        torch._foreach_div_(divisors, bias_corrections)
        torch._foreach_add_(divisors, eps)  # d, and from here 1 / d
        torch._foreach_reciprocal_(divisors)
        thresholds = torch._foreach_mul(divisors, lr * l1)
        clamped = torch._foreach_minimum(params, thresholds)
        torch._foreach_neg_(thresholds)
        torch._foreach_maximum_(clamped, thresholds)
        torch._foreach_mul_(divisors, lr * l2)
        torch._foreach_add_(divisors, 1)
    bounds = []
    if unread(max_shrink) or max_shrink < math.inf:
        bounds = [torch._foreach_add(params, sign * max_shrink * lr) for sign in (-1, 1)]
    torch._foreach_sub_(params, clamped)
    torch._foreach_div_(params, divisors)
    if bounds:
        torch._foreach_maximum_(params, bounds[0])
        torch._foreach_minimum_(params, bounds[1])
    torch._foreach_add_(params, 0.0)  # as in _prox_each_


def _count(steps: list[Tensor]) -> None:
    if steps[0].is_cpu:  # an int would be wrapped into a tensor once for each of them
        torch._foreach_add_(steps, torch.tensor(1.0, device="cpu"), alpha=1.0)
    else:
        torch._foreach_add_(steps, 1)


def _unscale(grads: list[Tensor], grad_scale: Tensor) -> list[Tensor]:
    """Divide the gradients in place; return them as they were before that was rounded."""
    scale = grad_scale.squeeze()
    unscaled = [g / scale.to(g.device, non_blocking=True) for g in _upcast(grads)]
    _write(grads, unscaled, foreach=False)
    return unscaled


def _upcast(tensors: list[Tensor]) -> list[Tensor]:
    """The tensors as they are computed with: themselves, or float32 copies of 16-bit ones."""
    return [t.to(torch.float32) if t.dtype.itemsize == 2 else t for t in tensors]


def _write(tensors: list[Tensor], values: list[Tensor], foreach: bool) -> None:
    if tensors[0] is values[0]:
        return
    if foreach:
        torch._foreach_copy_(tensors, values)
        return
    for tensor, value in zip(tensors, values, strict=True):
        tensor.copy_(value)


# Any: the stubs of torch's functions take numbers where the functions take such tensors too.
def _scalar(value: Any) -> Any:
    return value.squeeze() if isinstance(value, Tensor) else value
