"""The face of a torch optimizer: hooks, profiler ranges, repr, state, and what others reach for."""

from __future__ import annotations

import copy
import inspect
import pickle
import types

import pytest
import torch
from torch import nn
from torch.nn import Parameter
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.profiler import ProfilerActivity, profile

from proxadam import ProxAdam, ProxAdamW
from test_construction import OWN_DEFAULTS
from tools import (
    BUSY,
    LOOP,
    assert_same_bits,
    each_class,
    each_twin,
    error_of,
    params_of,
    snapshot,
    twin_of,
    weights,
)

# ---- hooks of a step --------------------------------------------------------------------------


@each_class
def test_step_hooks_are_called_once_and_in_torchs_order(cls, backend):
    """Also where a plain torch optimizer has been made, which patches its own class."""
    optimizer, other = cls(weights((3,)), **backend.options), cls(weights((3,)), **backend.options)
    torch.optim.AdamW(weights((3,)))
    called = []

    def note(name):
        return lambda optimizer, args, kwargs: called.append((name, optimizer, args, kwargs))

    handles = [
        register_optimizer_step_pre_hook(note("global pre")),
        register_optimizer_step_post_hook(note("global post")),
        optimizer.register_step_pre_hook(note("pre")),
        optimizer.register_step_post_hook(note("post")),
    ]

    def closure():
        called.append(("step", optimizer, (), {}))

    optimizer.step(closure)
    names = ["global pre", "pre", "step", "post", "global post"]
    assert [name for name, *_ in called] == names
    assert called[1][1:] == (optimizer, (optimizer, closure), {})
    called.clear()
    other.step()
    assert [name for name, *_ in called] == ["global pre", "global post"]
    for handle in handles:
        handle.remove()
    called.clear()
    optimizer.step(closure)
    assert [name for name, *_ in called] == ["step"]


@each_class
def test_a_step_hook_may_change_the_gradient_and_the_closure(cls, backend):
    optimizer = cls(weights((3,)), **BUSY, **backend.options)
    expected = twin_of(optimizer)
    (param,), (twin,) = params_of(optimizer), params_of(expected)

    def halve(_, args, kwargs):
        param.grad.mul_(0.5)
        return (*args, lambda: 7), kwargs

    optimizer.register_step_pre_hook(halve)
    assert optimizer.step() == 7
    twin.grad.mul_(0.5)
    expected.step()
    assert_same_bits(snapshot(optimizer), snapshot(expected))


@each_class
def test_a_failed_step_calls_no_post_hook(cls, backend):
    optimizer = cls(weights((3,)), **backend.options)
    called = []
    optimizer.register_step_post_hook(lambda *_: called.append("post"))
    assert error_of(optimizer.step, lambda: 1 / 0)[0] is ZeroDivisionError
    assert not called


# ---- hooks of state dicts ---------------------------------------------------------------------


@each_class
def test_state_dict_hooks_in_the_order_asked_for(cls):
    optimizer = cls(weights((3,)))
    called = []
    optimizer.register_state_dict_pre_hook(lambda _: called.append("second"))
    optimizer.register_state_dict_pre_hook(lambda _: called.append("first"), prepend=True)
    optimizer.register_state_dict_post_hook(lambda _, d: {**d, "more": "second"})
    optimizer.register_state_dict_post_hook(lambda _, d: {**d, "more": "first"}, prepend=True)
    optimizer.register_state_dict_post_hook(lambda _, d: called.append(d["more"]))
    assert optimizer.state_dict()["more"] == "second"
    assert called == ["first", "second", "second"]


@each_class
def test_load_state_dict_hooks_in_the_order_asked_for(cls):
    """A pre-hook may return another state dict; post-hooks see what was loaded."""
    optimizer, saver = cls(weights((3,))), cls(weights((3,)), lr=0.5)
    called = []

    def with_lr(lr):
        def hook(_, state_dict):
            called.append(state_dict["param_groups"][0]["lr"])
            groups = [{**group, "lr": lr} for group in state_dict["param_groups"]]
            return {**state_dict, "param_groups": groups}

        return hook

    optimizer.register_load_state_dict_pre_hook(with_lr(0.25))
    optimizer.register_load_state_dict_pre_hook(with_lr(0.125), prepend=True)
    optimizer.register_load_state_dict_post_hook(lambda o: called.append(o.param_groups[0]["lr"]))
    optimizer.register_load_state_dict_post_hook(lambda _: called.append("first"), prepend=True)
    optimizer.load_state_dict(saver.state_dict())
    assert called == [0.5, 0.125, "first", 0.25]
    assert saver.param_groups[0]["lr"] == 0.5


# ---- what tools look at -----------------------------------------------------------------------


