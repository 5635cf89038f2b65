"""Reach a wanted sparsity in eight ways, on real data.

Dense AdamW; gradual magnitude pruning; torchao's PAT, where torchao is installed; L1 in the loss,
then a cut; and ProxAdamW with L1, with L1 debiased, with L1 with a knee, and with the ramp. All
start from the same weights and see the same batches, learning rates and weight decay. Each has
knobs of its own. They are chosen on a validation part of the data, with seeds of their own and as
many trials for one arm as for another. The test is looked at once, for what was chosen.

    python bench/train.py                                    # scikit-learn's digits, two minutes
    python bench/train.py --data fashion-mnist DIR           # Fashion-MNIST: its four IDX files
    python bench/train.py --task text                        # the source of Python's library

Debian has Fashion-MNIST in dataset-fashion-mnist, with DIR /usr/share/datasets/fashion-mnist.
``--full`` takes the grids and seeds of the published results: minutes for digits, an hour for the
others. What has been trained is kept in the file that ``--json`` names. Called again with it, the
script goes on where it was stopped.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from tqdm import tqdm

from training import figure, plan, report
from training.arms import ARMS, missing
from training.opening import opened, redrawn
from training.options import add_shared, parsed
from training.pool import results
from training.recipes import DENSE, FORMS, RAMP, Recipe
from training.runs import Job, time_arms
from training.store import Store
from training.tasks import Task


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--full", action="store_true", help="the grids and seeds of the results")
    form.add_argument("--quick", action="store_true", help="seconds: that everything runs")
    names = list(ARMS)
    parser.add_argument("--arms", nargs="+", choices=names, default=names, help="some of the ways")
    add_shared(parser, Path(__file__).parent / "out" / "train.png")
    return parsed(parser)


def run_all(jobs: list[Job], label: str, store: Store, task: Task, how: dict[str, Any]) -> None:
    """Train what the store does not have yet."""
    todo = store.missing(jobs)
    done = len(jobs) - len(todo)
    with tqdm(total=len(jobs), initial=done, desc=label, unit="run", disable=None) as bar:
        for job, run in results(todo, task, **how):
            store.add(job, run)
            bar.update()


def compare(task: Task, recipe: Recipe, arms: list[str], store: Store, how: dict[str, Any]) -> None:
    """Choose a point for each arm and sparsity, train the chosen, and look at the test."""
    run_all(plan.selection_jobs(recipe, arms), "choosing", store, task, how)
    chosen = {
        (arm, sparsity): plan.choose(recipe, arm, sparsity, store.runs, task.sign)
        for sparsity in recipe.sparsities
        for arm in arms
        if arm != DENSE
    }
    jobs = plan.report_jobs(recipe, chosen)
    run_all(jobs, "training", store, task, how)
    found = report.cells(store.runs[job.key()] for job in jobs)
    rows = report.advantages(found, task.sign)
    store.tail = {
        "summary": report.summary(found),
        "advantages_of_the_ramp": rows,
        "goals": report.goals(how["name"], rows),
        "times": time_arms(plan.timed_jobs(chosen), task, recipe),
    }
    store.write()


def say(document: dict[str, Any]) -> None:
    """Print what came out."""
    sign = document["sign"]
    print(f"Test {document['unit']}, mean ± standard deviation over the seeds;", end=" ")
    print("in brackets the zeros in % where they are not what was wanted.\n")
    print(report.aligned(report.score_table(document["summary"], document["times"], sign)))
    if rows := document["advantages_of_the_ramp"]:
        print(f"\nBy how much {RAMP} is better, paired over the seeds, ± standard error:\n")
        print(report.aligned(report.advantage_table(rows, sign)))
    for arm, reason in document["skipped"].items():
        print(f"\nLeft out: {arm}. {reason}")


def main() -> None:
    """Run the comparison."""
    arguments = parse_arguments()
    if redrawn(arguments, figure.draw):
        return
    form = "full" if arguments.full else "quick" if arguments.quick else "short"
    recipe = FORMS[form](arguments.task)
    recipe = recipe.with_seeds(arguments.seeds) if arguments.seeds else recipe
    skipped = {arm: why for arm, why in missing().items() if arm in arguments.arms}
    arms = plan.arms_of({DENSE, *arguments.arms} - skipped.keys())
    task, store, how = opened("train.py", arguments, recipe, form, skipped)
    compare(task, recipe, arms, store, how)
    document = store.head | store.tail
    say(document)
    figure.draw([document], arguments.plot)


if __name__ == "__main__":
    main()
