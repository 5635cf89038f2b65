"""What comes out of the cut networks: means, standard errors, differences, and tables of them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from ..recipes import DENSE
from ..report import Cell, advantage_cell, cells, digits_after_point
from .recipes import BATCHES, MAGNITUDE, OURS, PRUNING

FASTER, POINTS = 2.0, 0.5  # what is wanted: so many times as fast, for so much accuracy
LARGEST = str(BATCHES[-1])

Row = dict[str, Any]


def tail(networks: Sequence[Row], sign: int) -> dict[str, list[Row]]:
    """All that the file of results has beside the runs."""
    found = cells(networks)
    rows = [summary(found, *cell, sign) for cell in found]
    return {"networks": list(networks), "summary": rows, "goals": goals(rows)}


def summary(found: Cell, arm: str, share: float, sign: int) -> Row:
    """Means of a cell over the seeds, and differences that are paired over them.

    ``over_dense`` and ``over_magnitude`` are how much better it is, with standard errors; the
    latter is at its own multiply-adds, see :func:`at_macs`.
    """
    own = list(found[arm, share].values())
    row: Row = {"arm": arm, "sparsity": share, "point": own[0]["point"], "seeds": len(own)}
    row |= _mean("test", [one["test"] for one in own])
    for name in ("accuracy", "parameters", "macs"):
        row[name] = statistics.fmean(one[name] for one in own)
    layers = zip(*(one["rows"] for one in own), strict=True)
    row["rows"] = [statistics.fmean(layer) for layer in layers]
    for name in ("ms", "times"):
        row[name] = {
            str(batch): statistics.fmean(one[name][str(batch)] for one in own) for batch in BATCHES
        }
    dense, pruned = [], []
    for one in own if arm != DENSE else ():
        dense.append(sign * (one["test"] - found[DENSE, 0.0][one["seed"]]["test"]))
        base = at_macs(found, one["seed"], one["macs"]) if arm in OURS else None
        if base is not None:
            pruned.append(sign * (one["test"] - base))
    row |= _mean("over_dense", dense) if dense else {}
    row |= _mean("over_magnitude", pruned) if len(pruned) == len(own) else {}
    return row


def at_macs(found: Cell, seed: int, macs: float) -> float | None:
    """What magnitude pruning reaches with so many multiply-adds; None where it has not been.

    Between its own sizes, the dense network among them, it is linear in the logarithm.
    """
    sizes = {
        by_seed[seed]["macs"]: by_seed[seed]["test"]
        for (arm, _), by_seed in found.items()
        if arm in (DENSE, MAGNITUDE) and seed in by_seed
    }
    if macs in sizes:
        return sizes[macs]
    for few, many in pairwise(sorted(sizes)):
        if few < macs < many:
            part = math.log(macs / few) / math.log(many / few)
            return sizes[few] + part * (sizes[many] - sizes[few])
    return None


def _mean(name: str, values: Sequence[float]) -> Row:
    """The mean and its standard error; of one value there is none."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return {name: statistics.fmean(values), f"{name}_error": error}


def fastest(rows: Sequence[Row], arm: str) -> Row | None:
    """The most accurate network of an arm that is as fast as is wanted, at the largest batch."""
    fast = [row for row in rows if row["arm"] == arm and row["times"][LARGEST] >= FASTER]
    return max(fast, key=lambda row: row["accuracy"], default=None)


def goals(rows: Sequence[Row]) -> list[Row]:
    """What the project wanted of each of our arms, and whether it is so.

    ``fast``: a network that is as fast as is wanted and loses no more accuracy than is allowed.
    ``baseline``: at no size below magnitude pruning by more than two standard errors.
    """
    (dense,) = (row for row in rows if row["arm"] == DENSE)
    verdicts = []
    for arm in OURS:
        best = fastest(rows, arm)
        lost = dense["accuracy"] - best["accuracy"] if best else None
        met = lost is not None and lost <= POINTS
        verdicts.append({"goal": "fast", "arm": arm, "lost": lost, "met": met})
        judged = [row for row in rows if row["arm"] == arm and "over_magnitude" in row]
        below = [
            row["rows"]
            for row in judged
            if row["over_magnitude"] < -2 * (row["over_magnitude_error"] or 0.0)
        ]
        verdict = {"goal": "baseline", "arm": arm, "sizes": len(judged), "below": below}
        verdicts.append(verdict | {"met": not below})
    return verdicts


def table(document: Row) -> list[list[str]]:
    """One line for each arm and size: what is left, and what it is worth."""
    told = document["sign"] < 0  # a loss says nothing of the accuracy
    head = ["arm", "rows left", "test", *["accuracy"] * told, "over dense", "over magnitude"]
    head += ["parameters", "multiply-adds", *(f"batch {batch}" for batch in BATCHES)]
    places = digits_after_point(document["sign"])
    lines = [head]
    for row in document["summary"]:
        lines.append([row["arm"], _left(row["rows"]), _test(row, places)])
        lines[-1] += [f"{row['accuracy']:.2f}"] * told
        lines[-1] += [_difference(row, name, places) for name in ("over_dense", "over_magnitude")]
        lines[-1] += [f"{row['parameters'] / 1e3:.1f} k", f"{row['macs'] / 1e3:.0f} k"]
        lines[-1] += [
            f"{row['ms'][str(batch)]:.3g} ms ({row['times'][str(batch)]:.2f} ×)"
            for batch in BATCHES
        ]
    return lines


def goal_table(documents: dict[str, Row]) -> list[list[str]]:
    """What became of the goals, one line for each task and each of our arms."""
    head = ["network", "arm", f"accuracy lost where {FASTER:g} times as fast"]
    lines = [[*head, "below magnitude pruning at"]]
    for title, document in documents.items():
        for arm in OURS:
            fast, baseline = (verdict for verdict in document["goals"] if verdict["arm"] == arm)
            lost = "it never is" if fast["lost"] is None else f"{fast['lost']:.2f} points"
            sizes = ", ".join(map(_left, baseline["below"])) or "no size"
            line = [title, arm]
            for text, verdict in ((lost, fast), (f"{sizes} of {baseline['sizes']}", baseline)):
                line.append(f"{text}: {'met' if verdict['met'] else 'not met'}".replace("-", "−"))
            lines.append(line)
    return lines


def short_table(documents: dict[str, Row]) -> list[list[str]]:
    """One line a task: of each arm the most accurate network that is as fast as is wanted."""
    lines = [["network", DENSE, *PRUNING]]
    for title, document in documents.items():
        rows, places = document["summary"], digits_after_point(document["sign"])
        (dense,) = (row for row in rows if row["arm"] == DENSE)
        lines.append([title, _test(dense, places)])
        for arm in PRUNING:
            best = fastest(rows, arm)
            fast = f"{_test(best, places)} ({best['times'][LARGEST]:.1f} ×)" if best else "–"
            lines[-1].append(fast)
    return lines


def _left(rows: Sequence[float]) -> str:
    return " + ".join(f"{left:.0f}" for left in rows)


def _test(row: Row, places: int) -> str:
    error = row["test_error"]
    return f"{row['test']:.{places}f}" + (f" ± {error:.{places}f}" if error is not None else "")


def _difference(row: Row, name: str, places: int) -> str:
    if name not in row:
        return "–"
    told = {"mean": row[name], "standard_error": row[f"{name}_error"]}
    return advantage_cell(told, places)
