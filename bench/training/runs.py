"""One run: an arm that is trained with one seed, and what it reached."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from time import perf_counter
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR
from tqdm import tqdm

from .arms import ARMS, Arm
from .models import zero_share
from .recipes import Point, Recipe
from .tasks import Task

SELECT, REPORT = "selection", "report"
PIECE, PIECES, WARMUP = 50, 8, 2  # steps that are timed at a time, how often, and how often before


@dataclass(frozen=True)
class Job:
    """What is to be trained; ``stage`` says whether the test is looked at."""

    stage: str
    arm: str
    sparsity: float
    seed: int
    point: Point = field(default_factory=dict)

    def key(self) -> str:
        """What tells it from other jobs."""
        return repr(asdict(self))


def start(job: Job, task: Task, recipe: Recipe) -> tuple[nn.Module, Arm]:
    """Build the network and the arm; the same network for every arm of a seed."""
    torch.manual_seed(job.seed)
    model = task.make_model()
    return model, ARMS[job.arm](model, recipe, task.steps, job.sparsity, job.point)


def steps(model: nn.Module, arm: Arm, task: Task, seed: int) -> Iterator[tuple[float, float]]:
    """Train, and yield after each step its seconds, and those of the whole iteration."""
    cosine = CosineAnnealingLR(arm.scheduled, task.steps)
    for batch in task.batches(seed):
        begin = perf_counter()
        model.zero_grad()
        (task.loss(model, batch) + arm.penalty()).backward()
        before_step = perf_counter()
        arm.step()
        end = perf_counter()
        cosine.step()
        yield end - before_step, end - begin


def train(job: Job, task: Task, recipe: Recipe) -> dict[str, Any]:
    """Train a job to its end; the test is looked at in the report alone."""
    model, arm = start(job, task, recipe)
    for _ in steps(model, arm, task, job.seed):
        pass
    return asdict(job) | {
        "zeros": round(zero_share(arm.weights), 4),
        "layer_zeros": [round(zero_share([w]), 2) for w in arm.weights],
        "validation": round(task.score(model, "validation"), 5),
        "test": round(task.score(model, "test"), 5) if job.stage == REPORT else None,
    }


def time_arms(jobs: list[Job], task: Task, recipe: Recipe) -> dict[str, dict[str, float]]:
    """Milliseconds a step and an iteration: the jobs take turns, in this process and alone.

    A piece has all that its steps did, updates of ramps too; the result is the median over pieces.
    """
    running = [steps(*start(job, task, recipe), task, job.seed) for job in jobs]
    means: list[list[tuple[float, float]]] = [[] for _ in jobs]
    pieces = min(WARMUP + PIECES, task.steps // PIECE) or 1
    length = min(PIECE, task.steps)
    for _ in tqdm(range(pieces), desc="timing", unit="piece", disable=None, leave=False):
        for run, found in zip(running, means, strict=True):
            seconds = [next(run) for _ in range(length)]
            found.append(tuple(math.fsum(column) / length for column in zip(*seconds, strict=True)))
    return {
        job.arm: {
            name: round(1e3 * statistics.median(column), 4)
            for name, column in zip(
                ("step_ms", "iteration_ms"),
                zip(*found[WARMUP if pieces > WARMUP else 0 :], strict=True),
                strict=True,
            )
        }
        for job, found in zip(jobs, means, strict=True)
    }
