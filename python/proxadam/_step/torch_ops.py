"""The step on torch ops: torch's own functional ``adam``, and the prox behind it.

So it has torch's bits where l1 = l2 = 0. ``lr`` = 0 leaves the parameters as they are, to the bit.
16-bit tensors are computed in float32 and rounded once. What comes here has been checked: ``adam``
counts before it can raise, so it is given copies of the counters, and these are advanced last.
"""

from __future__ import annotations

import inspect
import math
import sys
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.optimizer import _default_to_fused_or_foreach

from ..prox import prox_elastic_net
from .group import Group
from .options import TYPES, Options, unread

# Elements of CPU tensors taken at a time: what two dozen elementwise passes touch stays in cache.
# Measured; with fewer, the calls and the threads' meetings at the end of each op weigh more.
BLOCK_NUMEL = 1 << 18

_ADAMS = [name for name in inspect.signature(adam).parameters if name in TYPES]
_Row = tuple[Tensor, ...]  # param, grad, exp_avg, exp_avg_sq, with amsgrad its maximum, step


def step(group: Group, grad_scale: Tensor | None = None) -> None:
    """Update a checked group in place; its gradients are divided by ``grad_scale``, in place."""
    traced = torch.compiler.is_compiling()
    lists = group.lists()
    if grad_scale is not None:
        scale, grads = grad_scale.squeeze(), _upcast(group.grads)
        lists["grads"] = [grad / scale.to(grad.device, non_blocking=True) for grad in grads]
        _write(group.grads, lists["grads"], foreach=False)
    kinds = defaultdict(list)  # what may go through one list: same device and dtypes
    for row in zip(*lists.values(), strict=True):
        kinds[row[0].device, row[0].dtype, row[2].dtype].append(row)
    for rows in kinds.values():
        foreach = _uses_foreach(group.options, rows, traced)
        whole = traced or group.options.differentiable or not rows[0][0].is_cpu
        if not whole:  # glibc keeps what it is given back up to the largest block it has got back
            torch.empty(8 * BLOCK_NUMEL)  # never touched
        for together in [rows] if foreach else [[row] for row in rows]:
            for block in _blocks(together, sys.maxsize if whole else BLOCK_NUMEL):
                _update(group.options, block, foreach, traced)
            if not traced:  # a number would be wrapped into a tensor once for each of them
                steps = [row[-1] for row in together]
                torch._foreach_add_(steps, torch.ones((), device=steps[0].device))


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


def _blocks(rows: list[_Row], limit: int) -> Iterator[list[_Row]]:
    """Cut contiguous rows into pieces and hand these out, about ``limit`` elements at a time."""
    block: list[_Row] = []
    numel = 0
    for *tensors, step_t in rows:
        cut = tensors[0].numel() > limit and all(t.is_contiguous() for t in tensors)
        pieces = zip(*(t.view(-1).split(limit) for t in tensors), strict=True) if cut else [tensors]
        for piece in pieces:
            if block and numel + piece[0].numel() > limit:
                yield block
                block, numel = [], 0
            block.append((*piece, step_t))
            numel += piece[0].numel()
    if block:
        yield block


def _update(options: Options, rows: list[_Row], foreach: bool, traced: bool) -> None:
    """Adam and the prox on tensors of one kind, all but the counters."""
    params, grads, *moments, steps = map(list, zip(*rows, strict=True))
    asked = unread(options.lr)  # only the device knows whether lr is 0
    moves = options.differentiable or asked or options.lr != 0
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

    settings: dict[str, Any] = {name: getattr(options, name) for name in _ADAMS}
    settings |= {"foreach": foreach, "fused": False, "has_complex": params[0].is_complex()}
    settings["capturable"] = traced or options.capturable
    lists = [*map(list, working), []][:5]
    adam(*lists, steps, **settings)  # type: ignore[arg-type, call-arg]

    if options.has_prox and moves:
        on_device = traced or options.capturable or options.differentiable
        counts: Any = steps if on_device else [step_t.item() for step_t in steps]
        corrections = [(1 - options.beta2**count) ** 0.5 for count in counts]
        lists_do = foreach or not (traced or options.differentiable) and all(map(_is_plain, params))
        prox_ = _prox_list_ if lists_do else _prox_each_
        prox_(options, working[0], working[-1], corrections)
    for tensors, computed in zip(moments, working[2:], strict=True):
        _write(tensors, computed, foreach)
    if moves and (asked or working[0][0] is not params[0]):
        rounded = [w.to(p.dtype) for p, w in zip(params, working[0], strict=True)]
        if options.has_prox:  # float16 may have rounded a tiny negative value to −0.0
            rounded = [value + 0.0 for value in rounded]
        if asked:
            pairs = zip(params, rounded, strict=True)
            rounded = [torch.where(options.lr == 0, p, r) for p, r in pairs]  # type: ignore[arg-type]
        _write(params, rounded, foreach)


