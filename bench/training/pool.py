"""Jobs side by side: a process with one thread for each, so that no result depends on how many."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from .recipes import Recipe
from .runs import Job, train
from .tasks import Task, make_task

Trainer = Callable[[Job, Task, Recipe], dict[str, Any]]

_here: tuple[Task, Recipe, Trainer] | None = None


def results(
    jobs: Sequence[Job],
    task: Task,
    name: str,
    recipe: Recipe,
    directory: Path | None,
    side: int,
    trainer: Trainer = train,
) -> Iterator[tuple[Job, dict[str, Any]]]:
    """Train all jobs, ``side`` at a time, and yield each with its result as it ends."""
    if side == 1 or len(jobs) < 2:
        yield from ((job, trainer(job, task, recipe)) for job in jobs)
        return
    arguments = (name, recipe, directory, trainer)
    with ProcessPoolExecutor(side, get_context("spawn"), _begin, arguments) as pool:
        futures = {pool.submit(_train, job): job for job in jobs}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _begin(name: str, recipe: Recipe, directory: Path | None, trainer: Trainer) -> None:
    global _here
    torch.set_num_threads(1)
    _here = make_task(name, recipe, directory), recipe, trainer


def _train(job: Job) -> dict[str, Any]:
    assert _here
    task, recipe, trainer = _here
    return trainer(job, task, recipe)
