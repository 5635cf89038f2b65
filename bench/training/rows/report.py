"""What comes out of the cut networks: means, standard errors, differences, and tables of them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from ..recipes import DENSE
from ..report import Cell, advantage_cell, cells, digits_after_point
from .latency import BATCHES
from .recipes import MAGNITUDE, OURS, PRUNING, RAMP

FASTER, POINTS = 2.0, 0.5  # what is wanted: so many times as fast, for so much accuracy

Row = dict[str, Any]


def tail(networks: Sequence[Row], sign: int) -> dict[str, list[Row]]:
    """All that the file of results has beside the runs."""
    found = cells(networks)
    rows = summary(found)
    differing = differences(found, sign)
    return {
        "networks": list(networks),
        "summary": rows,
        "differences": differing,
        "goals": goals(rows, differing),
    }


def summary(found: Cell) -> list[Row]:
    """Means of each cell over the seeds, and the standard error of the score."""
    rows = []
    for (arm, share), by_seed in found.items():
        own = list(by_seed.values())
        first: Row = {"arm": arm, "sparsity": share, "point": own[0]["point"], "seeds": len(own)}
        test, error = _mean([one["test"] for one in own])
        first |= {"test": test, "standard_error": error}
        for name in ("accuracy", "parameters", "macs"):
            first[name] = statistics.fmean(one[name] for one in own)
        layers = zip(*(one["rows"] for one in own), strict=True)
        first["rows"] = [statistics.fmean(layer) for layer in layers]
        for name in ("ms", "times"):
            first[name] = {
                str(batch): statistics.fmean(one[name][str(batch)] for one in own)
                for batch in BATCHES
            }
        rows.append(first)
    return rows


def differences(found: Cell, sign: int) -> list[Row]:
    """By how much ours is better than dense and than magnitude pruning, paired over the seeds."""
    rows = []
    for (arm, share), own in found.items():
        for over, others in (
            (DENSE, found[DENSE, 0.0]),
            (MAGNITUDE, found.get((MAGNITUDE, share))),
        ):
            if arm in (DENSE, over) or (over == MAGNITUDE and arm not in OURS) or not others:
                continue
            seeds = sorted(own.keys() & others.keys())
            gains = [sign * (own[seed]["test"] - others[seed]["test"]) for seed in seeds]
            mean, error = _mean(gains)
            rows.append(
                {"arm": arm, "over": over, "sparsity": share, "mean": mean, "standard_error": error}
            )
    return rows


def _mean(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean and its standard error; of one value there is none."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return statistics.fmean(values), error


def goals(rows: Sequence[Row], differing: Iterable[Row]) -> list[Row]:
    """What the project wanted of each of our arms, and whether it is so.

    ``fast``: a network that is so many times as fast as the dense one at the largest batch, for so
    much accuracy; the one that is named is the most accurate of those that are as fast.
    ``baseline``: not below magnitude pruning by more than two standard errors, at each share.
    """
    differing = list(differing)
    dense = next(row for row in rows if row["arm"] == DENSE)
    verdicts = []
    for arm in OURS:
        fast = [r for r in rows if r["arm"] == arm and r["times"][str(BATCHES[-1])] >= FASTER]
        best = max(fast, key=lambda row: row["accuracy"], default=None)
        lost = dense["accuracy"] - best["accuracy"] if best else None
        verdicts.append(
            {
                "goal": "fast",
                "arm": arm,
                "sparsity": best["sparsity"] if best else None,
                "lost": lost,
                "met": lost is not None and lost <= POINTS,
            }
        )
        for row in differing:
            if (row["arm"], row["over"]) == (arm, MAGNITUDE):
                room = 2 * (row["standard_error"] or 0.0)
                told = {name: row[name] for name in ("sparsity", "mean", "standard_error")}
                met = row["mean"] >= -room
                verdicts.append({"goal": "baseline", "arm": arm, **told, "met": met})
    return verdicts


def table(document: Row) -> list[list[str]]:
    """One line for each arm and share: what is left, and what it is worth."""
    told = document["sign"] < 0  # a loss says nothing of the accuracy
    head = ["arm", "rows left", "test", *["accuracy"] * told, "parameters", "multiply-adds"]
    lines = [[*head, *(f"batch {batch}" for batch in BATCHES)]]
    for row in document["summary"]:
        lines.append(
            [
                row["arm"],
                " + ".join(f"{left:.0f}" for left in row["rows"]),
                _test(row, document["sign"]),
                *[f"{row['accuracy']:.2f}"] * told,
                f"{row['parameters'] / 1e3:.1f} k",
                f"{row['macs'] / 1e3:.0f} k",
                *(_latency(row, str(batch)) for batch in BATCHES),
            ]
        )
    return lines


def _latency(row: Row, batch: str) -> str:
    return f"{row['ms'][batch]:.3g} ms ({row['times'][batch]:.2f} ×)"


def difference_table(document: Row) -> list[list[str]]:
    """By how much each arm is better than another, one line a pair of arms."""
    rows = document["differences"]
    levels = sorted({row["sparsity"] for row in rows})
    by = {(row["arm"], row["over"], row["sparsity"]): row for row in rows}
    places = digits_after_point(document["sign"])
    lines = [["minus", "of", *(f"{_left(level)} of rows" for level in levels)]]
    for arm, over in dict.fromkeys((row["arm"], row["over"]) for row in rows):
        own = [by.get((arm, over, level)) for level in levels]
        lines.append([over, arm, *(advantage_cell(row, places) if row else "–" for row in own)])
    return lines


def goal_table(documents: dict[str, Row]) -> list[list[str]]:
    """What became of the goals, one line for each task and each of our arms."""
    lines = [["network", "arm", f"{FASTER:g} times as fast, for", "below magnitude pruning at"]]
    for title, document in documents.items():
        for arm in OURS:
            own = [verdict for verdict in document["goals"] if verdict["arm"] == arm]
            (fast,) = (verdict for verdict in own if verdict["goal"] == "fast")
            below = [v for v in own if v["goal"] == "baseline" and not v["met"]]
            reached = "never"
            if fast["lost"] is not None:
                reached = f"{fast['lost']:.2f} points".replace("-", "−")
            verdict = "met" if fast["met"] else "not met"
            shares = ", ".join(f"{_left(row['sparsity'])} of rows" for row in below)
            lines.append([title, arm, f"{reached}: {verdict}", shares or "no size: met"])
    return lines


def short_table(documents: dict[str, Row]) -> list[list[str]]:
    """One line a task: at the size at which the ramp is as fast as is wanted, all arms."""
    head = ["network", "rows left", "dense", *PRUNING, "parameters"]
    lines = [[*head, *(f"speed, batch {batch}" for batch in BATCHES)]]
    for title, document in documents.items():
        by = {(row["arm"], row["sparsity"]): row for row in document["summary"]}
        (fast,) = (v for v in document["goals"] if (v["goal"], v["arm"]) == ("fast", RAMP))
        share = fast["sparsity"] or max(share for _, share in by)
        dense, ours = by[DENSE, 0.0], by[RAMP, share]
        tests = [_test(by[arm, share], document["sign"]) for arm in PRUNING]
        parameters = f"{100 * ours['parameters'] / dense['parameters']:.0f} %"
        speeds = [f"{ours['times'][str(batch)]:.2f} ×" for batch in BATCHES]
        scores = [_test(dense, document["sign"]), *tests]
        lines.append([title, _left(share), *scores, parameters, *speeds])
    return lines


def _left(share: float) -> str:
    return f"{100 * (1 - share):.0f} %"


def _test(row: Row, sign: int) -> str:
    text = f"{row['test']:.{digits_after_point(sign)}f}"
    if row["standard_error"] is not None:
        text += f" ± {row['standard_error']:.{digits_after_point(sign)}f}"
    return text
