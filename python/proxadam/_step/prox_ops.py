"""The prox of a step on torch ops: Adam's results are replaced by theirs, within max_shrink."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..prox import left_of_rows, prox_elastic_net, row_pull
from .options import unread
from .stored import Rows

_Slopes = list[Tensor] | None  # what l1 is multiplied with, for each parameter; None without knee


def each_(
    o: Any, params: list[Tensor], second_moments: list[Tensor], roots: Any, slopes: _Slopes
) -> None:
    """Replace Adam's results z by their bounded elastic-net prox; d = √v / root + eps.

    The prox takes d as no smaller than the smallest normal number: 1 / d may be multiplied by 0.
    """
    l1s = _l1s(o, params, slopes)
    for param, second_moment, root, l1 in zip(params, second_moments, roots, l1s, strict=True):
        z = param.clone() if o.differentiable else param
        shrunk = prox_elastic_net(z, l1, o.l2, _step_size(o, second_moment, root))
        param.copy_(_bounded(o, shrunk, z))


def rows_(
    o: Any,
    params: list[Tensor],
    second_moments: list[Tensor],
    roots: Any,
    slopes: _Slopes,
    zeros: list[Tensor],
    rows: list[Rows | None],
) -> None:
    """:func:`each_`, with l21 for those parameters that have rows.

    ``zeros`` tells which weights of each stay zero, and take no part in their rows; or is empty.
    """
    l1s = _l1s(o, params, slopes)
    for i, (z, second_moment, root, l1) in enumerate(
        zip(params, second_moments, roots, l1s, strict=True)
    ):
        step_size = _step_size(o, second_moment, root)
        shrunk = prox_elastic_net(z, l1, o.l2, step_size)
        own = rows[i]
        if own is not None:
            if zeros:
                shrunk.masked_fill_(zeros[i], 0.0)
            strength = o.l21 * math.sqrt(own.numel)
            pull = row_pull(shrunk, strength, o.l2, step_size)
            add_up = own.add_up if own.ranks else None
            left = left_of_rows(own.by_rows(shrunk), own.by_rows(pull), add_up)
            shrunk = shrunk * left.reshape(shrunk.shape)
        z.copy_(_bounded(o, shrunk, z))


def _l1s(o: Any, params: list[Tensor], slopes: _Slopes) -> list[Any]:
    return [o.l1 * slope for slope in slopes] if slopes else [o.l1] * len(params)


def _step_size(o: Any, second_moment: Tensor, root: Any) -> Any:
    """Of the prox: lr / d for each coordinate, or lr."""
    if o.euclidean:
        return o.lr
    d = (second_moment.sqrt() / root).add_(o.eps)
    return o.lr / d.clamp_min(torch.finfo(d.dtype).tiny)


def _bounded(o: Any, shrunk: Tensor, z: Tensor) -> Tensor:
    """What a prox pulled no farther from z than max_shrink allows; under it no zero has a sign."""
    bound = o.max_shrink * o.lr
    if z.is_complex():
        pull = shrunk - z
        shrunk = torch.where(pull.abs() > bound, z + pull * (bound / pull.abs()), shrunk)
    elif unread(bound) or bound < math.inf:
        shrunk = shrunk.clamp(z - bound, z + bound)
    return shrunk.add_(0.0)  # −0.0 + 0.0 = +0.0


def list_(
    o: Any, zs: list[Tensor], second_moments: list[Tensor], roots: Any, slopes: _Slopes
) -> None:
    """:func:`each_` on a list of real tensors, with few passes and little fresh memory."""
    high, low, divisors = o.lr * o.l1, -o.lr * o.l1, 1 + o.lr * o.l2
    if not o.euclidean:
        divisors = torch._foreach_sqrt(second_moments)  # they become d, 1 / d and 1 + lr l2 / d
        torch._foreach_div_(divisors, roots)
        torch._foreach_add_(divisors, o.eps)
        tiny = torch.finfo(zs[0].dtype).tiny
        if unread(o.eps) or o.eps < tiny:
            torch._foreach_clamp_min_(divisors, tiny)
        torch._foreach_reciprocal_(divisors)
        high = torch._foreach_mul(divisors, high)
        torch._foreach_mul_(divisors, o.lr * o.l2)
        torch._foreach_add_(divisors, 1)
    if slopes:
        high = torch._foreach_mul(slopes, high)
    if slopes or not o.euclidean:
        low = torch._foreach_neg(high)
    clamped = torch._foreach_clamp_max(zs, high)
    torch._foreach_clamp_min_(clamped, low)
    shrunk = torch._foreach_sub(zs, clamped)
    torch._foreach_div_(shrunk, divisors)
    bound = o.max_shrink * o.lr
    if unread(bound) or bound < math.inf:
        torch._foreach_maximum_(shrunk, torch._foreach_sub(zs, bound))
        torch._foreach_add_(zs, bound)
        torch._foreach_minimum_(zs, shrunk)
    else:
        torch._foreach_copy_(zs, shrunk)
    torch._foreach_add_(zs, 0.0)  # as in each_
