"""A pass over a parameter's weights and their scores: natively on the CPU, else on torch ops."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import backends
from .reading import chunks, local_part
from .scores import Scored, scores, terms


def count(one: Scored, low: Tensor, high: Tensor) -> Tensor:
    """Count in each chunk the scores below ``low``, those up to ``high``, and the nonzero weights.

    Args:
        one: the parameter.
        low: of shape (), in the dtype that scores are compared in, float32 or float64.
        high: likewise.

    Returns:
        An int64 tensor of shape (chunks, 3) on the parameter's device.
    """
    low, high = low.to(one.param.device), high.to(one.param.device)
    native = _native(one, low.dtype)
    if native:
        module, arguments = native
        size = -(-local_part(one.param).numel() // module.SCORE_CHUNK)
        counts = torch.empty(size, 3, dtype=torch.int64)
        module.count_scores(*arguments, low.item(), high.item(), counts.view(-1).numpy())
        return counts
    seen = [
        torch.stack([(s < low).sum(), (s <= high).sum(), w.count_nonzero()])
        for w, s in scores(one, dtype=low.dtype)
    ]
    return torch.stack(seen)


def zero_below(
    one: Scored, low: Tensor, high: Tensor, counts: list[list[int]]
) -> tuple[Tensor, Tensor]:
    """Zero the weights whose scores are below ``low``; say which lie between the bounds.

    Args:
        one: the parameter.
        low: as for :func:`count`.
        high: likewise.
        counts: what :func:`count` found with the same bounds, on the host.

    Returns:
        Their flat positions in the local part, int64, and their scores; on the parameter's device.
    """
    low, high = low.to(one.param.device), high.to(one.param.device)
    native = _native(one, low.dtype)
    if native:
        module, arguments = native
        between = sum(until - below for below, until, _ in counts)
        positions, found = torch.zeros(between, dtype=torch.int64), low.new_zeros(between)
        flat = torch.tensor(counts, dtype=torch.int64).view(-1)
        bounds = low.item(), high.item()
        module.zero_below(*arguments, *bounds, *(t.numpy() for t in (flat, positions, found)))
        torch.autograd.graph.increment_version(one.param)
        return positions, found
    local = local_part(one.param)
    flat = local.reshape(-1)
    positions_of = [torch.empty(0, dtype=torch.int64, device=flat.device)]
    scores_of = [low.new_empty(0)]
    start = 0
    pairs = scores(one, weights=chunks(flat), dtype=low.dtype)
    for (w, s), (below, until, _) in zip(pairs, counts, strict=True):
        if below:
            w.masked_fill_(s < low, 0.0)
        if until > below:  # so many that no device need be asked for their number
            inside = (s >= low).logical_and_(s <= high)
            there = torch.nonzero_static(inside, size=until - below).squeeze(1)
            positions_of.append(there + start)
            scores_of.append(s[there])
        start += w.numel()
    if flat.data_ptr() != local.data_ptr():  # a copy, for the memory is not contiguous
        local.copy_(flat.view_as(local))
    return torch.cat(positions_of), torch.cat(scores_of)


def _native(one: Scored, dtype: torch.dtype) -> tuple[Any, list[Any]] | None:
    """The module, and what its functions begin with; None where it does not take the tensors."""
    module = backends.kernel("cpu")
    factor, offset = terms(one)
    moment = one.moment
    tensors = [local_part(t) for t in (one.param, moment) if t is not None]
    if module is None or isinstance(factor, Tensor) or isinstance(offset, Tensor):
        return None
    for tensor in tensors:
        plain = tensor.is_cpu and tensor.is_contiguous() and not tensor.is_neg()
        kinds = (torch.float64,) if dtype == torch.float64 else _FLOAT32S
        if type(tensor) is not Tensor or not plain or tensor.dtype not in kinds:
            return None
    (weights, *moments), names = tensors, [str(t.dtype).removeprefix("torch.") for t in tensors]
    buffers = [_buffer(weights), _buffer(moments[0]) if moments else None]
    return module, [buffers[0], names[0], buffers[1], names[-1], float(factor), float(offset)]


_FLOAT32S = (torch.float32, torch.bfloat16, torch.float16)  # computed in float32


def _buffer(tensor: Tensor) -> Any:
    flat = tensor.view(-1)
    return (flat.view(torch.int16) if flat.dtype.itemsize == 2 else flat).numpy()
