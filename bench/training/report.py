"""What comes out of the reported runs: means, spreads, differences, and tables of them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from typing import Any

from .recipes import DENSE, MAGNITUDE, RAMP

Cell = dict[tuple[str, float], dict[int, dict[str, Any]]]


def cells(runs: Iterable[dict[str, Any]]) -> Cell:
    """The reported runs by arm and sparsity, and then by seed."""
    found: Cell = {}
    for run in runs:
        found.setdefault((run["arm"], run["sparsity"]), {})[run["seed"]] = run
    return found


def summary(found: Cell) -> list[dict[str, Any]]:
    """Mean and spread of each cell over the seeds; the spread is the standard deviation."""
    rows = []
    for (arm, sparsity), by_seed in found.items():
        scores = [run["test"] for run in by_seed.values()]
        rows.append(
            {
                "arm": arm,
                "sparsity": sparsity,
                "point": next(iter(by_seed.values()))["point"],
                "test": statistics.fmean(scores),
                "spread": statistics.stdev(scores) if len(scores) > 1 else 0.0,
                "zeros": statistics.fmean(run["zeros"] for run in by_seed.values()),
                "seeds": len(scores),
            }
        )
    return rows


def advantages(found: Cell, sign: int) -> list[dict[str, Any]]:
    """By how much the ramp is better than each arm: paired over the seeds, with standard errors."""
    rows = []
    for (arm, sparsity), others in found.items():
        for level in [sparsity] if sparsity else sorted({s for _, s in found} - {0.0}):
            ramp = found.get((RAMP, level), {})
            seeds = sorted(ramp.keys() & others.keys())
            if arm == RAMP or not seeds:
                continue
            gains = [sign * (ramp[seed]["test"] - others[seed]["test"]) for seed in seeds]
            error = statistics.stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else None
            mean = statistics.fmean(gains)
            rows.append({"over": arm, "sparsity": level, "mean": mean, "standard_error": error})
    return rows


def goals(task: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the project wanted of the ramp, and whether it is so."""
    by = {(row["over"], row["sparsity"]): row for row in rows}
    wanted: list[tuple[str, float, str]] = [
        (MAGNITUDE, sparsity, "no worse by more than 2 standard errors")
        for over, sparsity in by
        if over == MAGNITUDE
    ]
    wanted.append((MAGNITUDE, 0.95 if task == "text" else 0.98, "better"))
    within = {"digits": 0.6, "fashion-mnist": 0.3}
    if task in within:
        wanted.append((DENSE, 0.9, f"within {within[task]} points"))
    verdicts = []
    for over, sparsity, goal in wanted:
        if (over, sparsity) not in by:
            continue
        row = by[over, sparsity]
        least = {"better": 0.0}.get(goal, -2 * (row["standard_error"] or 0.0))
        if over == DENSE:
            least = -within[task]
        met = row["mean"] > least if goal == "better" else row["mean"] >= least
        verdicts.append({"over": over, "sparsity": sparsity, "goal": goal, "met": met})
    return verdicts


def digits_after_point(sign: int) -> int:
    """Accuracies have two, losses three."""
    return 2 if sign > 0 else 3


def score_cell(row: dict[str, Any], places: int) -> str:
    """Mean ± spread, and in brackets the zeros where they are not what is wanted."""
    text = f"{row['test']:.{places}f}"
    if row["seeds"] > 1:
        text += f" ± {row['spread']:.{places}f}"
    if row["sparsity"] and abs(row["zeros"] - 100 * row["sparsity"]) >= 0.15:
        text += f" ({row['zeros']:.1f})"
    return text


def score_table(rows: list[dict[str, Any]], times: dict[str, Any], sign: int) -> list[list[str]]:
    """One line an arm, one column a sparsity, and the milliseconds of a step."""
    levels = sorted({row["sparsity"] for row in rows} - {0.0})
    by = {(row["arm"], row["sparsity"]): row for row in rows}
    table = [["arm", *(f"{100 * level:g} %" for level in levels), "step", "iteration"]]
    for arm in dict.fromkeys(row["arm"] for row in rows):
        line = [arm]
        for level in levels:
            row = by.get((arm, 0.0 if arm == DENSE else level))
            line.append(score_cell(row, digits_after_point(sign)) if row else "–")
        clocked = times.get(arm, {})
        line += [f"{clocked[c]:.3g} ms" if clocked else "–" for c in ("step_ms", "iteration_ms")]
        table.append(line)
    return table


def advantage_cell(row: dict[str, Any], places: int) -> str:
    """A mean difference ± its standard error."""
    text = f"{row['mean']:+.{places}f}".replace("-", "−")
    if row["standard_error"] is not None:
        text += f" ± {row['standard_error']:.{places}f}"
    return text


def advantage_table(rows: list[dict[str, Any]], sign: int) -> list[list[str]]:
    """By how much the ramp is better, one line an arm."""
    levels = sorted({row["sparsity"] for row in rows})
    by = {(row["over"], row["sparsity"]): row for row in rows}
    table = [["ramp over", *(f"{100 * level:g} %" for level in levels)]]
    places = digits_after_point(sign)
    for arm in dict.fromkeys(row["over"] for row in rows):
        line = [arm]
        for level in levels:
            row = by.get((arm, level))
            line.append(advantage_cell(row, places) if row else "–")
        table.append(line)
    return table


def aligned(rows: list[list[str]]) -> str:
    """Lay a table out in aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in rows)
    return "\n".join(map("  ".join, lines))
