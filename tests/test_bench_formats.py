"""The comparison of bench/formats.py: the same training for all, and differences that are right."""

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


@pytest.fixture(scope="module", autouse=True)
def bench_on_the_path():
    sys.path.insert(0, str(BENCH))
    yield
    sys.path.remove(str(BENCH))


@pytest.fixture(scope="module")
def digits():
    from training.formats.recipes import quick
    from training.tasks import make_task

    recipe = replace(quick("digits"), epochs=2)
    return make_task("digits", recipe, None), recipe


def test_the_quick_form_runs(tmp_path):
    pytest.importorskip("matplotlib")
    from training.formats.ways import BF16_8BIT, FP32, NEAREST, TORCH_FP32

    kept, plot = tmp_path / "formats.json", tmp_path / "formats.png"
    command = [sys.executable, BENCH / "formats.py", "--quick", "--json", kept, "--plot", plot]
    said = subprocess.check_output([*command, "--ways", BF16_8BIT, NEAREST], text=True)
    assert BF16_8BIT in said
    document = json.loads(kept.read_text())
    # What the others are compared with is never left out.
    assert {run["arm"] for run in document["report"]} == {FP32, NEAREST, BF16_8BIT, TORCH_FP32}
    assert {row["over"] for row in document["differences"]} == {FP32, TORCH_FP32}
    assert plot.stat().st_size > 10_000


def test_what_is_not_installed_is_named(monkeypatch):
    from training.formats import ways

    monkeypatch.setattr(ways, "find_spec", lambda _: None)
    assert ways.missing(list(ways.WAYS)).keys() == {ways.TORCHAO, ways.BITSANDBYTES}
    monkeypatch.setattr(ways, "find_spec", lambda _: True)
    broken = replace(ways.WAYS[ways.TORCHAO], make=lambda *_: 1 / 0)
    monkeypatch.setitem(ways.WAYS, ways.TORCHAO, broken)
    assert "division by zero" in ways.missing([ways.TORCHAO])[ways.TORCHAO]


def test_all_ways_start_from_the_same_weights(digits):
    from training.formats.runs import start
    from training.formats.ways import BITSANDBYTES, TORCHAO, WAYS
    from training.runs import REPORT, Job

    task, recipe = digits
    torch.manual_seed(3)
    weights = list(task.make_model().parameters())
    for name in WAYS.keys() - {TORCHAO, BITSANDBYTES}:
        model, arm = start(Job(REPORT, name, 0.0, 3, {"l1": 0.0}), task, recipe)
        pairs = zip(weights, model.parameters(), strict=True)
        assert all(p.dtype == WAYS[name].weights and p.equal(w.to(p.dtype)) for w, p in pairs)
        assert arm.optimizer.param_groups[0]["lr"] == recipe.lr
        assert not any(group["weight_decay"] for group in arm.optimizer.param_groups)


def test_l1_is_that_of_the_weights_alone(digits):
    from training.formats.runs import start
    from training.formats.ways import BF16_8BIT
    from training.runs import REPORT, Job

    _, arm = start(Job(REPORT, BF16_8BIT, 0.0, 0, {"l1": 0.25}), *digits)
    weights, others = arm.optimizer.param_groups
    assert (weights["l1"], others["l1"]) == (0.25, 0.0)
    assert {p.ndim for p in weights["params"]} == {2}


def test_the_objective_is_that_of_the_weights_as_they_are_stored(digits, monkeypatch):
    from training.formats import runs
    from training.formats.ways import BF16_BF16
    from training.models import prunable
    from training.runs import REPORT, Job

    kept = []
    start = runs.start

    def watched(*arguments):
        kept.append(start(*arguments))
        return kept[-1]

    monkeypatch.setattr(runs, "start", watched)
    task, recipe = digits
    run = runs.train(Job(REPORT, BF16_BF16, 0.0, 0, {"l1": 1e-3}), task, recipe)
    model = kept[0][0].network
    assert all(p.equal(p.bfloat16().float()) for p in model.parameters())
    loss = torch.nn.functional.cross_entropy(model(task.data.train_x), task.data.train_y).item()
    size = sum(w.abs().sum().item() for w in prunable(model))
    assert run["objective"] == pytest.approx(loss + 1e-3 * size, abs=1e-5)
    assert run["train_loss"] == pytest.approx(loss, abs=1e-5)


