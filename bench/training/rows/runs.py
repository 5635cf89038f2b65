"""One run: an arm that is trained with one seed, what it reached, and the weights it left."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..recipes import Recipe
from ..runs import REPORT, Job, steps
from ..store import PLANNED
from ..tasks import Task
from .arms import ARMS, ByRows
from .dead import dead_rows


def start(job: Job, task: Task, recipe: Recipe) -> tuple[nn.Module, ByRows]:
    """Build the network and the arm; the same network for every arm of a seed."""
    torch.manual_seed(job.seed)
    model = task.make_model()
    return model, ARMS[job.arm](model, recipe, task.steps, job.sparsity, job.point)


def weights_of(job: Job, task: Task, recipe: Recipe, folder: Path) -> Path:
    """The file that has the weights of a reported run."""
    same = {name: value for name, value in asdict(recipe).items() if name not in PLANNED}
    told = repr((task.about(), same, job.key()))
    return folder / f"{hashlib.sha256(told.encode()).hexdigest()[:24]}.pt"


def train(job: Job, task: Task, recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Train a job to its end; the test is looked at in the report alone."""
    model, arm = start(job, task, recipe)
    for _ in steps(model, arm, task, job.seed):
        pass
    if reported := job.stage == REPORT:
        torch.save(model.state_dict(), weights_of(job, task, recipe, folder))
    return asdict(job) | {
        "zeros": round(100.0 * arm.dead_share(), 4),
        "left": [int((~dead_rows(weight)).sum()) for weight in arm.weights],
        "validation": round(task.score(model, "validation"), 5),
        "test": round(task.score(model, "test"), 5) if reported else None,
    }
