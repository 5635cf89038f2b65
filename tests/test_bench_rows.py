"""The comparison of bench/rows.py: the same start, exact shares of rows, networks that are cut."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

BENCH = Path(__file__).resolve().parents[1] / "bench"
pytest.importorskip("sklearn")
pytest.importorskip("tqdm")
pytest.importorskip("torch_pruning")


@pytest.fixture(scope="module", autouse=True)
def bench_on_the_path():
    sys.path.insert(0, str(BENCH))
    yield
    sys.path.remove(str(BENCH))


def task_of(convolutions=False, **changes):
    from training.rows.recipes import published
    from training.tasks import make_task

    recipe = replace(published("digits", convolutions), **changes)
    return make_task("digits", recipe, None), recipe


def points():
    sys.path.insert(0, str(BENCH))
    try:
        from training.rows.recipes import GRIDS
    finally:
        sys.path.remove(str(BENCH))
    return [(arm, point) for arm, grid in GRIDS.items() for point in grid]


def test_the_quick_form_runs_and_goes_on_where_it_was_stopped(tmp_path):
    pytest.importorskip("matplotlib")
    from training.recipes import DENSE
    from training.rows.recipes import PRUNING

    kept, plot = tmp_path / "rows.json", tmp_path / "rows.png"
    command = [sys.executable, BENCH / "rows.py", "--quick", "--json", kept, "--plot", plot]
    command += ["--weights", tmp_path / "weights"]
    said = subprocess.check_output(command, text=True)
    document = json.loads(kept.read_text())
    assert all(arm in said for arm in PRUNING)
    assert {row["arm"] for row in document["summary"]} == {DENSE, *PRUNING}
    assert {tuple(row["ms"]) for row in document["summary"]} == {("1", "256")}
    assert plot.stat().st_size > 10_000
    written = {file: file.stat().st_mtime_ns for file in (tmp_path / "weights").iterdir()}
    lost = sorted(written)[0]
    lost.unlink()
    subprocess.check_output(command)
    now = {file: file.stat().st_mtime_ns for file in (tmp_path / "weights").iterdir()}
    assert {file for file in now if now[file] != written[file]} == {lost}
    assert json.loads(kept.read_text())["report"] == document["report"]


@pytest.mark.parametrize(
    ("arm", "point", "convolutions"),
    [(*pair, False) for pair in points()] + [(*pair, True) for pair in points()[::4]],
    ids=str,
)
def test_an_arm_reaches_the_wanted_share_of_rows(arm, point, convolutions):
    from training.rows.dead import dead_rows
    from training.rows.runs import start
    from training.runs import SELECT, Job, steps

    task, recipe = task_of(convolutions, epochs=40)
    model, trained = start(Job(SELECT, arm, 0.5, 0, point), task, recipe)
    for _ in steps(model, trained, task, 0):
        pass
    rows = sum(map(len, trained.weights))
    dead = [int(dead_rows(weight).sum()) for weight in trained.weights]
    # l21 may kill several rows in one interval; the others count.
    assert 0 <= sum(dead) - round(0.5 * rows) <= (0.05 * rows if "growth" in point else 0)
    if point["by_layer"] and "growth" not in point:
        assert dead == [len(weight) // 2 for weight in trained.weights]
    *_, head = (module for module in model if isinstance(module, torch.nn.Linear))
    assert not dead_rows(head.weight).any()


def test_l21_is_gone_when_the_rows_are_dead():
    from training.rows.recipes import GRIDS, L21
    from training.rows.runs import start
    from training.runs import SELECT, Job, steps

    task, recipe = task_of(epochs=40)
    model, arm = start(Job(SELECT, L21, 0.5, 0, GRIDS[L21][0]), task, recipe)
    pulls = [float(arm.optimizer.param_groups[0]["l21"]) for _ in steps(model, arm, task, 0)]
    assert max(pulls) > 0
    assert not any(pulls[len(pulls) * 3 // 4 :])


def test_magnitude_pruning_takes_the_rows_of_the_smallest_norms():
    from training.rows.recipes import MAGNITUDE
    from training.rows.runs import start
    from training.runs import SELECT, Job

    task, recipe = task_of()
    at_once = {"by_layer": 0, "gradual": 0, "end": 0.3}
    _, arm = start(Job(SELECT, MAGNITUDE, 0.25, 0, at_once), task, recipe)
    norms = [weight.norm(dim=1) for weight in arm.weights]
    arm.mask(0.25)
    kept = [mask.any(1) for mask in arm.masks]
    least = min(own[row].min() for own, row in zip(norms, kept, strict=True))
    most = max(own[~row].max() for own, row in zip(norms, kept, strict=True) if not row.all())
    assert most <= least
    assert sum(int((~row).sum()) for row in kept) == round(0.25 * sum(map(len, kept)))


def test_all_arms_start_from_the_same_weights_in_the_same_groups():
    from training.recipes import DENSE
    from training.rows.recipes import GRIDS, PRUNING
    from training.rows.runs import start
    from training.runs import SELECT, Job

    task, recipe = task_of()
    dense, plain = start(Job(SELECT, DENSE, 0.0, 3), task, recipe)
    decays = [group["weight_decay"] for group in plain.optimizer.param_groups]
    assert decays == [recipe.weight_decay, recipe.weight_decay, 0.0]  # rows, head, biases
    for name in PRUNING:
        model, arm = start(Job(SELECT, name, 0.5, 3, GRIDS[name][0]), task, recipe)
        pairs = zip(dense.parameters(), model.parameters(), strict=True)
        assert all(a.equal(b) for a, b in pairs)
        assert len({group["lr"] for group in arm.optimizer.param_groups} | {recipe.lr}) == 1
        assert [group["weight_decay"] for group in arm.optimizer.param_groups] == decays


def test_of_a_transformer_the_rows_inside_the_layers_of_its_blocks_are_pruned():
    from training.models import Transformer
    from training.rows.arms import ByRows
    from training.rows.recipes import published

    model = Transformer(128, 16, 32, 4, 2)
    arm = ByRows(model, published("text", False), 10, 0.5, {})
    assert [tuple(weight.shape) for weight in arm.weights] == [(128, 32), (128, 32)]
    grouped = [param for group in arm.groups for param in group["params"]]
    assert {*map(id, grouped)} == {*map(id, model.parameters())}
    assert len(grouped) == len([*model.parameters()])


@pytest.mark.parametrize("side", [8, 28])
def test_convolutions_fit_the_image(side):
    from training.models import make_convnet

    model = make_convnet((4, 6), (side * side, 5, 10))
    assert model(torch.randn(3, side * side)).shape == (3, 10)


def test_every_arm_is_tuned_with_as_many_trials_and_no_seed_of_the_choice_is_reported():
    from training import plan
    from training.rows.recipes import FORMS, PRUNING

    for form in FORMS.values():
        for name in ("digits", "fashion-mnist", "text"):
            recipe = form(name, False)
            assert len({len(recipe.grids[arm]) for arm in PRUNING}) == 1
            seeds = {job.seed for job in plan.selection_jobs(recipe, PRUNING)}
            assert min(seeds) >= recipe.seeds


@pytest.mark.parametrize("convolutions", [False, True], ids=["perceptron", "convolutions"])
def test_a_cut_network_is_as_good_as_the_one_that_was_trained(convolutions, tmp_path):
    from training.rows.cut import cut
    from training.rows.recipes import GRIDS, RAMP
    from training.rows.runs import train
    from training.runs import REPORT, Job

    task, recipe = task_of(convolutions, epochs=20)
    job = Job(REPORT, RAMP, 0.5, 0, GRIDS[RAMP][0])
    run = train(job, task, recipe, tmp_path)
    small = cut(job, task, recipe, tmp_path)
    assert small.test == pytest.approx(run["test"], abs=0.3)  # an image of 449 is 0.22
    assert small.rows == run["left"]
    assert small.parameters == sum(param.numel() for param in small.model.parameters())
    assert sum(small.rows) == math.ceil(sum(map(len, task_rows(task))) / 2)


def task_rows(task):
    from training.rows.dead import row_weights

    return row_weights(task.make_model())


def test_times_are_those_of_the_first_network_over_ones_own():
    from training.rows.latency import time_all

    task, _ = task_of()
    wide, narrow = (torch.nn.Linear(64, outputs) for outputs in (40_000, 10))
    found = time_all({"wide": wide, "again": wide, "narrow": narrow}, task, 5)
    assert found["wide"]["times"]["256"] == 1.0
    assert found["narrow"]["times"]["256"] > 2
    assert found["narrow"]["ms"]["256"] < found["again"]["ms"]["256"]


def network(arm, share, seed, test, times):
    return {"arm": arm, "sparsity": share, "seed": seed, "point": {}, "test": test} | {
        "accuracy": test,
        "parameters": 10,
        "macs": 20,
        "rows": [1, 2],
        "ms": {"1": 1.0, "256": 1.0},
        "times": {"1": 1.0, "256": times},
    }


def test_goals_are_judged_by_paired_differences_and_by_latency():
    from training.recipes import DENSE
    from training.rows import report
    from training.rows.recipes import L21, MAGNITUDE, RAMP

    tests = {
        (DENSE, 0.0, 1.0): (90.0, 90.2),
        (MAGNITUDE, 0.5, 2.0): (89.0, 89.0),
        (L21, 0.5, 2.5): (88.0, 88.2),  # below by 0.9 ± 0.1
        (RAMP, 0.5, 1.9): (90.0, 90.0),  # not fast enough
        (MAGNITUDE, 0.9, 3.0): (89.0, 90.0),
        (L21, 0.9, 3.0): (88.0, 91.0),  # as good, more or less
        (RAMP, 0.9, 3.0): (89.5, 89.7),  # 0.1 ± 0.4 above, and 0.5 below dense
    }
    networks = [
        network(arm, share, seed, test, times)
        for (arm, share, times), both in tests.items()
        for seed, test in enumerate(both)
    ]
    found = report.tail(networks, sign=1)
    verdicts = {(v["goal"], v["arm"], v["sparsity"]): v for v in found["goals"]}
    assert verdicts["fast", L21, 0.9]["lost"] == pytest.approx(0.6)
    assert not verdicts["fast", L21, 0.9]["met"]
    assert verdicts["fast", RAMP, 0.9]["lost"] == pytest.approx(0.5)
    assert verdicts["fast", RAMP, 0.9]["met"]
    assert not verdicts["baseline", L21, 0.5]["met"]
    assert verdicts["baseline", L21, 0.9]["met"]
    assert verdicts["baseline", RAMP, 0.9]["mean"] == pytest.approx(0.1)
    assert verdicts["baseline", RAMP, 0.9]["standard_error"] == pytest.approx(0.4)
    document = found | {"sign": 1}
    lines = report.goal_table({"net": document})
    assert lines[1] == ["net", L21, "0.60 points: not met", "50 % of rows"]
    assert lines[2] == ["net", RAMP, "0.50 points: met", "no size: met"]
    head, line = report.short_table({"net": document})
    assert dict(zip(head, line, strict=True))["rows left"] == "10 %"
    assert dict(zip(head, line, strict=True))[RAMP] == "89.60 ± 0.10"


def test_where_less_is_better_a_lower_loss_is_an_advantage():
    from training.recipes import DENSE
    from training.rows import report
    from training.rows.recipes import RAMP

    networks = [network(DENSE, 0.0, 0, 2.0, 1.0), network(RAMP, 0.5, 0, 1.9, 2.0)]
    (row,) = report.tail(networks, sign=-1)["differences"]
    assert (row["over"], row["standard_error"]) == (DENSE, None)
    assert row["mean"] == pytest.approx(0.1)
