"""Every check runs on all ranks of one gloo process group, and the ranks meet after each.

The first failure ends their processes: what is left of a collective would mislead the checks that
follow. What they write is in FOLDER, their working directory.
"""

from __future__ import annotations

import datetime
import importlib
import json
import multiprocessing
import os
import sys
import traceback
import warnings
from pathlib import Path

import torch
import torch.distributed as dist

from . import CHECKS


def rank_of(world_size: int, rank: int, names: list[str]) -> None:
    """Run the checks; errors-RANK.json has, of each that was begun, the error or None."""
    warnings.filterwarnings("error", module="proxadam")
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{Path.cwd() / 'meeting'}",
        rank=rank,
        world_size=world_size,
        timeout=datetime.timedelta(seconds=60),
    )
    errors: dict[str, str | None] = {}

    def note(name, error):
        errors[name] = error
        Path(f"errors-{rank}.json").write_text(json.dumps(errors))

    for name in names:
        note(name, "the process died")
        try:
            CHECKS[name][0]()
            dist.barrier()
        except Exception:
            note(name, traceback.format_exc())
            sys.exit(1)
        note(name, None)
    dist.destroy_process_group()


def main(world_size: str, folder: str, *names: str) -> None:
    """Import once what is slow to import, then fork the ranks."""
    os.chdir(folder)
    for module in ("checkpoint.state_dict", "fsdp", "optim", "tensor.parallel"):
        importlib.import_module(f"torch.distributed.{module}")
    fork = multiprocessing.get_context("fork")
    ranks = [
        fork.Process(target=rank_of, args=(int(world_size), rank, list(names)), daemon=True)
        for rank in range(int(world_size))
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()


if __name__ == "__main__":
    main(*sys.argv[1:])
