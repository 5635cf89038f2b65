"""Lay the README's tables out from the committed results: ``python bench/tables.py [--check]``.

Each stands between ``<!-- table: NAME -->`` and ``<!-- end -->``, and NAME says from which file in
bench/results and how.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"

Rows = list[list[str]]


def load(name: str) -> Any:
    """The results in a file."""
    return json.loads((RESULTS / f"{name}.json").read_text())


def step_on_cpu() -> Rows:
    """One line for each case of bench/step.py that times a whole step."""
    head = ["weights", "ours", "GB/s (of in-place scaling)", "torch fused, no L1"]
    head += ["torch fused + softshrink", "torch default + softshrink", "ours without L1, L2"]
    bases = ["torch fused", "torch fused + softshrink", "torch default + softshrink"]
    rows = [head]
    for case in load("step-cpu")["cases"]:
        arms = case["arms"]
        if "torch fused" not in arms:
            continue
        rate = f"{arms['ours']['GB_per_s']:.0f}"
        if case["weights"] > 1e7:  # more than caches hold
            share = arms["ours"]["GB_per_s"] / arms["scale"]["GB_per_s"]
            rate += f" ({100 * share:.0f} %)"
        rows.append(
            [
                f"{case['case'].replace('x', ' × ', 1)} {case['dtype']}",
                f"{arms['ours']['median_s'] * 1e3:.2f} ms",
                rate,
                *(_times(arms, base) for base in (*bases, "ours, l1=l2=0")),
            ]
        )
    return rows


def compiled() -> Rows:
    """The steps of bench/step.py under torch.compile, beside the eager one."""
    arms = {
        "eager kernel": "ours",
        "the op, compiled": "ours, compiled",
        "torch ops, compiled": "ours on foreach, compiled",
        "torch's AdamW, compiled": "torch default, compiled",
    }
    rows = [["weights", *arms]]
    for case in load("step-cpu")["cases"]:
        if "ours, compiled" in case["arms"]:
            medians = [f"{case['arms'][arm]['median_s'] * 1e3:.3g} ms" for arm in arms.values()]
            rows.append([f"{case['case'].replace('x', ' × ', 1)} {case['dtype']}", *medians])
    return rows


def _times(arms: dict[str, Any], base: str) -> str:
    return f"{arms[base]['ours_is_times_faster']:.2f} ×" if base in arms else "–"


def training(name: str) -> Rows:
    """One line for each arm of bench/train.py: means over its seeds."""
    head = ["arm", "l1", "test accuracy %", "exact zeros %", "by layer", "step()"]
    rows = [[*head, "forward, backward and step"]]
    for arm in load(name)["arms"]:
        runs = arm["runs"]

        def mean(key: str, runs: list[dict[str, Any]] = runs) -> float:
            return statistics.fmean(run[key] for run in runs)

        layers = zip(*(run["layer_zeros"] for run in runs), strict=True)
        rows.append(
            [
                arm["name"],
                f"{arm['l1']:g}" if arm["l1"] else "–",
                f"{mean('accuracy'):.2f}",
                f"{mean('zeros'):.1f}",
                " / ".join(f"{statistics.fmean(layer):.0f}" for layer in layers),
                f"{mean('step_ms'):.3f} ms",
                f"{mean('iteration_ms'):.2f} ms",
            ]
        )
    return rows


def goals() -> Rows:
    """What became of the goals in each run of bench/step.py, those of step-cpu.json first."""
    runs = [load(name)["goals"] for name in sorted(p.stem for p in RESULTS.glob("step-cpu*.json"))]
    rows = [["goal", "at least", "reached, run by run", "met"]]
    for verdicts in zip(*runs, strict=True):
        first = verdicts[0]
        rows.append(
            [
                first["goal"].replace("'", "`"),
                f"{first['least']:.3g}",
                ", ".join(f"{verdict['got']:.3g}" for verdict in verdicts),
                f"{sum(verdict['met'] for verdict in verdicts)} of {len(runs)}",
            ]
        )
    return rows


def wanted_sparsity() -> Rows:
    """What bench/sparsity.py asked for and got: exact zeros in %, means over its seeds."""
    arms: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for run in load("sparsity-digits")["runs"]:
        arms.setdefault(tuple(run["arm"].values()), []).append(run)
    asked = sorted({epochs for _, _, epochs, _ in arms})
    (when,) = {epochs for _, _, epochs, steered in arms if steered}
    head = ["metric", "wanted", f"guess, asked after {asked[0]} epochs", *map(str, asked[1:])]
    rows = [[*head, f"steered, from the guess after {when}", "its test accuracy"]]
    for metric, target in sorted({arm[:2] for arm in arms}):
        guesses = [_ends(arms[metric, target, epochs, False]) for epochs in asked]
        steered = arms[metric, target, when, True]
        ends = _ends(steered)
        rows.append(
            [
                metric,
                f"{100 * target:g}",
                *(f"{statistics.fmean(guess):.1f}" for guess in guesses),
                f"{statistics.fmean(ends):.1f} ({min(ends):.1f}–{max(ends):.1f})",
                f"{100 * statistics.fmean(run['accuracy'] for run in steered):.2f}",
            ]
        )
    return rows


def _ends(runs: list[dict[str, Any]]) -> list[float]:
    return [100 * run["zeros"][-1] for run in runs]


def markdown(rows: Rows) -> str:
    """A table of GitHub's markdown."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines.insert(1, "|" + "---|" * len(rows[0]))
    return "\n".join(lines)


TABLES = {
    "step-cpu": lambda: markdown(step_on_cpu()),
    "step-cpu goals": lambda: markdown(goals()),
    "step-cpu compiled": lambda: markdown(compiled()),
    "sparsity-digits": lambda: markdown(wanted_sparsity()),
    "train-digits": lambda: markdown(training("train-digits")),
    "train-fashion-mnist": lambda: markdown(training("train-fashion-mnist")),
}


def filled(text: str) -> str:
    """The text with each of its tables laid out anew.

    Raises:
        ValueError: a table that is not in it, or has no end.
    """
    for name, table in TABLES.items():
        begin, end = f"<!-- table: {name} -->\n", "\n<!-- end -->"
        before, found, rest = text.partition(begin)
        _, closed, after = rest.partition(end)
        if not found or not closed:
            raise ValueError(f"expected {begin.strip()!r} and {end.strip()!r} in the text")
        text = before + begin + table() + end + after
    return text


def main() -> None:
    """Write README.md, or only look; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if it differs")
    readme = ROOT / "README.md"
    text = readme.read_text()
    if parser.parse_args().check:
        sys.exit(filled(text) != text)
    readme.write_text(filled(text))


if __name__ == "__main__":
    main()
