"""Train networks to a share of dead rows, cut these out, and time what is left.

Four ways to train: dense AdamW; magnitude pruning of rows, as it is usual, and fine-tuning; and
ProxAdamW with l21, and with the ramp by rows. All have the same epochs, start from the same weights
and see the same batches, learning rates and weight decay. What is tuned is chosen on a validation
part of the data, with seeds of their own and as many trials for one arm as for another. Then
``compact`` cuts the dead rows out of what was trained, which leaves outputs as they were, and the
small networks take turns with the dense one.

    python bench/rows.py                                     # scikit-learn's digits
    python bench/rows.py --data fashion-mnist DIR            # Fashion-MNIST: its four IDX files
    python bench/rows.py --data fashion-mnist DIR --convolutions
    python bench/rows.py --task text                         # a transformer's feed-forward layers

Needs ``proxadam[compact]``. What has been trained is kept in the file that ``--json`` names, and
its weights in ``--weights``. Called again with both, the script goes on where it was stopped, but
cuts and times anew.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tqdm import tqdm

from training import plan
from training.opening import opened, redrawn
from training.options import add_shared, parsed
from training.pool import results
from training.recipes import Recipe
from training.report import aligned
from training.rows import figure, report
from training.rows.cut import cut
from training.rows.latency import time_all
from training.rows.recipes import FORMS, PRUNING, TUNED
from training.rows.runs import train, weights_of
from training.runs import REPORT, Job
from training.store import Store
from training.tasks import Task

HERE = Path(__file__).parent


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="seconds: that everything runs")
    add("--convolutions", action="store_true", help="a small convolutional network for the images")
    add(
        "--weights",
        type=Path,
        default=HERE / "out" / "rows",
        metavar="DIR",
        help="where trained networks are kept, and found again (default: %(default)s)",
    )
    add_shared(parser, HERE / "out" / "rows.png")
    arguments = parsed(parser)
    if arguments.convolutions and arguments.task == "text":
        parser.error("--convolutions is for images")
    return arguments


def train_all(
    jobs: list[Job],
    label: str,
    store: Store,
    task: Task,
    how: dict[str, Any],
    folder: Path,
) -> None:
    """Train what the store does not have yet, or what has no weights."""
    todo = [
        job
        for job in jobs
        if job.key() not in store.runs
        or (job.stage == REPORT and not weights_of(job, task, how["recipe"], folder).exists())
    ]
    done = len(jobs) - len(todo)
    trainer = partial(train, folder=folder)
    with tqdm(total=len(jobs), initial=done, desc=label, unit="run", disable=None) as bar:
        for job, run in results(todo, task, trainer=trainer, **how):
            store.add(job, run)
            bar.update()


def compare(
    task: Task, recipe: Recipe, store: Store, how: dict[str, Any], folder: Path, rounds: int
) -> None:
    """Choose a point for each arm, train the chosen, cut the dead rows out, and time the rest."""
    train_all(plan.selection_jobs(recipe, [*TUNED]), "choosing", store, task, how, folder)
    chosen = {
        (arm, share): plan.choose(recipe, arm, share, store.runs, task.sign)
        if arm in TUNED
        else recipe.grids[arm][i]
        for i, share in enumerate(recipe.sparsities)
        for arm in PRUNING
    }
    jobs = plan.report_jobs(recipe, chosen)
    train_all(jobs, "training", store, task, how, folder)
    bar = tqdm(jobs, desc="cutting", unit="network", disable=None)
    cuts = {job.key(): cut(job, task, recipe, folder) for job in bar}
    times = time_all({key: one.model for key, one in cuts.items()}, task, rounds)
    networks = [asdict(job) | cuts[job.key()].numbers() | times[job.key()] for job in jobs]
    store.tail = report.tail(networks, task.sign)
    store.write()


def say(document: dict[str, Any]) -> None:
    """Print what came out."""
    print(f"Test {document['unit']}, mean ± standard error. By how much it is better than dense,")
    print("and than magnitude pruning at its multiply-adds, paired over the seeds. Latency of a")
    print("batch, and in brackets how many times as fast as the dense network.\n")
    print(aligned(report.table(document)))
    print("\n" + aligned(report.goal_table({document["data"]["name"]: document})))


def main() -> None:
    """Run the comparison."""
    arguments = parse_arguments()
    if redrawn(arguments, figure.draw):
        return
    if not find_spec("torch_pruning"):
        sys.exit("rows.py: torch-pruning is not installed; run pip install 'proxadam[compact]'.")
    form = "quick" if arguments.quick else "published"
    recipe = FORMS[form](arguments.task, arguments.convolutions)
    recipe = recipe.with_seeds(arguments.seeds) if arguments.seeds else recipe
    task, store, how = opened("rows.py", arguments, recipe, form, {})
    arguments.weights.mkdir(parents=True, exist_ok=True)
    compare(task, recipe, store, how, arguments.weights, 10 if arguments.quick else 200)
    document = store.head | store.tail
    say(document)
    figure.draw([document], arguments.plot)


if __name__ == "__main__":
    main()
