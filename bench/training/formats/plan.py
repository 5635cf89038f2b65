"""Which runs there are: those that choose l1, and those that are reported."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..plan import FIRST_SELECTION_SEED
from ..recipes import Recipe
from ..runs import REPORT, SELECT, Job
from .recipes import WANTED_ZEROS
from .ways import FP32, WITH_L1, WITHOUT_L1


def selection_jobs(recipe: Recipe) -> list[Job]:
    """Float32 with every l1, where there is more than one; the seed is none of the report's."""
    points = recipe.grids[FP32]
    return [Job(SELECT, FP32, 0.0, FIRST_SELECTION_SEED, p) for p in points if len(points) > 1]


def choose(recipe: Recipe, found: dict[str, dict[str, Any]]) -> float:
    """The l1 whose zeros come closest to what is wanted."""
    jobs = selection_jobs(recipe)
    if not jobs:
        return recipe.grids[FP32][0]["l1"]
    return min(jobs, key=lambda job: abs(found[job.key()]["zeros"] - WANTED_ZEROS)).point["l1"]


def report_jobs(recipe: Recipe, l1: float, ways: Sequence[str]) -> list[Job]:
    """Every way with every seed: with l1 where it can, and the others without."""
    return [
        Job(REPORT, way, 0.0, seed, {"l1": weight})
        for seed in range(recipe.seeds)
        for weight, some in ((l1, WITH_L1), (0.0, WITHOUT_L1))
        for way in some
        if way in ways
    ]
