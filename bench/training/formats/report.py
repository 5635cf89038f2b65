"""What comes out of the reported runs: means, spreads, differences to float32, and tables."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from typing import Any

from ..report import digits_after_point
from .ways import reference

MEASURES = {"objective": "F", "test": "test", "zeros": "zeros"}

Cells = dict[tuple[str, float], dict[int, dict[str, Any]]]


def cells(runs: Iterable[dict[str, Any]]) -> Cells:
    """The reported runs by way and l1, those with l1 first, and then by seed."""
    found: Cells = {}
    for run in runs:
        found.setdefault((run["arm"], run["point"]["l1"]), {})[run["seed"]] = run
    return dict(sorted(found.items(), key=lambda item: not item[0][1]))


def summary(found: Cells) -> list[dict[str, Any]]:
    """Mean and spread of each measure over the seeds; the spread is the standard deviation."""
    rows = []
    for (way, l1), by_seed in found.items():
        row = {"arm": way, "l1": l1, "seeds": len(by_seed)}
        for measure in MEASURES:
            values = [run[measure] for run in by_seed.values()]
            row[measure] = statistics.fmean(values)
            row[f"{measure}_spread"] = statistics.stdev(values) if len(values) > 1 else 0.0
        first = next(iter(by_seed.values()))
        rows.append(row | {key: first[key] for key in ("state_bytes", "of_fp32_adam")})
    return rows


def differences(found: Cells) -> list[dict[str, Any]]:
    """Each way minus float32 with the same l1: paired over the seeds, with standard errors.

    ``outside`` names the measures whose mean difference is larger than float32's own spread.
    """
    rows = []
    for (way, l1), others in found.items():
        base = found.get((reference(l1), l1), {})
        seeds = sorted(base.keys() & others.keys())
        if way == reference(l1) or not seeds:
            continue
        row: dict[str, Any] = {"arm": way, "over": reference(l1), "l1": l1, "outside": []}
        for measure in MEASURES:
            some = [others[seed][measure] - base[seed][measure] for seed in seeds]
            error = statistics.stdev(some) / math.sqrt(len(some)) if len(some) > 1 else None
            row |= {measure: statistics.fmean(some), f"{measure}_error": error}
            spread = statistics.stdev(run[measure] for run in base.values()) if error else 0.0
            if abs(row[measure]) > spread:
                row["outside"].append(measure)
        rows.append(row)
    return rows


def _places(sign: int) -> dict[str, int]:
    return {"objective": 5, "test": digits_after_point(sign), "zeros": 1}


def _signed(number: float, places: int) -> str:
    return f"{number:+.{places}f}".replace("-", "−")


def summary_table(rows: list[dict[str, Any]], sign: int) -> list[list[str]]:
    """One line for each way with l1 and without: means ± spreads, and the bytes of state."""
    table = [["stored as", "l1", "F", "test", "zeros %", "state"]]
    for row in rows:
        line = [row["arm"], f"{row['l1']:g}"]
        for measure, places in _places(sign).items():
            text = f"{row[measure]:.{places}f}"
            if row["seeds"] > 1:
                text += f" ± {row[f'{measure}_spread']:.{places}f}"
            line.append(text if row["l1"] or measure != "zeros" else "–")
        table.append([*line, f"{row['of_fp32_adam']:.3f}"])
    return table


def difference_table(rows: list[dict[str, Any]], sign: int) -> list[list[str]]:
    """Each way minus float32: mean ± standard error, and what lies outside float32's spread."""
    table = [["minus fp32", "l1", "F", "test", "zeros", "outside fp32's spread"]]
    for row in rows:
        line = [row["arm"], f"{row['l1']:g}"]
        for measure, places in _places(sign).items():
            text = _signed(row[measure], places)
            if (error := row[f"{measure}_error"]) is not None:
                text += f" ± {error:.{places}f}"
            line.append(text if row["l1"] or measure != "zeros" else "–")
        outside = ", ".join(MEASURES[measure] for measure in row["outside"])
        table.append([*line, outside or "nothing"])
    return table


def short_table(documents: dict[str, dict[str, Any]]) -> list[list[str]]:
    """With l1: the test and the zeros of each task side by side, and the bytes of state of one."""
    head, last = ["stored as"], {}
    lines: dict[str, list[str]] = {}
    for title, document in documents.items():
        places = _places(document["sign"])
        head += [f"{title}: test", "zeros %"]
        for row in document["summary"]:
            if row["l1"]:
                own = lines.setdefault(row["arm"], [])
                own += [f"{row[measure]:.{places[measure]}f}" for measure in ("test", "zeros")]
                last[row["arm"]] = f"{row['of_fp32_adam']:.3f}"
    return [[*head, f"state ({title})"], *([way, *x, last[way]] for way, x in lines.items())]
