"""The ways to dead rows: who sets which rows to zero, and when."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from proxadam import ProxAdamW, SparsityRamp

from ..arms import UPDATES, Arm, Masked
from ..models import param_groups
from ..recipes import DENSE
from .dead import dead_rows, row_weights
from .recipes import L21, MAGNITUDE, RAMP

BEGIN = 0.1  # of the training: where gradual pruning and the ramp begin


class ByRows(Arm):
    """Dense AdamW, with the rows in a group of their own; what all arms have in common."""

    def grouped(self, model: nn.Module, weight_decay: float) -> list[dict[str, object]]:  # noqa: D102
        rows = row_weights(model)
        known = {id(weight) for weight in rows}
        decayed, others = param_groups(model, weight_decay)
        rest = [weight for weight in decayed["params"] if id(weight) not in known]
        return [decayed | {"params": rows}, decayed | {"params": rest}, others]

    def dead_share(self) -> float:
        """The share of rows that are zero throughout."""
        dead = [dead_rows(weight) for weight in self.weights]
        return torch.cat(dead).float().mean().item()


class MagnitudeOfRows(ByRows, Masked):
    """The rows of the smallest norms are masked, at once or gradually; the others learn on."""

    def prepare(self) -> None:  # noqa: D102
        super().prepare()
        self.end = self.moment("end")
        self.begin = max(1, round(BEGIN * self.steps)) if self.point["gradual"] else self.end - 1
        self.every = max(1, (self.end - self.begin) // UPDATES)

    @torch.no_grad()
    def mask(self, share: float) -> None:
        """Mask the share of the rows whose norms are the smallest."""
        norms = [weight.flatten(1).norm(dim=1) for weight in self.weights]
        if self.point["by_layer"]:
            kept = [_largest(some, share) for some in norms]
        else:
            sizes = [len(some) for some in norms]
            kept = list(_largest(torch.cat(norms), share).split(sizes))
        self.masks = [
            row.view(-1, *[1] * (weight.ndim - 1)).expand_as(weight)
            for row, weight in zip(kept, self.weights, strict=True)
        ]

    def step(self) -> None:  # noqa: D102
        super().step()
        if self.begin < self.done <= self.end:
            if (self.done - self.begin) % self.every == 0 or self.done == self.end:
                x = (self.done - self.begin) / (self.end - self.begin)
                self.mask(self.sparsity * (1 - (1 - x) ** 3))
        self.apply_masks()


def _largest(sizes: Tensor, share: float) -> Tensor:
    """1 for all but this share, which is the smallest, and 0 for that."""
    kept = torch.zeros_like(sizes)
    kept[torch.topk(sizes, len(sizes) - round(share * len(sizes))).indices] = 1.0
    return kept


class GroupPenalty(ByRows):
    """ProxAdamW with l21 from the first step on; at a moment it goes, and dead rows are kept."""

    def prepare(self) -> None:  # noqa: D102
        self.groups[0]["l21"] = self.point["l21"]
        self.optimizer = ProxAdamW(self.groups, self.recipe.lr)
        self.until = self.moment("until")

    def step(self) -> None:  # noqa: D102
        super().step()
        if self.done == self.until:
            self.optimizer.param_groups[0].update(l21=0.0, keep_zeros=True)


class RampByRows(ByRows):
    """ProxAdamW without a penalty: a ramp zeroes the rows that cost least, or are smallest."""

    def prepare(self) -> None:  # noqa: D102
        self.optimizer = ProxAdamW(self.groups, self.recipe.lr)
        begin, end = max(1, round(BEGIN * self.steps)), self.moment("end")
        self.ramp = SparsityRamp(
            self.optimizer,
            self.sparsity,
            begin=begin,
            end=end,
            every=max(1, (end - begin) // UPDATES),
            groups=[0],
            score="metric" if self.point.get("metric", 1) else "magnitude",
            scope="tensor" if self.point["by_layer"] else "global",
            unit="row",
        )

    def step(self) -> None:  # noqa: D102
        super().step()
        self.ramp.step()


ARMS: dict[str, type[ByRows]] = {
    DENSE: ByRows,
    MAGNITUDE: MagnitudeOfRows,
    L21: GroupPenalty,
    RAMP: RampByRows,
}
