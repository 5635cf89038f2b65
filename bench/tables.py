"""Lay the tables of README.md and bench/README.md out from the committed results.

    python bench/tables.py [--check]

Each stands between ``<!-- table: NAME -->`` and ``<!-- end -->``. NAME says from which file in
bench/results, and how; the names are those of ``TABLES``.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from step_tables import (
    STEP_ROWS,
    Rows,
    around_the_step,
    compiled,
    goals,
    goals_on_cuda,
    load,
    small_state,
    step_in_short,
    step_on_cpu,
    step_on_cuda,
    step_with_rows,
)
from training import report
from training.formats import report as formats_report
from training.rows import report as rows_report

BENCH = Path(__file__).resolve().parent
DOCUMENTS = [BENCH.parent / "README.md", BENCH / "README.md"]
MARKED = re.compile(r"(<!-- table: ([^>]*) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def ramp() -> Rows:
    """One line for each run of bench/ramp.py."""
    rows = [["weights", "unit", "a step", "an update", "200 updates, of 400 steps"]]
    for line in load("ramp-cpu")["lines"]:
        rows.append(
            [
                f"{line['weights']:.0e}".replace("e+0", "e"),
                line["unit"],
                f"{1e3 * line['step_s']:.1f} ms",
                f"{1e3 * line['update_s']:.1f} ms",
                f"{line['updates_s'] / line['steps_s']:.2f}",
            ]
        )
    return rows


TASKS = ("train-digits", "train-fashion-mnist", "train-text")


def training(name: str) -> Rows:
    """One line for each arm of bench/train.py, one column for each sparsity."""
    found = load(name)
    return report.score_table(found["summary"], found["times"], found["sign"])


def training_differences(name: str) -> Rows:
    """By how much the ramp is better than each arm."""
    found = load(name)
    return report.advantage_table(found["advantages_of_the_ramp"], found["sign"])


def training_in_short() -> Rows:
    """The means of all arms at two sparsities of each task."""
    chosen = {
        "train-digits": ("digits", (0.9, 0.98)),
        "train-fashion-mnist": ("Fashion-MNIST", (0.9, 0.98)),
        "train-text": ("text", (0.9, 0.95)),
    }
    rows: Rows = [["trained with"]]
    means: dict[str, list[str]] = {}
    for name, (title, sparsities) in chosen.items():
        found = load(name)
        places = report.digits_after_point(found["sign"])
        scores = {(line["arm"], line["sparsity"]): line["test"] for line in found["summary"]}
        for sparsity in sparsities:
            rows[0].append(f"{title}, {100 * sparsity:g} %")
            for arm in dict.fromkeys(line["arm"] for line in found["summary"]):
                score = scores.get((arm, sparsity), scores.get((arm, 0.0)))
                own = means.setdefault(arm, ["–"] * (len(rows[0]) - 2))
                own.append("–" if score is None else f"{score:.{places}f}")
    width = len(rows[0]) - 1
    return rows + [[arm, *own, *["–"] * (width - len(own))] for arm, own in means.items()]


def training_goals() -> Rows:
    """What the project wanted of the ramp, and whether it is so."""
    rows = [["task", "the ramp against", "at", "goal", "difference", "met"]]
    for name in TASKS:
        found = load(name)
        places = report.digits_after_point(found["sign"])
        for verdict in found["goals"]:
            (row,) = (
                row
                for row in found["advantages_of_the_ramp"]
                if (row["over"], row["sparsity"]) == (verdict["over"], verdict["sparsity"])
            )
            rows.append(
                [
                    found["data"]["name"],
                    verdict["over"],
                    f"{100 * verdict['sparsity']:g} %",
                    verdict["goal"],
                    report.advantage_cell(row, places),
                    "yes" if verdict["met"] else "no",
                ]
            )
    return rows


FORMATS = {
    "formats-digits": "digits",
    "formats-fashion-mnist": "Fashion-MNIST",
    "formats-text": "text",
}


def formats(name: str) -> Rows:
    """One line for each way to store weights and state, with l1 and without."""
    found = load(name)
    return formats_report.summary_table(found["summary"], found["sign"])


def formats_differences(name: str) -> Rows:
    """By how much each way differs from float32."""
    found = load(name)
    return formats_report.difference_table(found["differences"], found["sign"])


def formats_in_short() -> Rows:
    """The ways with l1, all tasks side by side."""
    return formats_report.short_table({title: load(name) for name, title in FORMATS.items()})


ROWS = {
    "rows-fashion-mnist": "perceptron, Fashion-MNIST",
    "rows-convolutions": "convolutions, Fashion-MNIST",
    "rows-text": "transformer, text",
}


def tables_of_rows() -> dict[str, Callable[[], str]]:
    """The tables of bench/rows.py: two of all its networks, and two of each."""
    together = {"short": rows_report.short_table, "goals": rows_report.goal_table}
    tables = {
        f"rows {last}": lambda table=table: markdown(table({t: load(n) for n, t in ROWS.items()}))
        for last, table in together.items()
    }
    for name in ROWS:
        tables[name] = lambda name=name: markdown(rows_report.table(load(name)))
        tables[f"{name} machine"] = lambda name=name: measured_on(name)
    return tables


def training_on_gpu() -> Rows:
    """One line for each arm of bench/train_captured.py."""
    rows = [["arm", "exact zeros %", "training loss", "held-out loss", "an iteration", "step()"]]
    for arm in load("train-captured-cuda")["arms"]:
        rows.append(
            [
                arm["arm"],
                f"{100 * arm['zeros']:.1f}",
                f"{arm['train_loss']:.3f}",
                f"{arm['validation_loss']:.3f}",
                f"{arm['iteration_ms']:.2f} ms",
                f"{arm['step_ms']:.3f} ms",
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


def measured_on(name: str) -> str:
    """The machine and the versions of a file of results, in one line."""
    about = load(name)["machine"]
    threads = f"{about['threads']} thread{'s' * (about['threads'] > 1)}"
    where = (
        f"{about['gpu']}, driver {about['driver']}"
        if "gpu" in about
        else f"{about['cpu']}, {threads} on {about['cores']} cores, "
        f"{about['proxadam_cpu_capability']}"
    )
    return (
        f"Measured on {where}; torch {about['torch']}, Python {about['python']}, "
        f"commit {about['commit']}."
    )


TABLES = {
    "step-cpu": lambda: markdown(step_on_cpu()),
    "step-cpu short": lambda: markdown(step_in_short()),
    "step-cpu goals": lambda: markdown(goals()),
    "step-cpu compiled": lambda: markdown(compiled()),
    "step-cpu around": lambda: markdown(around_the_step()),
    "step-cpu machine": lambda: measured_on("step-cpu"),
    "step-rows": lambda: markdown(step_with_rows(*STEP_ROWS)),
    "step-rows machine": lambda: measured_on("step-rows"),
    "small-state": lambda: markdown(small_state()),
    "small-state machine": lambda: measured_on("step-small-state"),
    "step-cuda": lambda: markdown(step_on_cuda()),
    "step-cuda rows": lambda: markdown(step_with_rows("step-cuda")),
    "step-cuda goals": lambda: markdown(goals_on_cuda()),
    "step-cuda machine": lambda: measured_on("step-cuda"),
    "ramp-cpu": lambda: markdown(ramp()),
    "ramp-cpu machine": lambda: measured_on("ramp-cpu"),
    "sparsity-digits": lambda: markdown(wanted_sparsity()),
    "sparsity-digits machine": lambda: measured_on("sparsity-digits"),
    "train short": lambda: markdown(training_in_short()),
    "train goals": lambda: markdown(training_goals()),
    "train-digits": lambda: markdown(training("train-digits")),
    "train-digits ramp": lambda: markdown(training_differences("train-digits")),
    "train-digits machine": lambda: measured_on("train-digits"),
    "train-fashion-mnist": lambda: markdown(training("train-fashion-mnist")),
    "train-fashion-mnist ramp": lambda: markdown(training_differences("train-fashion-mnist")),
    "train-fashion-mnist machine": lambda: measured_on("train-fashion-mnist"),
    "train-text": lambda: markdown(training("train-text")),
    "train-text ramp": lambda: markdown(training_differences("train-text")),
    "train-text machine": lambda: measured_on("train-text"),
    "formats short": lambda: markdown(formats_in_short()),
    "formats-digits": lambda: markdown(formats("formats-digits")),
    "formats-digits differences": lambda: markdown(formats_differences("formats-digits")),
    "formats-digits machine": lambda: measured_on("formats-digits"),
    "formats-fashion-mnist": lambda: markdown(formats("formats-fashion-mnist")),
    "formats-fashion-mnist differences": lambda: markdown(
        formats_differences("formats-fashion-mnist")
    ),
    "formats-fashion-mnist machine": lambda: measured_on("formats-fashion-mnist"),
    "formats-text": lambda: markdown(formats("formats-text")),
    "formats-text differences": lambda: markdown(formats_differences("formats-text")),
    "formats-text machine": lambda: measured_on("formats-text"),
    **tables_of_rows(),
    "train-captured-cuda": lambda: markdown(training_on_gpu()),
    "train-captured-cuda machine": lambda: measured_on("train-captured-cuda"),
}


def filled(text: str) -> str:
    """The text with each of its tables laid out anew.

    Raises:
        ValueError: a table that has no end, or that is not in ``TABLES``.
    """

    def fill(marked: re.Match[str]) -> str:
        begin, name, old, end = marked.groups()
        if name not in TABLES or "<!-- table:" in old:
            known = "one of " + ", ".join(map(repr, TABLES))
            raise ValueError(f"expected {known} and its end, found the table {name!r}")
        return f"{begin}{TABLES[name]()}\n{end}"

    if text.count("<!-- table:") != len(MARKED.findall(text)):
        raise ValueError("expected '<!-- end -->' behind each '<!-- table: NAME -->'")
    return MARKED.sub(fill, text)


def main() -> None:
    """Write the documents, or only look; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if one differs")
    check = parser.parse_args().check
    texts = {path: path.read_text() for path in DOCUMENTS}
    missing = set(TABLES) - {
        name for text in texts.values() for _, name, *_ in MARKED.findall(text)
    }
    if missing:
        sys.exit(f"expected each table in a document, found no {' and no '.join(sorted(missing))}")
    differing = {path: new for path, old in texts.items() if (new := filled(old)) != old}
    if check and differing:
        sys.exit(f"{', '.join(map(str, differing))}: the tables are not those of the results")
    for path, text in differing.items():
        path.write_text(text)


if __name__ == "__main__":
    main()