def test_the_loss_of_the_train_text_is_a_mean_over_some_of_its_windows():
    from training.data import CHARACTERS, Text
    from training.formats.recipes import quick
    from training.tasks import Language

    recipe = replace(quick("text"), context=4, scored_of_train=2)
    text = torch.arange(4 * 8 + 1) % CHARACTERS
    task = Language(Text("text", text, text[:5], text[:5], {}), recipe)

    def foretells_windows_0_and_4(tokens):
        right = torch.nn.functional.one_hot(tokens + 1, CHARACTERS) * 100.0
        return right * (tokens[:, :1, None] % 16 == 0)

    # Windows 0, 2, 4 and 6 of eight count; a loss is log(128) where nothing is foretold, else 0.
    loss = task.mean_loss(foretells_windows_0_and_4, "train")
    assert loss == pytest.approx(math.log(CHARACTERS) / 2)


def test_l1_is_chosen_by_the_zeros_of_float32_with_a_seed_of_its_own():
    from training.formats import plan
    from training.formats.recipes import published
    from training.formats.ways import FP32

    recipe = published("digits")
    jobs = plan.selection_jobs(recipe)
    assert {job.arm for job in jobs} == {FP32}
    assert min(job.seed for job in jobs) >= recipe.seeds
    found = {job.key(): {"zeros": z} for job, z in zip(jobs, (40.0, 71.0, 60.5), strict=True)}
    assert plan.choose(recipe, found) == jobs[2].point["l1"]


def test_differences_are_paired_and_measured_by_the_spread_of_float32():
    from training.formats import report
    from training.formats.ways import BF16_8BIT, FP32, TORCH_FP32

    def run(arm, l1, seed, test):
        others = {"objective": 1.0, "zeros": 50.0, "state_bytes": 8, "of_fp32_adam": 1.0}
        return {"arm": arm, "point": {"l1": l1}, "seed": seed, "test": test} | others

    runs = [run(FP32, 0.1, seed, test) for seed, test in enumerate((90, 91, 92))]
    runs += [run(BF16_8BIT, 0.1, seed, test) for seed, test in enumerate((88, 90, 89))]
    runs += [run(TORCH_FP32, 0.0, 0, 80), run(FP32, 0.0, 0, 80.5)]
    with_l1, without = report.differences(report.cells(runs))
    assert (with_l1["arm"], with_l1["over"], with_l1["test"]) == (BF16_8BIT, FP32, -2)
    assert with_l1["test_error"] == pytest.approx(1 / math.sqrt(3))
    assert with_l1["outside"] == ["test"]  # the spread is 1
    assert (without["arm"], without["over"], without["test"]) == (FP32, TORCH_FP32, 0.5)
    assert without["test_error"] is None


def test_bytes_of_state():
    from training.formats.ways import bytes_of_state, ours, torchs

    param = torch.nn.Parameter(torch.ones(64, 64))
    param.grad = torch.ones_like(param)
    for make, ratio in ((torchs, 1.0), (ours(state_dtype="8bit"), 0.25)):
        optimizer = make([{"params": [param]}], 1e-3)
        optimizer.step()
        assert bytes_of_state(optimizer)[1] == pytest.approx(ratio, rel=0.01)


def test_bytes_of_torchaos_state_are_those_of_the_tensors_within():
    subclass = pytest.importorskip("torchao.optim.subclass_8bit").OptimState8bit
    from training.formats.ways import bytes_of_state

    optimizer = torch.optim.SGD([param := torch.nn.Parameter(torch.ones(64, 64))])
    moments = {"exp_avg": True, "exp_avg_sq": False}  # its own step would take a compiler seconds
    optimizer.state[param] = {
        name: subclass.zeros(param.shape, signed) for name, signed in moments.items()
    }
    total, _ = bytes_of_state(optimizer)
    assert total == 2 * 4096 + 2 * 4 * 16 + 2 * 4 * 256  # codes, scales and tables
