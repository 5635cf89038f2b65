"""Saving and loading: what was learned comes back to the bit; how to step stays one's own."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch.nn import Parameter

from proxadam import ProxAdam, ProxAdamW
from tools import BUSY, TWINS, assert_same_bits, each_twin, error_of, params_of, snapshot, weights

PROX = {"l1": 0.01, "l2": 0.02, "metric": "euclidean", "max_shrink": 3.0}
PATHS = {
    "loop": {"foreach": False, "fused": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
    "default": {},
}


def saved_and_loaded(state_dict):
    buffer = io.BytesIO()
    torch.save(state_dict, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def train(optimizer, steps, seed=0):
    generator = torch.Generator(device="cpu").manual_seed(seed)
    for _ in range(steps):
        for param in params_of(optimizer):
            grad = torch.randn(param.shape, generator=generator, device="cpu")
            param.grad = grad.to(param)
        optimizer.step()


def fresh(params):
    return [Parameter(param.detach().clone()) for param in params]


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
    torch.testing.assert_close(snapshot(loader), snapshot(saver), rtol=1e-5, atol=1e-7)


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
    saver = ProxAdam(weights((3,)), **PROX, state_dtype=torch.float32)
    loader = ProxAdam(weights((3,)))
    loader.load_state_dict(saved_and_loaded(saver.state_dict()))
    for name, value in {**PROX, "state_dtype": torch.float32}.items():
        assert loader.param_groups[0][name] == value


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


def lacking(name):
    return lambda state: state.pop(name)


def of_shape(name, *shape):
    return lambda state: state.update({name: torch.zeros(shape)})


SPOILED = {
    "no exp_avg": (lacking("exp_avg"), "the loaded state of parameter 1 has no 'exp_avg'"),
    "no step": (lacking("step"), "the loaded state of parameter 1 has no 'step'"),
    "truncated": (of_shape("exp_avg", 3), "the loaded exp_avg of parameter 1 has shape (3,)"),
    "transposed": (of_shape("exp_avg_sq", 2, 4), "exp_avg_sq of parameter 1 has shape (2, 4)"),
}


@pytest.mark.parametrize("how", SPOILED)
def test_a_state_that_does_not_fit_is_refused_whole(how):
    spoil, text = SPOILED[how]
    saver, loader = (ProxAdam(weights((3,), (4, 2)), lr=lr) for lr in (0.1, 0.2))
    for optimizer in (saver, loader):
        train(optimizer, 1, seed=int(optimizer is saver))
    state_dict = copy.deepcopy(saver.state_dict())
    spoil(state_dict["state"][1])
    before = snapshot(loader)
    kind, said = error_of(loader.load_state_dict, state_dict)
    assert kind is ValueError
    assert text in said
    assert "\n" not in said
    assert_same_bits(snapshot(loader), before)
    assert loader.param_groups[0]["lr"] == 0.2
    assert not loader._optimizer_load_state_dict_pre_hooks


@pytest.mark.parametrize("groups", [[1], [1, 1]], ids=["fewer", "other sizes"])
def test_groups_that_do_not_fit_are_torchs_errors(groups):
    ours, torchs = (
        [cls([{"params": weights(*[(2,)] * n)} for n in sizes]) for sizes in (groups, [1, 2])]
        for cls in TWINS["Adam"]
    )
    errors = [error_of(a.load_state_dict, b.state_dict()) for a, b in (ours, torchs)]
    assert errors[0] == errors[1]
    assert errors[0][0] is ValueError


@pytest.mark.parametrize("state_dtype", [torch.float64, torch.bfloat16, "float32"])
def test_other_state_dtypes_are_refused(state_dtype):
    kind, text = error_of(ProxAdam, weights((2,)), state_dtype=state_dtype)
    assert kind is ValueError
    assert text == f"Invalid state_dtype: {state_dtype}, expected torch.float32 or None"
    optimizer = ProxAdam(weights((2,)))
    group = {"params": weights((2,)), "state_dtype": state_dtype}
    assert error_of(optimizer.add_param_group, group) == (kind, text)
    assert len(optimizer.param_groups) == 1
