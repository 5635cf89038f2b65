"""Set exactly so many rows to zero: those with the lowest scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..reading import local_part
from .score_pass import row_squares
from .scores import Scored
from .selection import lowest
from .shards import offsets


class RowPruner:
    """The rows of some parameters, of which a share is to be zero throughout.

    A row is what has one index in the first dimension, and its score is √(Σ d w² / lr). The scores
    of all rows are known to all processes; see :class:`WeightPruner` for the methods.

    Args:
        ones: the parameters, on any devices, whole or in shards.
        share: of all their rows, from 0 to 1.
    """

    def __init__(self, ones: Sequence[Scored], share: float) -> None:
        self._ones = ones
        self.count = sum(rows_of(one.param) for one in ones)
        self.wanted = round(share * self.count)
        self.zeros = self.then = 0  # before and behind the update; settle() knows

    def look(self) -> list[Tensor]:
        """Score the rows, and count those that are zero throughout; on devices."""
        self._scores = [_row_scores(one) for one in self._ones]
        return [(score == 0).sum() for score in self._scores]

    def settle(self, counts: list[list[float]]) -> bool:
        """Take the numbers that :meth:`look` has counted."""
        self.zeros = int(sum(count for (count,) in counts))
        self.then = max(self.zeros, self.wanted)
        return True

    def zero(self) -> None:
        """Zero the rows with the lowest scores."""
        if self.wanted <= self.zeros:
            return
        # Every process has all scores: as if none were sharded.
        dropped = lowest(self._scores, [None] * len(self._ones), list, self.wanted)
        for one, drops in zip(self._ones, dropped, strict=True):
            local = local_part(one.param)
            first = offsets(one.param)[0] if local.ndim else 0
            own = drops[first : first + rows_of(local)]
            local.masked_fill_(own.view(-1, *[1] * (local.ndim - 1)) if local.ndim else own[0], 0.0)


def rows_of(param: Tensor) -> int:
    """How many rows a parameter has; without dimensions it is one."""
    return param.shape[0] if param.ndim else 1


def _row_scores(one: Scored) -> Tensor:
    """The score of each row, over all shards; float64, on the parameter's device."""
    local = local_part(one.param)
    width = local.numel() // max(rows_of(local), 1)
    return _over_shards(one, row_squares(one, width)).sqrt_()


def _over_shards(one: Scored, squares: Tensor) -> Tensor:
    """Add up what shards have of each row, and join the rows; a collective."""
    if one.sharding is None:
        return squares
    from torch.distributed.tensor import DTensor, Partial

    mesh, placements = one.sharding

    def placed(own: Any) -> Any:
        return own if own.is_replicate() or own.dim == 0 else Partial("sum")

    shape = torch.Size([rows_of(one.param)])
    spread = DTensor.from_local(
        squares, mesh, [*map(placed, placements)], run_check=False, shape=shape, stride=(1,)
    )
    whole: Tensor = spread.full_tensor()
    return whole
