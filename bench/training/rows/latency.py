"""How long the networks take for a batch, in turns."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Mapping
from functools import partial

import torch
from torch import nn

from harness import interleave

from ..tasks import Task
from .recipes import BATCHES

THREADS = 2
SECONDS = 120.0  # for each batch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
LARGEST_THRESHOLD = 32 << 20  # that glibc takes


def time_all(
    models: Mapping[str, nn.Module], task: Task, rounds: int
) -> dict[str, dict[str, dict]]:
    """Milliseconds of each network, and how many times it is as fast as the first; by batch.

    Eager mode, and medians: all networks take their turns in each round, in random order.
    """
    first = next(iter(models))
    found: dict[str, dict[str, dict]] = {name: {"ms": {}, "times": {}} for name in models}
    _keep_freed_memory()
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        for batch in BATCHES:
            inputs = task.inputs(batch)
            arms = {name: partial(_call, model, inputs) for name, model in models.items()}
            times = interleave(arms, rounds, 3, f"batch {batch}", budget=SECONDS)
            for name, own in found.items():
                own["ms"][str(batch)] = round(1e3 * times.median(name), 5)
                own["times"][str(batch)] = round(times.ratio(name, first), 3)
    finally:
        torch.set_num_threads(before)
    return found


def _keep_freed_memory() -> None:
    """Let glibc keep what is freed, as it does in most programs that have run for a while.

    Otherwise it may give a buffer of some megabytes back after each call, and the next one waits
    for its pages: a factor of two for the largest networks, and none for the small ones.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        mallopt(M_MMAP_THRESHOLD, LARGEST_THRESHOLD)
        mallopt(M_TRIM_THRESHOLD, -1)


@torch.inference_mode()
def _call(model: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    return model(inputs)