def _is_plain(param: Tensor) -> bool:
    return (
        type(param) in (Tensor, torch.nn.Parameter)
        and not param.is_complex()
        and not torch._C._functorch.is_functorch_wrapped_tensor(param)
    )


def _prox_each_(o: Any, params: list[Tensor], second_moments: list[Tensor], roots: Any) -> None:
    """Replace Adam's results z by their bounded elastic-net prox; d = √v / root + eps.

    The prox takes d as no less than the least normal number, so that 1 / d is finite.
    """
    bound = o.max_shrink * o.lr
    for param, second_moment, root in zip(params, second_moments, roots, strict=True):
        z = param.clone() if o.differentiable else param
        step_size = o.lr
        if not o.euclidean:
            d = (second_moment.sqrt() / root).add_(o.eps)
            step_size = o.lr / d.clamp_min(torch.finfo(d.dtype).tiny)
        shrunk = prox_elastic_net(z, o.l1, o.l2, step_size)
        if z.is_complex():
            pull = shrunk - z
            shrunk = torch.where(pull.abs() > bound, z + pull * (bound / pull.abs()), shrunk)
        elif unread(bound) or bound < math.inf:
            shrunk = shrunk.clamp(z - bound, z + bound)
        param.copy_(shrunk.add_(0.0))  # −0.0 + 0.0 = +0.0: under the prox no zero has a sign


def _prox_list_(o: Any, zs: list[Tensor], second_moments: list[Tensor], roots: Any) -> None:
    """:func:`_prox_each_` on a list of plain real tensors, with few passes and little memory."""
    has_l2 = unread(o.l2) or o.l2 != 0
    if o.euclidean:
        divisors: Any = 1 + o.lr * o.l2
        clamped = torch._foreach_clamp_max(zs, o.lr * o.l1)
        torch._foreach_clamp_min_(clamped, -o.lr * o.l1)
    else:
        divisors = torch._foreach_sqrt(second_moments)  # they become d, 1 / d and 1 + lr l2 / d
        torch._foreach_div_(divisors, roots)
        torch._foreach_add_(divisors, o.eps)
        tiny = torch.finfo(zs[0].dtype).tiny
        if unread(o.eps) or not o.eps >= tiny:
            torch._foreach_clamp_min_(divisors, tiny)
        torch._foreach_reciprocal_(divisors)
        thresholds = torch._foreach_mul(divisors, o.lr * o.l1)
        clamped = torch._foreach_minimum(zs, thresholds)
        torch._foreach_neg_(thresholds)
        torch._foreach_maximum_(clamped, thresholds)
        if has_l2:
            torch._foreach_mul_(divisors, o.lr * o.l2)
            torch._foreach_add_(divisors, 1)
    shrunk = torch._foreach_sub(zs, clamped)
    if has_l2:
        torch._foreach_div_(shrunk, divisors)
    bound = o.max_shrink * o.lr
    if unread(bound) or bound < math.inf:
        torch._foreach_maximum_(shrunk, torch._foreach_sub(zs, bound))
        torch._foreach_add_(zs, bound)
        torch._foreach_minimum_(zs, shrunk)
    else:
        torch._foreach_copy_(zs, shrunk)
    torch._foreach_add_(zs, 0.0)  # as in _prox_each_


def _upcast(tensors: list[Tensor]) -> list[Tensor]:
    """The tensors as they are computed with: themselves, or float32 copies of 16-bit ones."""
    return [t.to(torch.float32) if t.dtype.itemsize == 2 else t for t in tensors]


def _write(tensors: list[Tensor], values: list[Tensor], foreach: bool) -> None:
    if foreach and tensors[0] is not values[0]:
        torch._foreach_copy_(tensors, values)
        return
    for tensor, value in zip(tensors, values, strict=True):
        if tensor is not value:
            tensor.copy_(value)
