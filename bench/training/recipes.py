"""How each task is trained, and what is tuned for each arm; the same effort for all arms."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from typing import TypeAlias

Point: TypeAlias = dict[str, float]  # a value for each knob of an arm

DENSE = "AdamW"
MAGNITUDE = "AdamW, magnitude ramp"
PAT = "torchao's PAT"
L1_IN_LOSS = "AdamW, L1 in the loss, cut"
L1 = "ProxAdamW, L1"
DEBIASED = "ProxAdamW, L1 debiased"
KNEE = "ProxAdamW, L1 with a knee"
RAMP = "ProxAdamW, ramp"
PRUNING = (MAGNITUDE, PAT, L1_IN_LOSS, L1, DEBIASED, KNEE, RAMP)

SPARSITIES = (0.8, 0.9, 0.95, 0.98)


@dataclass(frozen=True)
class Recipe:
    """One form of a task; the same for every arm.

    Attributes:
        selection_seeds: how many seeds a point is judged by; they are none of the report's.
        tuned_at: for each sparsity the one whose choice it takes.
        grids: the points of each arm, a sensible one first.
    """

    batch: int
    lr: float
    grids: dict[str, list[Point]]
    seeds: int
    selection_seeds: int = 1
    weight_decay: float = 1e-2
    sparsities: tuple[float, ...] = SPARSITIES
    tuned_at: tuple[float, ...] = SPARSITIES
    widths: tuple[int, ...] = ()  # of a perceptron, from the pixels to the classes
    channels: tuple[int, ...] = ()  # of convolutions before it
    epochs: int = 0
    steps: int = 0  # of a transformer; a perceptron counts epochs
    context: int = 64
    width: int = 64
    heads: int = 4
    layers: int = 2
    scored: tuple[int, int] = (4, 1)  # of the windows of validation and test, every n-th
    scored_of_train: int = 40  # the same of the train windows, where their loss is asked for

    def first_points(self, count: int) -> dict[str, list[Point]]:
        """The first points of each grid."""
        return {arm: points[:count] for arm, points in self.grids.items()}

    def with_seeds(self, seeds: int) -> Recipe:
        """The same with another number of seeds."""
        return replace(self, seeds=seeds)


def grids(ends: tuple[float, ...], untils: tuple[float, ...], l1: tuple[float, ...]) -> dict:
    """Two knobs for each arm, with as many points for one arm as for another.

    Moments are parts of the training: a ramp goes from ``begin`` to ``end``, PAT freezes its zeros
    at ``end``, l1 is steered from ``begin`` on and let go from ``until`` on, and what L1 in the
    loss has made small is cut at ``until``.
    """
    knobs: dict[str, dict[str, tuple[float, ...]]] = {
        MAGNITUDE: {"begin": (0.1, 0.02), "end": ends},
        PAT: {"cubic": (0, 1), "end": ends},
        L1_IN_LOSS: {"until": (untils[0], untils[-1]), "l1": l1},
        L1: {"begin": (0.05, 0.2), "gain": (0.05, 0.1, 0.2)[: len(ends)]},
        DEBIASED: {"gain": (0.05, 0.1), "until": untils},
        KNEE: {"knee": (0.01, 0.03), "until": untils},
        RAMP: {"begin": (0.1, 0.02), "end": ends},
    }
    return {
        arm: [dict(zip(values, point, strict=True)) for point in product(*values.values())]
        for arm, values in knobs.items()
    }


FULL = {
    "digits": Recipe(
        batch=128,
        lr=3e-3,
        grids=grids(ends=(0.5, 0.65, 0.8), untils=(0.3, 0.45, 0.6), l1=(1e-3, 3e-4, 3e-3)),
        seeds=10,
        selection_seeds=3,
        widths=(64, 128, 64, 10),
        epochs=100,
    ),
    "fashion-mnist": Recipe(
        batch=256,
        lr=2e-3,
        grids=grids(ends=(0.5, 0.75), untils=(0.3, 0.6), l1=(1e-4, 3e-5)),
        seeds=3,
        widths=(784, 300, 100, 10),
        epochs=12,
    ),
    "text": Recipe(
        batch=16,
        lr=4e-3,
        grids=grids(ends=(0.8, 0.6), untils=(0.3, 0.5), l1=(1e-5, 1e-4)),
        seeds=3,
        tuned_at=(0.9, 0.9, 0.95, 0.95),
        steps=1800,
    ),
}


def short(name: str) -> Recipe:
    """Digits in a minute, the others in some minutes; less is tuned."""
    full = FULL[name]
    if name == "digits":
        return replace(full, seeds=3, selection_seeds=1, grids=full.first_points(2))
    few = replace(full, seeds=2, grids=full.first_points(1))
    if name == "text":
        return replace(few, steps=600, sparsities=(0.9, 0.95), tuned_at=(0.9, 0.95))
    return replace(few, epochs=4)


def quick(name: str) -> Recipe:
    """Enough to see that every line runs; the numbers say nothing."""
    few = replace(
        FULL[name],
        seeds=2,
        selection_seeds=1,
        sparsities=(0.8, 0.95),
        tuned_at=(0.8, 0.8),
        grids=FULL[name].first_points(2),
    )
    return replace(few, steps=20, scored=(40, 40)) if name == "text" else replace(few, epochs=4)


FORMS = {"full": FULL.__getitem__, "short": short, "quick": quick}
