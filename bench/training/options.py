"""Command-line options that train.py, formats.py and rows.py have in common."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

TASKS = ("digits", "fashion-mnist", "text")


def add_shared(parser: argparse.ArgumentParser, plot: Path) -> None:
    """Add them; ``plot`` is where a figure goes by default."""
    add = parser.add_argument
    add("--task", choices=TASKS, help="what to learn (default: digits)")
    add("--data", nargs="+", metavar="DIR", help="[fashion-mnist] and the folder that it is in")
    add("--seeds", type=positive_int, help="how many seeds to report")
    add("--jobs", type=positive_int, help="trainings at a time, one thread each (default: cores)")
    add(
        "--plot", type=Path, default=plot, metavar="FILE", help="PNG to draw (default: %(default)s)"
    )
    add("--json", type=Path, metavar="FILE", help="where results are kept, and found again")
    add("--draw", type=Path, nargs="+", metavar="FILE", help="draw these results; train nothing")


def parsed(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse the command line, and see which task is meant."""
    arguments = parser.parse_args()
    *named, directory = arguments.data or [None]
    if named not in ([], ["fashion-mnist"]):
        parser.error(f"argument --data: expected [fashion-mnist] DIR, got {arguments.data}")
    arguments.data = Path(directory) if directory else None
    arguments.task = arguments.task or ("fashion-mnist" if directory else "digits")
    if (arguments.task == "fashion-mnist") != bool(directory):
        parser.error("--data DIR and the task fashion-mnist go together")
    return arguments


def positive_int(text: str) -> int:
    """Parse an integer of at least 1."""
    if (number := int(text)) < 1:
        raise ValueError
    return number


def jobs_by_default(form: str) -> int:
    """How many trainings go on at a time where nothing is said of it."""
    return 1 if form == "quick" else min(8, len(os.sched_getaffinity(0)))
