"""Set exactly so many weights to zero: those with the lowest scores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..reading import (
    local_part,
    pieces_at,
    reduce_each,
    sample,
    shard_index,
)
from .score_pass import ScorePass
from .scores import Scored, scores
from .selection import kth_smallest, lowest
from .shards import global_positions

# Up to so many weights are all compared. Of more, about as many tell where the border is, and one
# in eight at most.
_SAMPLE = 1 << 17
_STRIDE = 8
_SPREAD = 3.0  # how far from there the border of all of them may be, in standard errors
_FEW = 0.03  # of the weights: so many new zeros are compared one by one


class WeightPruner:
    """The weights of some parameters, of which a share is to be zero.

    A sample says between which two scores the border lies. All weights are then counted below,
    between and above (:meth:`look`), and when the host has read the counts (:meth:`settle`), those
    below are zeroed and those between are compared bit by bit (:meth:`zero`). So the weights are
    read twice, whatever their number, and nothing of their size is kept. Ties go by position.

    Args:
        ones: the parameters, on any devices, whole or in shards.
        share: of all their weights, from 0 to 1.
        before: about the share of zeros that there are.
    """

    def __init__(self, ones: Sequence[Scored], share: float, before: float) -> None:
        self._ones = ones
        self.count = sum(one.param.numel() for one in ones)
        self.wanted = round(share * self.count)
        self.zeros = self.then = 0  # before and behind the update; settle() knows
        self._shardings = [one.sharding for one in ones]
        self._home = ones[0].param.device
        dtypes = {torch.promote_types(one.param.dtype, torch.float32) for one in ones}
        self._dtype = torch.float64 if torch.float64 in dtypes else torch.float32
        self._smallest = torch.finfo(self._dtype).tiny * torch.finfo(self._dtype).eps
        self._everything = tuple(
            torch.tensor(bound, dtype=self._dtype, device=self._home)
            for bound in (self._smallest, math.inf)
        )
        self._low, self._high = self._everything
        if self.count > _SAMPLE:
            low, self._high = self._sampled(self.wanted / self.count)
            # Few are compared one by one rather than that all are looked at once more.
            self._low = low if share - before > _FEW else self._low

    def look(self) -> list[Tensor]:
        """Count the weights of each chunk: below, up to the upper bound, and not zero.

        Returns:
            Counts of the local chunks, and for each parameter those of all shards; on devices.
        """
        self._passes = [ScorePass(one, self._low, self._high) for one in self._ones]
        local = [one.counts for one in self._passes]
        places = reduce_each([one.param for one in self._ones], [rows.sum(0) for rows in local])
        return [*local, *(whole[i] for whole, i in places)]

    def settle(self, counts: list[list[float]]) -> bool:
        """Take the numbers that :meth:`look` has counted; whether the border is between the bounds.

        If it is not, as happens once in some hundred times, the bounds have moved: look again.
        """
        parameters = len(self._ones)
        self._chunks = [
            [[*map(int, row)] for row in zip(*[iter(flat)] * 3, strict=True)]
            for flat in counts[:parameters]
        ]
        columns = zip(*counts[parameters:], strict=True)
        below, until, nonzeros = (int(sum(column)) for column in columns)
        self.zeros = self.count - nonzeros
        self.then = max(self.zeros, min(self.wanted, until))
        self._left = min(self.wanted, until) - below
        if self.wanted <= self.zeros:
            return True
        if self.wanted < below:
            self._low, self._high = self._everything[0], self._low
            return False
        if self.wanted > until and self._high is not self._everything[1]:
            self._low, self._high = self._high, self._everything[1]
            return False
        return True

    def zero(self) -> None:
        """Zero what is below, and of what is between as many as are left to be zeroed."""
        if self.wanted <= self.zeros:
            return
        found = [
            one.zero_below(counts) for one, counts in zip(self._passes, self._chunks, strict=True)
        ]
        if self._left > 0:
            for one, (positions, _), drops in zip(
                self._ones, found, self._lowest(found), strict=True
            ):
                _zero_at(local_part(one.param), positions, drops)

    def _sampled(self, share: float) -> tuple[Tensor, Tensor]:
        """Two scores between which the border is, almost surely."""
        stride = max(math.ceil(self.count / _SAMPLE), _STRIDE)
        sampled = []
        for i, one in enumerate(self._ones):
            seed = shard_index(one.sharding) << 20 | i
            positions = sample(local_part(one.param).numel(), stride, seed)
            ((_, s),) = scores(one, pieces_at(positions), dtype=self._dtype)
            sampled.append(s)
        size: Any = sum(map(len, sampled))
        if any(sharding is not None for sharding in self._shardings):
            sizes = [torch.tensor(len(s), device=s.device) for s in sampled]
            places = reduce_each([one.param for one in self._ones], sizes)
            size = torch.stack([whole[i].to(self._home) for whole, i in places]).sum()
        spread = _SPREAD * (size * share * (1 - share)) ** 0.5 + 1
        bounds = []
        for rank in (size * share - spread, size * share + spread):
            inside = (
                rank.clamp(1, size).long()
                if isinstance(rank, Tensor)
                else int(min(max(rank, 1), size))
            )
            bounds.append(kth_smallest(sampled, self._shardings, inside)[0])
        low, high = (torch.maximum(bound, self._everything[0]) for bound in bounds)
        # A NaN in the sample says that the border may be anywhere.
        return low.nan_to_num(self._smallest), high.nan_to_num(math.inf, math.inf)

    def _lowest(self, found: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
        """Which of the weights between the bounds are to be zeroed, by parameter."""

        def numbers() -> list[Tensor]:
            return [
                one.first + global_positions(one.param, positions)
                for one, (positions, _) in zip(self._ones, found, strict=True)
            ]

        return lowest([s for _, s in found], self._shardings, numbers, self._left)


def _zero_at(local: Tensor, positions: Tensor, drops: Tensor) -> None:
    """Zero those of the flat positions that are to be dropped; no device is asked which."""
    flat = local.reshape(-1)
    if flat.is_cpu:
        flat.index_fill_(0, positions[drops], 0.0)
    else:
        flat.index_copy_(0, positions, flat[positions].masked_fill_(drops, 0.0))
    if flat.data_ptr() != local.data_ptr():
        local.copy_(flat.view_as(local))
