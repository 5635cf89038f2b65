"""How train.py, formats.py and rows.py begin: the task, and the file of earlier trainings."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from proxadam import available_backends

from .data import DataError
from .options import jobs_by_default
from .recipes import Recipe
from .store import OtherRecipe, Store
from .tasks import Task, make_task


def redrawn(
    arguments: argparse.Namespace, draw: Callable[[Sequence[dict[str, Any]], Path], None]
) -> bool:
    """Whether only a figure of earlier results was asked for, which then is drawn."""
    if arguments.draw:
        draw([json.loads(path.read_text()) for path in arguments.draw], arguments.plot)
    return bool(arguments.draw)


def opened(
    program: str, arguments: argparse.Namespace, recipe: Recipe, form: str, skipped: dict[str, str]
) -> tuple[Task, Store, dict[str, Any]]:
    """The task, what has been trained on it, and how the pool is to train; says what it is.

    Raises:
        SystemExit: with status 2, where data or file are not what they should be; one sentence.
    """
    torch.set_num_threads(1)  # in every process, so that no result depends on how many there are
    try:
        task = make_task(arguments.task, recipe, arguments.data)
        for path in filter(None, (arguments.plot, arguments.json)):
            path.parent.mkdir(parents=True, exist_ok=True)
        about = {"task": arguments.task, "form": form, "sign": task.sign, "unit": task.unit}
        store = Store(arguments.json, recipe, task.about(), about | {"skipped": skipped})
    except (DataError, OtherRecipe, OSError) as error:
        print(f"{program}: {error}", file=sys.stderr)
        sys.exit(2)
    print(
        f"{task.about()['name']}, {form} form: {task.steps} steps of batch {recipe.batch},", end=" "
    )
    print(f"seeds {recipe.seeds}, proxadam's backends {available_backends()}\n")
    side = arguments.jobs or jobs_by_default(form)
    how = {"name": arguments.task, "recipe": recipe, "directory": arguments.data, "side": side}
    return task, store, how
