"""What runs have reached, in a JSON file that is written after each of them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from harness import machine

from .recipes import Recipe
from .runs import REPORT, SELECT, Job

PLANNED = {"grids", "seeds", "selection_seeds", "sparsities", "tuned_at"}  # a run has its own


class OtherRecipe(Exception):
    """The file holds runs of another recipe; the message is one sentence for the user."""


class Store:
    """The runs of one recipe; those that a file has already are not made again."""

    def __init__(
        self, path: Path | None, recipe: Recipe, data: dict[str, object], about: dict[str, Any]
    ) -> None:
        self.path = path
        self.head: dict[str, Any] = {
            "machine": machine(),
            "data": data,
            "recipe": asdict(recipe),
            **about,
        }
        self.head["commits"] = [self.head["machine"]["commit"]]
        self.tail: dict[str, Any] = {}
        self.runs: dict[str, dict[str, Any]] = {}
        if path and path.exists():
            self._read(json.loads(path.read_text()), path)

    def _read(self, old: dict[str, Any], path: Path) -> None:
        head = json.loads(json.dumps(self.head))  # tuples become lists
        same = old.get("data") == head["data"] and all(
            old.get("recipe", {}).get(name, value) == value  # what is new since had no say
            for name, value in head["recipe"].items()
            if name not in PLANNED
        )
        if not same:
            raise OtherRecipe(f"{path} holds results of another recipe; name another file.")
        self.head["commits"] = sorted({*old["commits"], *self.head["commits"]})
        for run in (*old[SELECT], *old[REPORT]):
            job = Job(**{name: run[name] for name in ("stage", "arm", "sparsity", "seed", "point")})
            self.runs[job.key()] = run

    def missing(self, jobs: Iterable[Job]) -> list[Job]:
        """The jobs that have no result yet."""
        return [job for job in jobs if job.key() not in self.runs]

    def add(self, job: Job, run: dict[str, Any]) -> None:
        """Keep a result."""
        self.runs[job.key()] = run
        self.write()

    def write(self) -> None:
        """Write the file; it is whole at any moment."""
        if not self.path:
            return
        runs = {stage: [r for r in self.runs.values() if r["stage"] == stage] for stage in STAGES}
        text = dumped({**self.head, **self.tail, **runs})
        part = self.path.with_suffix(".part")
        part.write_text(text)
        part.replace(self.path)


STAGES = (SELECT, REPORT)


def dumped(document: dict[str, Any]) -> str:
    """JSON with a line for each key, and for each element of a list of objects."""
    lines = []
    for key, value in document.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            text = "[\n  " + ",\n  ".join(map(json.dumps, value)) + "\n ]"
        else:
            text = json.dumps(value)
        lines.append(f" {json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(lines) + "\n}\n"
