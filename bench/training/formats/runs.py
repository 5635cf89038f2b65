"""One run: a way to store weights and state, trained with one seed, and what it reached."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from ..arms import Arm
from ..models import zero_share
from ..recipes import Recipe
from ..runs import REPORT, Job, steps
from ..tasks import Task
from .ways import WAYS, bytes_of_state

OTHER_BATCHES = 10_000  # added to the seed of the batches


class Cast(nn.Module):
    """A network in its weights' dtype; what goes in is cast to it, and what comes out to float32.

    So the loss is taken in float32, as is usual where a network is in bfloat16.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        dtype = next(self.network.parameters()).dtype
        return self.network(x.to(dtype) if x.is_floating_point() else x).float()


class Stored(Arm):
    """An optimizer that stores its state in its own way."""

    def prepare(self) -> None:  # noqa: D102
        if l1 := self.point["l1"]:
            self.groups[0]["l1"] = l1


def start(job: Job, task: Task, recipe: Recipe) -> tuple[nn.Module, Arm]:
    """Build the network and the arm; the same network for every way, but for what it is cast to."""
    torch.manual_seed(job.seed)
    way = WAYS[job.arm]
    model = Cast(task.make_model().to(way.weights))
    arm = Stored(model, recipe, task.steps, job.sparsity, job.point)
    arm.optimizer = way.make(arm.groups, recipe.lr)
    return model, arm


def train(job: Job, task: Task, recipe: Recipe) -> dict[str, Any]:
    """Train a job to its end; the test is looked at in the report alone.

    What has been reached is judged in float32, the weights as they are.
    """
    model, arm = start(job, task, recipe)
    for _ in steps(model, arm, task, job.seed + OTHER_BATCHES * WAYS[job.arm].reshuffled):
        pass
    stored, ratio = bytes_of_state(arm.optimizer)
    model.float()
    loss = task.mean_loss(model, "train")
    size = sum(w.abs().sum(dtype=torch.float64).item() for w in arm.weights)
    return asdict(job) | {
        "objective": round(loss + job.point["l1"] * size, 6),
        "train_loss": round(loss, 6),
        "zeros": round(zero_share(arm.weights), 4),
        "validation": round(task.score(model, "validation"), 5),
        "test": round(task.score(model, "test"), 5) if job.stage == REPORT else None,
        "state_bytes": stored,
        "of_fp32_adam": round(ratio, 5),
    }
