"""Saving and loading: what was learned comes back to the bit; how to step stays one's own."""

from __future__ import annotations

import copy
import signal
import subprocess
import sys

import pytest
import torch

from checkpoints import assert_refused_whole, fresh, lacking, of_shape, train, with_value
from formats import FP32, SMALL, each_format
from proxadam import ProxAdam, ProxAdamW
from tools import (
    BUSY,
    TWINS,
    assert_same_bits,
    each_twin,
    error_of,
    params_of,
    saved_and_loaded,
    snapshot,
    weights,
)

PROX = {"l1": 0.01, "l2": 0.02, "metric": "euclidean", "max_shrink": 3.0}
PATHS = {
    "loop": {"foreach": False, "fused": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
    "capturable": {"fused": True, "capturable": True},
    "default": {},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("state_dtype", [None, torch.float32], ids=["own", "wide"])
def test_a_resumed_run_is_the_uninterrupted_one(any_backend, dtype, state_dtype):
    options = {**BUSY, **any_backend.options, "state_dtype": state_dtype}
    whole = ProxAdam(weights((5, 3), (7,), dtype=dtype), **options)
    train(whole, 3)
    resumed = ProxAdam(fresh(params_of(whole)), **options)
    resumed.load_state_dict(saved_and_loaded(whole.state_dict()))
    assert_same_bits(snapshot(resumed), snapshot(whole))
    for optimizer in (whole, resumed):
        train(optimizer, 3, seed=1)
    assert_same_bits(snapshot(resumed), snapshot(whole))


@pytest.mark.parametrize("to", PATHS)
@pytest.mark.parametrize("of", PATHS)
def test_every_path_takes_up_every_other(of, to):
    """The loader keeps its own way to step, and goes on within rounding of the saver."""
    saver = ProxAdam(weights((5, 3), (7,)), **BUSY, **PATHS[of])
    train(saver, 3)
    loader = ProxAdam(fresh(params_of(saver)), **BUSY, **PATHS[to])
    loader.load_state_dict(saved_and_loaded(saver.state_dict()))
    chosen = {"foreach": None, "fused": None, **PATHS[to]}
    assert {name: loader.param_groups[0][name] for name in chosen} == chosen
    for optimizer in (saver, loader):
        train(optimizer, 3, seed=1)
    if of == to:
        assert_same_bits(snapshot(loader), snapshot(saver))
    torch.testing.assert_close(snapshot(loader), snapshot(saver), rtol=1e-5, atol=1e-7)


@each_twin
@pytest.mark.parametrize("path", ["loop", "foreach"])
@pytest.mark.parametrize("first", ["ours", "theirs"])
def test_a_run_may_change_over_between_torchs_class_and_ours(ours, theirs, path, first):
    """Without l1 and l2 the weights are to the bit those of a run that never did."""
    options = {"lr": 0.05, "weight_decay": 0.1, "foreach": path == "foreach"}
    whole = theirs(weights((5, 3), (7,)), **options)
    classes = (ours, theirs) if first == "ours" else (theirs, ours)
    before = classes[0](fresh(params_of(whole)), **options)
    for optimizer in (whole, before):
        train(optimizer, 3)
    after = classes[1](fresh(params_of(before)), foreach=options["foreach"])
    after.load_state_dict(saved_and_loaded(before.state_dict()))
    for optimizer in (whole, after):
        train(optimizer, 3, seed=1)
    assert_same_bits(snapshot(after), snapshot(whole))


@each_twin
@pytest.mark.parametrize("to", PATHS)
@pytest.mark.parametrize("of", ["loop", "foreach", "fused", "capturable"])
def test_every_path_takes_up_torchs_and_torchs_take_up_every_path(ours, theirs, of, to):
    """Ours keeps its own way to step; torch's takes that of the checkpoint."""
    torchs = theirs(weights((5, 3)), **PATHS[of])
    train(torchs, 2)
    mine = ours(fresh(params_of(torchs)), l1=0.5, **PATHS[to])
    mine.load_state_dict(saved_and_loaded(torchs.state_dict()))
    chosen = {"foreach": None, "fused": None, "capturable": False, **PATHS[to]}
    assert {name: mine.param_groups[0][name] for name in chosen} == chosen
    back = theirs(fresh(params_of(mine)))
    back.load_state_dict(saved_and_loaded(mine.state_dict()))
    for optimizer in (mine, back):
        train(optimizer, 1, seed=1)
        assert [state["step"].item() for state in optimizer.state.values()] == [3]
    assert mine.param_groups[0]["l1"] == back.param_groups[0]["l1"] == 0.5


@each_twin
def test_torchs_checkpoints_load_and_ours_load_there(ours, theirs):
    """What the saved groups do not know keeps the value that each group has."""
    common = {"lr": 0.02, "weight_decay": 0.1, "amsgrad": True}
    torchs = theirs(weights((4,), (2, 2)), lr=0.5, amsgrad=True)
    torchs.param_groups[0].update(common)
    train(torchs, 2)
    mine = ours(fresh(params_of(torchs)), **PROX)
    mine.load_state_dict(saved_and_loaded(torchs.state_dict()))
    assert {name: mine.param_groups[0][name] for name in {**common, **PROX}} == {**common, **PROX}
    train(mine, 2, seed=1)
    assert all(state["step"] == 4 for state in mine.state.values())

    back = theirs(fresh(params_of(mine)))
    back.load_state_dict(saved_and_loaded(mine.state_dict()))
    before = snapshot(back)
    assert_same_bits(before, snapshot(mine))
    train(back, 1)
    assert all(state["step"] == 5 for state in back.state.values())


def test_each_group_keeps_its_own_options():
    """L1 for the weights and none for the biases, resumed from a run of torch.optim.AdamW."""
    params = weights((4, 4), (4,))
    old = torch.optim.AdamW([{"params": params[:1], "lr": 0.1}, {"params": params[1:], "lr": 0.2}])
    train(old, 1)
    new = ProxAdamW([{"params": [params[0]], "l1": 0.5}, {"params": [params[1]], "l1": 0.0}])
    new.load_state_dict(old.state_dict())
    assert [(g["l1"], g["lr"]) for g in new.param_groups] == [(0.5, 0.1), (0.0, 0.2)]


def test_a_saved_option_is_loaded():
    saver, loader = ProxAdam(weights((3,)), **PROX), ProxAdam(weights((3,)))
    loader.load_state_dict(saved_and_loaded(saver.state_dict()))
    for name, value in PROX.items():
        assert loader.param_groups[0][name] == value


def test_a_saved_format_is_not():
    """The optimizer's own stays, as fused and foreach do."""
    formats = {"state_dtype": torch.float32, "stochastic_rounding": True, "seed": 3}
    saver, loader = ProxAdam(weights((3,)), **formats), ProxAdam(weights((3,)))
    own = {name: loader.param_groups[0][name] for name in formats}
    loader.load_state_dict(saved_and_loaded(saver.state_dict()))
    assert {name: loader.param_groups[0][name] for name in formats} == own


def test_a_beta_saved_in_the_middle_of_a_cycle_is_loaded():
    """load_state_dict takes what a step takes."""
    saver, loader = (ProxAdam(weights((3,))) for _ in range(2))
    train(saver, 1)
    saver.param_groups[0]["betas"] = (4.0, 0.999)
    loader.load_state_dict(saved_and_loaded(saver.state_dict()))
    assert loader.param_groups[0]["betas"] == (4.0, 0.999)
    train(loader, 1)


def test_wide_moments_are_not_narrowed_by_loading():
    """torch casts the state of a bfloat16 parameter to bfloat16, whatever it was saved as."""
    saver = ProxAdam(weights((100,), dtype=torch.bfloat16), state_dtype=torch.float32)
    train(saver, 3)
    (state,) = saver.state.values()
    assert not torch.equal(state["exp_avg"], state["exp_avg"].bfloat16().float())
    loader = ProxAdam(weights((100,), dtype=torch.bfloat16), state_dtype=torch.float32)
    loader.load_state_dict(saved_and_loaded(saver.state_dict()))
    (loaded,) = loader.state.values()
    assert_same_bits(loaded, state)


def test_hooks_see_and_change_what_is_loaded():
    saver = ProxAdam(weights((3,)), l1=0.1)
    train(saver, 1)
    loader = ProxAdam(weights((3,)))
    seen = []

    def double_l1(_, state_dict):
        groups = [{**group, "l1": 2 * group["l1"]} for group in state_dict["param_groups"]]
        return {**state_dict, "param_groups": groups}

    loader.register_load_state_dict_pre_hook(double_l1)
    loader.register_load_state_dict_post_hook(lambda o: seen.append(o.param_groups[0]["l1"]))
    for _ in range(2):
        loader.load_state_dict(saver.state_dict())
    assert seen == [0.2, 0.2]
    assert len(loader._optimizer_load_state_dict_pre_hooks) == 1


SPOILED = {
    "no exp_avg": (lacking("exp_avg"), "the loaded state of parameter 1 has no 'exp_avg'"),
    "no step": (lacking("step"), "the loaded state of parameter 1 has no 'step'"),
    "truncated": (of_shape("exp_avg", 3), "the loaded exp_avg of parameter 1 has shape (3,)"),
    "transposed": (of_shape("exp_avg_sq", 2, 4), "exp_avg_sq of parameter 1 has shape (2, 4)"),
    "a number": (with_value("exp_avg", 1.0), "the loaded exp_avg of parameter 1 is float"),
    "nothing": (with_value("exp_avg_sq", None), "exp_avg_sq of parameter 1 is NoneType"),
    "sparse": (
        with_value("exp_avg", torch.eye(4, 2).to_sparse()),
        "exp_avg of parameter 1 is torch.sparse_coo, expected a dense tensor",
    ),
    "complex": (
        with_value("exp_avg", torch.ones(4, 2, dtype=torch.complex64)),
        "exp_avg of parameter 1 has dtype torch.complex64 and the parameter torch.float32",
    ),
    **{
        f"step {name}": (with_value("step", value), "the loaded step of parameter 1 is ")
        for name, value in {
            "of two": torch.ones(2),
            "of none": torch.ones(0),
            "negative": torch.tensor(-1.0),
            "nan": float("nan"),
            "missing": None,
        }.items()
    },
}


@pytest.mark.parametrize("how", SPOILED)
def test_a_state_that_does_not_fit_is_refused_whole(how):
    spoil, text = SPOILED[how]
    saver, loader = (ProxAdam(weights((3,), (4, 2)), lr=lr) for lr in (0.1, 0.2))
    for optimizer in (saver, loader):
        train(optimizer, 1, seed=int(optimizer is saver))
    state_dict = copy.deepcopy(saver.state_dict())
    spoil(state_dict["state"][1])
    assert_refused_whole(loader, state_dict, text)


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (lambda saved: saved.pop("state"), "got 'state' of the type NoneType"),
        (lambda saved: saved.pop("param_groups"), "got 'param_groups' of the type NoneType"),
        (lambda saved: saved.update(state=[]), "got 'state' of the type list"),
        (lambda saved: saved["param_groups"][0].update(l1=-1.0), "Invalid l1 value: -1.0"),
        (lambda saved: saved["param_groups"][0].update(metric="own"), "Invalid metric: 'own'"),
        (lambda saved: saved["param_groups"][0].update(max_shrink=0.5), "Invalid max_shrink"),
    ],
    ids=["no state", "no groups", "a list", "l1", "metric", "max_shrink"],
)
def test_what_is_no_state_dict_is_refused_whole(spoil, text):
    saver, loader = (ProxAdam(weights((3,), (4, 2)), lr=lr) for lr in (0.1, 0.2))
    for optimizer in (saver, loader):
        train(optimizer, 1)
    state_dict = copy.deepcopy(saver.state_dict())
    spoil(state_dict)
    assert_refused_whole(loader, state_dict, text)


