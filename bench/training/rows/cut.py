"""What is left of a trained network once its dead rows are cut out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from proxadam import compact, compact_report

from ..recipes import Recipe
from ..runs import Job
from ..tasks import Task
from .dead import row_weights
from .runs import weights_of


@dataclass(frozen=True)
class Cut:
    """A network without dead rows.

    Attributes:
        model: in eval mode.
        parameters: how many it has.
        macs: multiply-adds for one image, or one window of text.
        rows: of the weights whose rows are pruned.
        test: its score.
        accuracy: on the test, in percent.
    """

    model: nn.Module
    parameters: int
    macs: int
    rows: list[int]
    test: float
    accuracy: float

    def numbers(self) -> dict[str, Any]:
        """All but the network."""
        return {name: value for name, value in vars(self).items() if name != "model"}


def cut(job: Job, task: Task, recipe: Recipe, folder: Path) -> Cut:
    """Load what a job has trained, and cut it; that outputs are equal, ``compact`` sees to."""
    model = task.make_model()
    model.load_state_dict(torch.load(weights_of(job, task, recipe, folder)))
    example = task.inputs(1)
    report = compact_report(model, example)
    small = compact(model, example)
    return Cut(
        small,
        report.parameters[1],
        report.macs[1],
        [len(weight) for weight in row_weights(small)],
        task.score(small, "test"),
        task.accuracy(small, "test"),
    )
