"""Which runs there are: those that choose a point for each arm, and those that are reported."""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Sequence
from typing import Any

from .recipes import DENSE, PRUNING, Point, Recipe
from .runs import REPORT, SELECT, Job

FIRST_SELECTION_SEED = 1000  # the report's seeds begin at 0
TOLERANCE = 0.5  # percentage points by which the zeros of a chosen point may miss what is wanted


def arms_of(wanted: Collection[str]) -> list[str]:
    """The arms that are wanted, in the order of the tables."""
    return [arm for arm in (DENSE, *PRUNING) if arm in wanted]


def selection_jobs(recipe: Recipe, arms: Sequence[str]) -> list[Job]:
    """Every point of every grid, where there is more than one."""
    seeds = range(FIRST_SELECTION_SEED, FIRST_SELECTION_SEED + recipe.selection_seeds)
    return [
        Job(SELECT, arm, sparsity, seed, point)
        for sparsity in sorted(set(recipe.tuned_at))
        for arm in arms
        if arm != DENSE and len(recipe.grids[arm]) > 1
        for point in recipe.grids[arm]
        for seed in seeds
    ]


def choose(
    recipe: Recipe, arm: str, sparsity: float, found: dict[str, dict[str, Any]], sign: int
) -> Point:
    """The point with the best validation score among those that reach the sparsity.

    Where none reaches it, the one that comes closest; of equal ones the first.
    """
    at = recipe.tuned_at[recipe.sparsities.index(sparsity)]
    points = recipe.grids[arm]
    if len(points) == 1:
        return points[0]
    jobs = selection_jobs(recipe, [arm])

    def rank(point: Point) -> tuple[float, float]:
        runs = [found[job.key()] for job in jobs if (job.sparsity, job.point) == (at, point)]
        miss = abs(statistics.fmean(run["zeros"] for run in runs) - 100 * at)
        score = sign * statistics.fmean(run["validation"] for run in runs)
        return -max(miss, TOLERANCE), score if math.isfinite(score) else -math.inf

    return max(points, key=rank)


def report_jobs(recipe: Recipe, chosen: dict[tuple[str, float], Point]) -> list[Job]:
    """The chosen points with every seed, the arms in turn; dense once a seed, at sparsity 0."""
    jobs = []
    for seed in range(recipe.seeds):
        jobs.append(Job(REPORT, DENSE, 0.0, seed))
        jobs += [Job(REPORT, *cell, seed, point) for cell, point in chosen.items()]
    return jobs


def timed_jobs(chosen: dict[tuple[str, float], Point]) -> list[Job]:
    """One job of each arm, at the lowest sparsity, that is at work from early on."""
    early = {"begin": 0.01, "end": 0.9, "until": 0.9}
    jobs = {DENSE: Job(SELECT, DENSE, 0.0, 0)}
    for (arm, sparsity), point in sorted(chosen.items(), key=lambda cell: cell[0][1]):
        timed = {knob: early.get(knob, value) for knob, value in point.items()}
        jobs.setdefault(arm, Job(SELECT, arm, sparsity, 0, timed))
    return list(jobs.values())
