"""Store weights and Adam's state in 32, 16 and 8 bits, and see what a training makes of it.

ProxAdamW keeps its moments in float32, bfloat16 or 8 bits, and can round bfloat16 weights by
chance. Each way trains the same networks with the same batches, learning rate and l1; nothing is
tuned for any of them. Beside the sound ways stand those that round to nearest, torch's AdamW, and
without l1 the 8-bit AdamW of torchao and of bitsandbytes, where they are installed.

    python bench/formats.py                                   # scikit-learn's digits
    python bench/formats.py --data fashion-mnist DIR          # Fashion-MNIST: its four IDX files
    python bench/formats.py --task text                       # the source of Python's library

l1 is the one of three whose share of zeros comes closest to 65 % with float32; one seed that is not
reported tells. The test is looked at once. What has been trained is kept in the file that
``--json`` names. Called again with it, the script goes on where it was stopped.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from tqdm import tqdm

from training.formats import figure, plan, report
from training.formats.recipes import FORMS
from training.formats.runs import train
from training.formats.ways import FP32, TORCH_FP32, WAYS, missing
from training.opening import opened, redrawn
from training.options import add_shared, parsed
from training.pool import results
from training.recipes import Recipe
from training.report import aligned
from training.runs import Job
from training.store import Store
from training.tasks import Task


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="seconds: that everything runs")
    add("--ways", nargs="+", choices=list(WAYS), default=list(WAYS), help="some of the ways alone")
    add_shared(parser, Path(__file__).parent / "out" / "formats.png")
    return parsed(parser)


def run_all(jobs: list[Job], label: str, store: Store, task: Task, how: dict[str, Any]) -> None:
    """Train what the store does not have yet."""
    todo = store.missing(jobs)
    done = len(jobs) - len(todo)
    with tqdm(total=len(jobs), initial=done, desc=label, unit="run", disable=None) as bar:
        for job, run in results(todo, task, trainer=train, **how):
            store.add(job, run)
            bar.update()


def compare(task: Task, recipe: Recipe, ways: list[str], store: Store, how: dict[str, Any]) -> None:
    """Choose l1, train every way, and look at the test."""
    run_all(plan.selection_jobs(recipe), "choosing", store, task, how)
    l1 = plan.choose(recipe, store.runs)
    jobs = plan.report_jobs(recipe, l1, ways)
    run_all(jobs, "training", store, task, how)
    found = report.cells(store.runs[job.key()] for job in jobs)
    store.tail = {
        "l1": l1,
        "summary": report.summary(found),
        "differences": report.differences(found),
    }
    store.write()


def say(document: dict[str, Any]) -> None:
    """Print what came out."""
    sign = document["sign"]
    print(f"F = training loss + l1 Σ|w|; test {document['unit']}; state: bytes, of Adam's in fp32.")
    print("Mean ± standard deviation over the seeds.\n")
    print(aligned(report.summary_table(document["summary"], sign)))
    print("\nMinus fp32 with the same l1, paired over the seeds, ± standard error.\n")
    print(aligned(report.difference_table(document["differences"], sign)))
    for way, reason in document["skipped"].items():
        print(f"\nLeft out: {way}. {reason}")


def main() -> None:
    """Run the comparison."""
    arguments = parse_arguments()
    if redrawn(arguments, figure.draw):
        return
    form = "quick" if arguments.quick else "published"
    recipe = FORMS[form](arguments.task)
    recipe = recipe.with_seeds(arguments.seeds) if arguments.seeds else recipe
    skipped = missing(arguments.ways)
    ways = [way for way in WAYS if way in {FP32, TORCH_FP32, *arguments.ways} - skipped.keys()]
    task, store, how = opened("formats.py", arguments, recipe, form, skipped)
    compare(task, recipe, ways, store, how)
    document = store.head | store.tail
    say(document)
    figure.draw([document], arguments.plot)


if __name__ == "__main__":
    main()
