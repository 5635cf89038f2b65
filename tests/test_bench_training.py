"""The comparison of bench/train.py: the same start for all, exact shares, a fair choice."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[1] / "bench"
pytest.importorskip("sklearn")
pytest.importorskip("tqdm")


@pytest.fixture(scope="module", autouse=True)
def bench_on_the_path():
    sys.path.insert(0, str(BENCH))
    yield
    sys.path.remove(str(BENCH))


@pytest.fixture(scope="module")
def digits():
    from training.recipes import FULL
    from training.tasks import make_task

    recipe = replace(FULL["digits"], epochs=24, tuned_at=(0.9,), sparsities=(0.9,))
    return make_task("digits", recipe, None), recipe


def all_arms():
    sys.path.insert(0, str(BENCH))
    try:
        from training.recipes import PRUNING
    finally:
        sys.path.remove(str(BENCH))
    return PRUNING


@pytest.mark.parametrize("name", all_arms())
def test_an_arm_reaches_the_wanted_share(name, digits):
    from training.arms import missing
    from training.recipes import L1
    from training.runs import SELECT, Job, train

    if name in missing():
        pytest.skip(missing()[name])
    task, recipe = digits
    run = train(Job(SELECT, name, 0.9, 0, recipe.grids[name][0]), task, recipe)
    near = 10.0 if name == L1 else 1.0  # steered to the end, it may miss in 216 steps
    assert run["zeros"] == pytest.approx(90, abs=near)
    assert run["test"] is None, "the test was looked at while choosing"


def test_all_arms_start_from_the_same_weights(digits):
    from training.recipes import DENSE, MAGNITUDE
    from training.runs import SELECT, Job, start

    task, recipe = digits
    point = recipe.grids[MAGNITUDE][0]
    dense, _ = start(Job(SELECT, DENSE, 0.0, 3), task, recipe)
    pruned, _ = start(Job(SELECT, MAGNITUDE, 0.9, 3, point), task, recipe)
    pairs = zip(dense.parameters(), pruned.parameters(), strict=True)
    assert all(a.equal(b) for a, b in pairs)


def test_every_arm_is_tuned_with_as_many_trials_in_every_form():
    from training.recipes import FORMS, FULL

    for form in FORMS.values():
        for task in FULL:
            assert len({len(points) for points in form(task).grids.values()}) == 1


def test_no_seed_of_the_choice_is_reported():
    from training import plan
    from training.recipes import FULL, PRUNING

    for recipe in FULL.values():
        seeds = {job.seed for job in plan.selection_jobs(recipe, PRUNING)}
        assert min(seeds) >= recipe.seeds


def test_the_choice_leaves_out_points_that_miss_the_sparsity():
    from training import plan
    from training.recipes import FULL, L1

    points = [{"gain": 1.0}, {"gain": 2.0}, {"gain": 3.0}]
    recipe = replace(
        FULL["digits"], grids={L1: points}, selection_seeds=1, sparsities=(0.9,), tuned_at=(0.9,)
    )
    reached = [(80.0, 99.0), (90.2, 95.0), (90.0, 96.0)]  # zeros, and accuracy on validation
    jobs = plan.selection_jobs(recipe, [L1])
    found = {
        job.key(): {"zeros": zeros, "validation": accuracy}
        for job, (zeros, accuracy) in zip(jobs, reached, strict=True)
    }
    assert plan.choose(recipe, L1, 0.9, found, sign=1) == {"gain": 3.0}
    assert plan.choose(recipe, L1, 0.9, found, sign=-1) == {"gain": 2.0}


def test_advantages_are_paired_over_the_seeds():
    from training import report
    from training.recipes import DENSE, RAMP

    def run(arm, sparsity, seed, test):
        return {"arm": arm, "sparsity": sparsity, "seed": seed, "test": test}

    runs = [run(DENSE, 0.0, seed, test) for seed, test in enumerate((90, 80, 70))]
    runs += [run(RAMP, 0.9, seed, test) for seed, test in enumerate((91, 82, 73))]
    (row,) = report.advantages(report.cells(runs), sign=1)
    assert (row["over"], row["sparsity"], row["mean"]) == (DENSE, 0.9, 2)
    assert row["standard_error"] == pytest.approx(1 / math.sqrt(3))
    (row,) = report.advantages(report.cells(runs), sign=-1)
    assert row["mean"] == -2


def test_a_stopped_comparison_goes_on_and_another_recipe_does_not(tmp_path, digits):
    from training.recipes import DENSE
    from training.runs import REPORT, Job, train
    from training.store import OtherRecipe, Store

    task, recipe = digits
    recipe = replace(recipe, epochs=1)
    job = Job(REPORT, DENSE, 0.0, 0)
    path = tmp_path / "results.json"
    Store(path, recipe, task.about(), {}).add(job, train(job, task, recipe))
    more_seeds = replace(recipe, seeds=99)
    assert not Store(path, more_seeds, task.about(), {}).missing([job])
    with pytest.raises(OtherRecipe):
        Store(path, replace(recipe, lr=1.0), task.about(), {})