def test_a_parameter_without_a_saved_state_begins_anew_as_in_torch():
    saver, loader = (ProxAdam(weights((3,), (4, 2))) for _ in range(2))
    for optimizer in (saver, loader):
        train(optimizer, 2)
    state_dict = copy.deepcopy(saver.state_dict())
    del state_dict["state"][0]
    loader.load_state_dict(state_dict)
    train(loader, 1)
    assert [loader.state[p]["step"].item() for p in params_of(loader)] == [1, 3]


SAVER = """
import os, sys, torch
from proxadam import ProxAdamW

path, state_dtype = sys.argv[1:]
model = torch.nn.Linear(64, 64)
state_dtype = {"fp32": None, "bf16": torch.bfloat16, "8bit": "8bit"}[state_dtype]
optimizer = ProxAdamW(model.parameters(), l1=0.01, state_dtype=state_dtype)

class Stalls:  # a file that never gets further than some bytes
    def __init__(self, file):
        self.file = file

    def write(self, data):
        self.file.write(bytes(data)[:10])
        self.file.flush()
        print("in the middle", flush=True)
        sys.stdin.read()

    def flush(self):
        pass

def step_and_save(wrap=lambda file: file):
    for param in model.parameters():
        param.grad = torch.ones_like(param)
    optimizer.step()
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    with open(f"{path}.new", "wb") as file:
        torch.save(state, wrap(file))
    os.replace(f"{path}.new", path)

step_and_save()
step_and_save()
step_and_save(Stalls)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this platform has no SIGKILL")
@each_format([FP32, *SMALL])
def test_a_process_killed_while_it_saves_loses_nothing_saved_before(tmp_path, kept):
    """By the README's way to save: under another name first, which is then put in place."""
    path = tmp_path / "checkpoint.pt"
    command = [sys.executable, "-c", SAVER, str(path), kept.name]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as saver:
        assert saver.stdout.readline().strip() == b"in the middle"
        saver.kill()
    assert saver.returncode == -signal.SIGKILL
    assert 0 < (tmp_path / "checkpoint.pt.new").stat().st_size <= 10
    saved = torch.load(path, weights_only=True)
    model = torch.nn.Linear(64, 64)
    optimizer = ProxAdamW(model.parameters(), **kept.options)
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    assert {state["step"].item() for state in optimizer.state.values()} == {2.0}
    assert optimizer.param_groups[0]["l1"] == 0.01
    train(optimizer, 1)