@each_twin
def test_the_profiler_sees_one_range_of_the_class(ours, theirs, backend):
    torch.optim.AdamW(weights((3,)))
    optimizer = ours(weights((3,)), **backend.options)
    optimizer.step()
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as seen:
        optimizer.step()
    ranges = [event.name for event in seen.events() if event.name.startswith("Optimizer.step#")]
    assert ranges == [f"Optimizer.step#{ours.__name__}.step"]
    assert ours.__name__ == f"Prox{theirs.__name__}"


@each_twin
def test_it_is_printed_as_torchs_with_our_options_among_the_others(ours, theirs):
    groups = [[{"params": weights((3,)), "lr": 0.5}, {"params": weights((2,))}] for _ in range(2)]
    printed = repr(ours(groups[0])).splitlines()
    expected = repr(theirs(groups[1])).splitlines()
    own = [line for line in printed if line.strip().split(":")[0] in OWN_DEFAULTS]
    assert len(own) == 2 * len(OWN_DEFAULTS)
    assert [line for line in printed if line not in own] == [
        line.replace(theirs.__name__, ours.__name__) for line in expected
    ]
    options = [line.split(":")[0] for line in printed[2 : printed.index("")]]
    assert options == sorted(options)


@each_twin
def test_zero_grad_is_torchs(ours, theirs, backend, monkeypatch):
    """Lists are zeroed at once where foreach or fused was asked for."""
    assert inspect.signature(ours.zero_grad) == inspect.signature(theirs.zero_grad)
    zeroed = []
    foreach_zero = torch._foreach_zero_
    monkeypatch.setattr(torch, "_foreach_zero_", lambda x: zeroed.append(x) or foreach_zero(x))
    optimizer = ours(weights((3,), (2,)), **backend.options)
    optimizer.zero_grad(set_to_none=False)
    assert all((p.grad == 0).all() for p in params_of(optimizer))
    assert bool(zeroed) is bool(backend.options.get("foreach") or backend.options.get("fused"))
    optimizer.zero_grad()
    assert all(p.grad is None for p in params_of(optimizer))


@each_twin
def test_step_has_torchs_signature(ours, theirs):
    """GradScaler takes a parameter called grad_scaler for a wish to unscale the old way."""
    arguments = inspect.signature(ours.step).parameters
    assert list(arguments) == list(inspect.signature(theirs.step).parameters) == ["self", "closure"]
    assert ours.step.__name__ == "step"
    assert ours([Parameter(torch.ones(1))]).step.__func__ is ours.step


@each_class
def test_step_may_be_replaced_on_the_instance(cls, backend):
    """As schedulers and accelerators do."""
    optimizer = cls(weights((3,)), **backend.options)
    called, step = [], optimizer.step

    def noted(_, closure=None):
        called.append(closure)
        return step(closure)

    optimizer.step = types.MethodType(noted, optimizer)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    optimizer.step()
    scheduler.step()
    assert called == [None]
    assert optimizer.state[params_of(optimizer)[0]]["step"] == 1


@each_class
def test_params_may_be_replaced_in_a_group(cls, any_backend):
    """As engines that shard a model do after the optimizer is made: nothing is kept of the old."""
    old, new = weights((3,), (5, 2))
    before = old.detach().clone()
    optimizer = cls([old], **BUSY, **any_backend.options)
    optimizer.param_groups[0]["params"] = [new]
    expected = twin_of(cls([new], **BUSY, **any_backend.options))
    optimizer.step()
    expected.step()
    assert_same_bits(snapshot(optimizer), snapshot(expected))
    assert_same_bits(old, before)


@each_twin
def test_an_unknown_key_in_a_group_is_left_alone(ours, theirs):
    for cls in (ours, theirs):
        optimizer = cls([{"params": weights((3,)), "initial_lr": 0.5, "mine": "note"}])
        optimizer.step()
        again = cls(weights((3,)))
        again.load_state_dict(optimizer.state_dict())
        assert again.param_groups[0]["mine"] == "note"


@each_twin
def test_groups_are_added_as_in_torch(ours, theirs, backend):
    for cls, options in ((ours, backend.options), (theirs, LOOP)):
        optimizer = cls(weights((3,)), **options)
        optimizer.step()
        (late,) = weights((2,))
        optimizer.add_param_group({"params": late, "lr": 0.5})
        optimizer.step()
        assert [state["step"].item() for state in optimizer.state.values()] == [2, 1]
        assert optimizer.param_groups[1]["weight_decay"] == optimizer.defaults["weight_decay"]
        kind, text = error_of(optimizer.add_param_group, {"params": late})
        assert kind is ValueError
        assert text == "some parameters appear in more than one parameter group"


@each_class
def test_params_and_state_may_be_swapped_for_a_while(cls, any_backend):
    """By torch's own means, from torch 2.13 on: the donor is stepped, the optimizer is not."""
    stateless = pytest.importorskip("torch.optim._stateless", reason="this torch does not swap")
    optimizer = cls(weights((3,), (2, 2)), **BUSY, **any_backend.options)
    optimizer.step()
    donor = twin_of(optimizer)
    for param in params_of(donor):
        param.data.add_(1.0)
    expected = twin_of(donor)
    before = snapshot(optimizer)
    named = {str(i): param for i, param in enumerate(params_of(donor))}
    swap = stateless.swap_in_optimizer_params_and_state
    with swap(optimizer, named, donor.state_dict()):
        optimizer.step()
    expected.step()
    assert_same_bits(snapshot(optimizer), before)
    assert_same_bits(snapshot(donor), snapshot(expected))


