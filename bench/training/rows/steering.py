"""l21, steered so that the share of dead rows follows a curve."""

from __future__ import annotations

import math
from typing import Any

import torch

from proxadam import ProxAdamW

from .dead import dead_rows


class Steering:
    """Steers the l21 of one group, whose parameters all have rows.

    Dead rows are kept. At each update l21 is on if fewer rows are dead than the curve of gradual
    pruning, 1 − (1 − x)³, wants, and grows by a factor; else it is 0 until the next update, and
    falls by the factor. So it goes when all are dead that are to be, at ``end`` or later.
    """

    def __init__(
        self,
        optimizer: ProxAdamW,
        group: dict[str, Any],
        share: float,
        begin: int,
        end: int,
        every: int,
        growth: float,
    ) -> None:
        self.optimizer, self.group = optimizer, group
        self.begin, self.end, self.every, self.growth = begin, end, every, growth
        self.weights: list[torch.Tensor] = group["params"]
        self.wanted = round(share * sum(map(len, self.weights)))
        self.l21 = 0.0

    def step(self, done: int) -> None:
        """To be called behind each step of the optimizer."""
        if done < self.begin or (done - self.begin) % self.every:
            return
        if done == self.begin:
            self.l21 = self.suggested(done)
            self.group["keep_zeros"] = True
        x = min(1.0, (done - self.begin) / (self.end - self.begin))
        few = self.dead() < round(self.wanted * (1 - (1 - x) ** 3))
        self.l21 *= self.growth if few else 1 / self.growth
        self.group["l21"] = self.l21 if few else 0.0

    def dead(self) -> int:
        """How many rows are zero throughout."""
        return sum(int(dead_rows(weight).sum()) for weight in self.weights)

    def suggested(self, done: int) -> float:
        """The l21 that would keep half of the rows at zero, were they there."""
        means = [self.optimizer.state[weight]["exp_avg"].flatten(1) for weight in self.weights]
        norms = torch.cat([mean.norm(dim=1) / math.sqrt(mean.shape[1]) for mean in means])
        return norms.median().item() / (1 - self.group["betas"][0] ** done)