def test_a_state_dict_refers_to_the_live_tensors_as_torchs_does():
    """So it is to be saved, or copied, before the next step."""
    optimizer = ProxAdam(weights((3,)))
    train(optimizer, 1)
    state_dict = optimizer.state_dict()
    copied = copy.deepcopy(state_dict)
    train(optimizer, 1)
    assert (state_dict["state"][0]["step"], copied["state"][0]["step"]) == (2, 1)


@pytest.mark.parametrize("groups", [[1], [1, 1]], ids=["fewer", "other sizes"])
def test_groups_that_do_not_fit_are_torchs_errors(groups):
    ours, torchs = (
        [cls([{"params": weights(*[(2,)] * n)} for n in sizes]) for sizes in (groups, [1, 2])]
        for cls in TWINS["Adam"]
    )
    errors = [error_of(a.load_state_dict, b.state_dict()) for a, b in (ours, torchs)]
    assert errors[0] == errors[1]
    assert errors[0][0] is ValueError


@pytest.mark.parametrize("state_dtype", [torch.float64, torch.float16, "float32", 8])
def test_other_state_dtypes_are_refused(state_dtype):
    kind, text = error_of(ProxAdam, weights((2,)), state_dtype=state_dtype)
    assert kind is ValueError
    expected = "(None, torch.float32, torch.bfloat16, '8bit')"
    assert text == f"Invalid state_dtype: {state_dtype!r}, expected one of {expected}"
    optimizer = ProxAdam(weights((2,)))
    group = {"params": weights((2,)), "state_dtype": state_dtype}
    assert error_of(optimizer.add_param_group, group) == (kind, text)
    assert len(optimizer.param_groups) == 1
