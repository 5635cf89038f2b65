"""A pass over a parameter's weights and their scores: natively on the CPU, else on torch ops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ... import backends
from ..reading import chunks, local_part
from .scores import Scored, scores, terms


class ScorePass:
    """One look at a parameter's scores, and what is done about it.

    Attributes:
        counts: how many scores are below ``low``, how many up to ``high``, and how many weights
            are not zero; an int64 tensor of shape (chunks, 3) on the parameter's device.

    Args:
        one: the parameter.
        low: of shape (), in the dtype that scores are compared in, float32 or float64.
        high: likewise.
    """

    def __init__(self, one: Scored, low: Tensor, high: Tensor) -> None:
        self._one, self._param = one, one.param
        self._low, self._high = low.to(one.param.device), high.to(one.param.device)
        self._native = _native(one, low.dtype)
        if self._native:
            module, arguments = self._native
            bounds = low.item(), high.item()
            *counts, positions, found = module.look_at_scores(*arguments, *bounds)
            self.counts = torch.tensor([counts])
            self._between = torch.from_numpy(positions), torch.from_numpy(found)
            return
        seen = [
            torch.stack([(s < self._low).sum(), (s <= self._high).sum(), w.count_nonzero()])
            for w, s in scores(one, dtype=low.dtype)
        ]
        self.counts = torch.stack(seen)

    def zero_below(self, counts: list[list[int]]) -> tuple[Tensor, Tensor]:
        """Zero the weights whose scores are below ``low``; tell which lie between the bounds.

        Args:
            counts: :attr:`counts`, on the host.

        Returns:
            Their flat positions in the local part, int64, and their scores; on the parameter's
            device.
        """
        local = local_part(self._param)
        if self._native:
            module, arguments = self._native
            below, _, nonzeros = counts[0]
            if below > local.numel() - nonzeros:  # not only zeros
                module.zero_below(*arguments, self._low.item())
                torch.autograd.graph.increment_version(self._param)
            return self._between
        flat = local.reshape(-1)
        positions = [torch.empty(0, dtype=torch.int64, device=flat.device)]
        found = [self._low.new_empty(0)]
        start = 0
        pairs = scores(self._one, weights=chunks(flat), dtype=self._low.dtype)
        for (w, s), (below, until, nonzeros) in zip(pairs, counts, strict=True):
            if below > w.numel() - nonzeros:
                w.masked_fill_(s < self._low, 0.0)
            if until > below:  # so many that no device need be asked for their number
                inside = (s >= self._low).logical_and_(s <= self._high)
                there = torch.nonzero_static(inside, size=until - below).squeeze(1)
                positions.append(there + start)
                found.append(s[there])
            start += w.numel()
        if flat.data_ptr() != local.data_ptr():  # a copy, for the memory is not contiguous
            local.copy_(flat.view_as(local))
        return torch.cat(positions), torch.cat(found)


def row_squares(one: Scored, width: int) -> Tensor:
    """The sum of the squares of the scores of each row of so many weights of the local part.

    Returns:
        A float64 tensor on the parameter's device; the square of any float32 fits.
    """
    native = _native(one, torch.promote_types(one.param.dtype, torch.float32)) if width else None
    if native:
        module, arguments = native
        return torch.from_numpy(module.row_squares(*arguments, width))

    def rows(tensor: Tensor) -> Sequence[Tensor]:
        return chunks(tensor, width)

    squares = [s.double().view(-1, max(width, 1)).square_().sum(1) for _, s in scores(one, rows)]
    return torch.cat(squares)


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
        plain = plain and tensor.data_ptr() % tensor.itemsize == 0
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
