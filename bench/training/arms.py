"""The ways to reach a sparsity: who sets which weights to zero, and when.

An arm has an optimizer. Its ``penalty`` joins the loss, and its ``step`` is all that follows the
backward pass. Moments are counted in steps of the training.
"""

from __future__ import annotations

import logging
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from proxadam import ProxAdamW, SparsityRamp, TargetSparsityL1, suggest_l1

from .models import param_groups
from .recipes import (
    DEBIASED,
    DENSE,
    KNEE,
    L1,
    L1_IN_LOSS,
    MAGNITUDE,
    PAT,
    RAMP,
    Point,
    Recipe,
)

UPDATES = 200  # of a ramp between its two ends, and of l1 while it is steered


class Arm:
    """Dense AdamW, and what all arms have in common.

    Attributes:
        optimizer: what the step calls.
        scheduled: the optimizer whose lr follows the cosine.
    """

    optimizer: Optimizer

    def __init__(
        self, model: nn.Module, recipe: Recipe, steps: int, sparsity: float, point: Point
    ) -> None:
        self.groups = self.grouped(model, recipe.weight_decay)
        self.weights: list[nn.Parameter] = list(self.groups[0]["params"])
        self.recipe, self.steps, self.sparsity, self.point = recipe, steps, sparsity, point
        self.done = 0
        self.prepare()

    @property
    def scheduled(self) -> Optimizer:  # noqa: D102
        return self.optimizer

    def grouped(self, model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
        """The groups of parameters; the first one has the weights that the arm sets to zero."""
        return param_groups(model, weight_decay)

    def moment(self, knob: str) -> int:
        """The step at which a knob says that something happens."""
        return max(1, round(self.point[knob] * self.steps))

    def prepare(self) -> None:
        """Build the optimizer, and what goes with it."""
        self.optimizer = self.adamw()

    def adamw(self) -> AdamW:
        """Torch's fastest on the CPU."""
        return AdamW(self.groups, self.recipe.lr, fused=True)

    def penalty(self) -> Tensor | float:
        """What is added to the loss."""
        return 0.0

    def step(self) -> None:
        """All that follows the backward pass."""
        self.optimizer.step()
        self.done += 1


class Masked(Arm):
    """Weights that are masked behind each step of AdamW; what is masked never comes back."""

    def prepare(self) -> None:  # noqa: D102
        super().prepare()
        self.masks: list[Tensor] = []

    @torch.no_grad()
    def mask(self, share: float) -> None:
        """Mask the share of the weights that is smallest, over all layers."""
        sizes = torch.cat([w.abs().flatten() for w in self.weights])
        kept = len(sizes) - round(share * len(sizes))
        flat = torch.zeros_like(sizes)
        flat[torch.topk(sizes, kept, sorted=False).indices] = 1.0
        parts = flat.split([w.numel() for w in self.weights])
        self.masks = [part.view_as(w) for part, w in zip(parts, self.weights, strict=True)]

    @torch.no_grad()
    def apply_masks(self) -> None:
        """Set what is masked to zero."""
        if self.masks:
            torch._foreach_mul_(self.weights, self.masks)


class MagnitudeRamp(Masked):
    """Gradual magnitude pruning: the share of masks grows as 1 − (1 − x)³ (Zhu and Gupta 2017)."""

    def prepare(self) -> None:  # noqa: D102
        super().prepare()
        self.begin, self.end = self.moment("begin"), self.moment("end")
        self.every = max(1, (self.end - self.begin) // UPDATES)

    def step(self) -> None:  # noqa: D102
        super().step()
        if self.begin <= self.done <= self.end:
            if (self.done - self.begin) % self.every == 0 or self.done == self.end:
                x = (self.done - self.begin) / (self.end - self.begin)
                self.mask(self.sparsity * (1 - (1 - x) ** 3))
        self.apply_masks()


class L1InLoss(Masked):
    """L1 in the loss, until the smallest weights are cut; the others learn on without L1."""

    def prepare(self) -> None:  # noqa: D102
        super().prepare()
        self.until = self.moment("until")

    def penalty(self) -> Tensor | float:  # noqa: D102
        if self.masks:
            return 0.0
        return self.point["l1"] * sum(w.abs().sum() for w in self.weights)

    def step(self) -> None:  # noqa: D102
        super().step()
        if self.done == self.until:
            self.mask(self.sparsity)
        self.apply_masks()


class Pat(Arm):
    """PAT of torchao: the smallest latent weights are zero until the mask is frozen and heals."""

    def prepare(self) -> None:  # noqa: D102
        logging.disable(logging.WARNING)  # torchao tells of binaries that it does not find
        try:
            from torchao.prototype.pat.optim import PruneOptimizer
        finally:
            logging.disable(logging.NOTSET)
        self.groups[0] |= {
            "prox_type": "GlobalMinSparsityConstraint",
            "group_type": "ElemGrouper",
            "min_sparsity": self.sparsity,
            "min_sparsity_schedule": bool(self.point["cubic"]),
        }
        warmup = max(1, round(0.05 * self.steps))
        self.base = self.adamw()
        self.optimizer = PruneOptimizer(self.base, warmup, self.moment("end"))

    @property
    def scheduled(self) -> Optimizer:  # noqa: D102
        return self.base


class Steered(Arm):
    """ProxAdamW with an l1 that is steered to the wanted share of zeros, to the very end."""

    def prepare(self) -> None:  # noqa: D102
        self.optimizer = ProxAdamW(self.groups, self.recipe.lr)
        self.begin = max(1, round(self.point.get("begin", 0.05) * self.steps))
        self.steering: TargetSparsityL1 | None = None

    def steer(self) -> TargetSparsityL1:
        """Steer from here on."""
        every = max(1, (self.steps - self.begin) // UPDATES)
        return TargetSparsityL1(self.optimizer, self.sparsity, every, gain=self.point["gain"])

    def step(self) -> None:  # noqa: D102
        super().step()
        if self.steering:
            self.steering.step()
        elif self.done == self.begin:
            guess = suggest_l1(self.optimizer, self.sparsity, groups=[0])
            self.optimizer.param_groups[0]["l1"] = guess
            self.steering = self.steer()


class Debiased(Steered):
    """The same until a moment; then zeros are kept, and l1 goes when there are enough of them."""

    def steer(self) -> TargetSparsityL1:  # noqa: D102
        until = self.moment("until") - self.begin
        gain = self.point.get("gain", 0.05)
        every = max(1, until // UPDATES)
        return TargetSparsityL1(self.optimizer, self.sparsity, every, gain=gain, until=until)


class Knee(Debiased):
    """The same with a pull that lets go of large weights."""

    def prepare(self) -> None:  # noqa: D102
        self.groups[0]["l1_knee"] = self.point["knee"]
        super().prepare()


class Ramp(Arm):
    """ProxAdamW without l1: a ramp sets to zero what costs least in the metric of the step."""

    def prepare(self) -> None:  # noqa: D102
        self.optimizer = ProxAdamW(self.groups, self.recipe.lr)
        begin, end = self.moment("begin"), self.moment("end")
        every = max(1, (end - begin) // UPDATES)
        self.ramp = SparsityRamp(
            self.optimizer, self.sparsity, begin=begin, end=end, every=every, groups=[0]
        )

    def step(self) -> None:  # noqa: D102
        super().step()
        self.ramp.step()


ARMS: dict[str, type[Arm]] = {
    DENSE: Arm,
    MAGNITUDE: MagnitudeRamp,
    PAT: Pat,
    L1_IN_LOSS: L1InLoss,
    L1: Steered,
    DEBIASED: Debiased,
    KNEE: Knee,
    RAMP: Ramp,
}


def missing() -> dict[str, str]:
    """The arms that cannot run here, each with the reason in a sentence."""
    torchao = find_spec("torchao")  # looked at, not imported: that takes seconds
    optim = Path(torchao.origin).parent / "prototype/pat/optim" if torchao else Path()
    found = (optim / "min_sparsity.py").exists()
    return {} if found else {PAT: "torchao, from 0.18 on, is not installed."}