# ---- state ------------------------------------------------------------------------------------


@each_twin
@pytest.mark.parametrize("amsgrad", [False, True], ids=["adam", "amsgrad"])
def test_state_is_made_late_and_like_torchs(ours, theirs, backend, amsgrad):
    """Names in order, shapes, strides, dtypes; the step on the host unless the kernel counts."""
    params = [torch.randn(4, 6).t(), torch.randn(3, 5, dtype=torch.float64), torch.tensor(1.0)]
    states = []
    for cls in (ours, theirs):
        optimizer = cls([Parameter(p.clone()) for p in params], amsgrad=amsgrad, **backend.options)
        assert not optimizer.state
        for param in params_of(optimizer):
            param.grad = torch.ones_like(param)
        with torch.device("cpu"):  # torch 2.11 makes a step on the default device, newer ones here
            optimizer.step()
        states.append(
            [
                {
                    name: (t.shape, t.stride(), t.dtype, t.device, type(t))
                    for name, t in optimizer.state[param].items()
                }
                for param in params_of(optimizer)
            ]
        )
    assert states[0] == states[1]
    assert [list(state) for state in states[0]] == [list(state) for state in states[1]]


@each_class
def test_an_older_pickle_gets_the_options_it_lacks(cls):
    """A step that is a number becomes a tensor; ProxAdamW stays decoupled."""
    optimizer = cls(weights((3,)), **LOOP)
    optimizer.step()
    (group,) = optimizer.param_groups
    for name in (*OWN_DEFAULTS, "foreach", "maximize", "capturable", "differentiable", "fused"):
        del group[name]
    group["decoupled_weight_decay"] = False
    (state,) = optimizer.state.values()
    state["step"] = 1
    again = pickle.loads(pickle.dumps(optimizer))
    (group,) = again.param_groups
    assert {name: group[name] for name in OWN_DEFAULTS} == OWN_DEFAULTS
    assert group["foreach"] is group["fused"] is None
    assert group["decoupled_weight_decay"] is (cls is ProxAdamW)
    (param,) = params_of(again)
    param.grad = torch.ones(3)
    again.step()
    assert again.state[param]["step"] == 2


@each_twin
def test_the_lists_of_a_step_are_filled_in_place_as_torchs(ours, theirs):
    """torch.compile calls this method by its name, before the step."""
    filled = []
    for cls in (ours, theirs):
        torch.manual_seed(0)
        params = weights((3,), (4,), (5,))
        params[1].grad = None
        optimizer = cls(params, amsgrad=True)
        lists = ([], [], [], [], [], [])
        result = optimizer._init_group(optimizer.param_groups[0], *lists)
        assert result is None or result is False  # a constant
        assert lists[0][0] is params[0]
        assert lists[1][1] is params[2].grad
        assert lists[2][0] is optimizer.state[params[0]]["exp_avg"]
        filled.append([[tensor.detach() for tensor in tensors] for tensors in lists])
    torch.testing.assert_close(*filled)
    assert [len(tensors) for tensors in filled[0]] == [2] * 6


# ---- who asks for a class by name -------------------------------------------------------------


def test_torchs_functional_optimizers_do_not_know_it():
    """They know torch's own classes, by name."""
    distributed = pytest.importorskip("torch.distributed.optim")
    kind, text = error_of(distributed.as_functional_optim, ProxAdam)
    assert kind is ValueError
    assert "does not have a functional" in text


@each_class
def test_a_capture_without_capturable_is_torchs_error(cls, monkeypatch):
    """Asked before anything is done."""
    optimizer = cls(weights((3,)))
    refused = RuntimeError("Attempting CUDA graph capture of step() for an instance of")

    def refuse(_):
        raise refused

    monkeypatch.setattr("proxadam.optimizer._check_graph_capture", refuse)
    assert error_of(optimizer.step, lambda: 1 / 0) == (RuntimeError, str(refused))
    assert not optimizer.state


def test_copies_do_not_share_tensors():
    optimizer = ProxAdam(weights((3,)), **BUSY)
    optimizer.step()
    copied = copy.deepcopy(optimizer)
    for name, tensor in snapshot(copied).items():
        assert_same_bits(tensor, snapshot(optimizer)[name])
    (param,), (other,) = params_of(optimizer), params_of(copied)
    assert param is not other
    assert optimizer.state[param]["exp_avg"] is not copied.state[other]["exp_avg"]
    nn.init.zeros_(other)
    assert not torch.equal(param, other)
