"""SparsityRamp: when it updates, what it costs between, resuming, and what it refuses."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch.nn import Parameter
from torch.utils._python_dispatch import TorchDispatchMode

from formats import NARROW, SMALL, each_format
from proxadam import ProxAdam, ProxAdamW, SparsityRamp, param_groups, sparsity
from proxadam._sparsity import ramp
from ramps import (
    each_pass,
    passes,  # noqa: F401 (a fixture)
    running,
    update,
    zeros,
)
from tools import assert_same_bits, error_of, params_of, saved_and_loaded, snapshot

# ---- the schedule -----------------------------------------------------------------------------


def test_the_share_at_every_step():
    optimizer = running()
    count = len(zeros(optimizer))
    scheduler = SparsityRamp(optimizer, 0.9, begin=3, end=14, every=4)
    groups = optimizer.param_groups
    for step in range(1, 20):
        scheduler.step()
        assert scheduler.last_epoch == step
        x = min(max((step - 3) / 11, 0), 1)
        assert scheduler.share() == pytest.approx(0.9 * (1 - (1 - x) ** 3), abs=1e-12)
        updates = [s for s in (3, 7, 11, 14) if s <= step]
        x = (updates[-1] - 3) / 11 if updates else 0
        assert zeros(optimizer).sum() == round(0.9 * (1 - (1 - x) ** 3) * count)
        assert all(group["keep_zeros"] == (step >= 3) for group in groups)
    assert scheduler.last_sparsity == round(0.9 * count) / count
    assert SparsityRamp(running(), 0.5, 0, 1).optimizer.param_groups[0]["keep_zeros"]


class _Counts(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.ops = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.ops += 1
        return function(*args, **(kwargs or {}))


def test_between_updates_there_is_nothing_to_do():
    scheduler = SparsityRamp(running(), 0.9, begin=0, end=100, every=10)
    with _Counts() as counts:
        for _ in range(9):
            scheduler.step()
    assert counts.ops == 0


@each_pass
def test_the_host_waits_once_an_update(monkeypatch):
    reads = []
    read = ramp._read
    monkeypatch.setattr(ramp, "_read", lambda tensors: reads.append(1) or read(tensors))
    scheduler = SparsityRamp(running(), 0.9, begin=0, end=3, scope="tensor")
    for _ in range(5):
        scheduler.step()
    assert len(reads) == 3


def test_training_goes_on_over_the_zeros(any_backend):
    weights = [Parameter(torch.randn(50, 20)) for _ in range(2)]
    optimizer = ProxAdamW(weights, lr=0.01, **any_backend.options)
    scheduler = SparsityRamp(optimizer, 0.8, begin=2, end=20, every=2)
    for _ in range(40):
        for param in weights:
            param.grad = torch.randn_like(param)
        optimizer.step()
        scheduler.step()
    assert float(sparsity(optimizer)) == scheduler.last_sparsity == 0.8


@each_format([*SMALL, *NARROW])
@pytest.mark.parametrize("unit", ["weight", "row"])
def test_a_format_loses_the_weights_that_its_moments_in_float32_would(kept, unit):
    small = ProxAdamW(kept.weights(), lr=0.01, **kept.options)
    small.step()
    params = [Parameter(param.detach().clone()) for param in params_of(small)]
    wide = ProxAdamW(params, state_dtype=torch.float32)
    wide.load_state_dict(copy.deepcopy(small.state_dict()))
    shares = []
    for optimizer in (small, wide):
        scheduler = SparsityRamp(optimizer, 0.8, begin=0, end=1, unit=unit)
        scheduler.step()
        shares.append(scheduler.last_sparsity)
    assert shares[0] == shares[1] == pytest.approx(0.8, abs=0.05)
    for actual, expected in zip(*map(params_of, (small, wide)), strict=True):
        assert_same_bits(actual, expected)
    for _ in range(3):
        small.step()
    assert float(sparsity(small)) >= 0.7


@pytest.mark.parametrize("first", ["optimizer", "scheduler"])
@pytest.mark.parametrize("unit", ["weight", "row"])
def test_resumes_to_the_bit(unit, first):
    def train(optimizer, scheduler, steps):
        for step in steps:
            torch.manual_seed(step)
            for param in params_of(optimizer):
                param.grad = torch.randn_like(param)
            optimizer.step()
            scheduler.step()

    def make():
        torch.manual_seed(1)
        optimizer = running()
        return optimizer, SparsityRamp(optimizer, 0.9, begin=2, end=15, every=3, unit=unit)

    whole, resumed = make(), make()
    train(*whole, range(20))
    begun = make()
    train(*begun, range(9))
    for old, new in zip(params_of(begun[0]), params_of(resumed[0]), strict=True):
        new.data.copy_(old)
    states = [saved_and_loaded(one.state_dict()) for one in begun]
    for i in (0, 1) if first == "optimizer" else (1, 0):
        resumed[i].load_state_dict(states[i])
    train(*resumed, range(9, 20))
    assert_same_bits(snapshot(resumed[0]), snapshot(whole[0]))
    assert resumed[1].state_dict() == whole[1].state_dict()


def test_the_groups_that_are_penalised():
    model = torch.nn.Sequential(torch.nn.Linear(20, 30), torch.nn.Linear(30, 5))
    optimizer = ProxAdamW(param_groups(model, l1=0.0), weight_decay=0.1)
    for param in model.parameters():
        param.grad = torch.randn_like(param)
    optimizer.step()
    scheduler = update(optimizer, 0.5)
    assert scheduler.groups == [0]
    assert all(layer.bias.count_nonzero() == layer.bias.numel() for layer in model)
    assert sum((layer.weight == 0).sum() for layer in model) == 375
    assert SparsityRamp(optimizer, 0.5, 0, 1, groups=[-1]).groups == [1]


def test_numbers_in_tensors():
    optimizer = running()
    twin = copy.deepcopy(optimizer)
    for group in twin.param_groups:
        group["lr"] = torch.tensor(group["lr"], dtype=torch.float64)
        group["eps"] = torch.tensor(group["eps"], dtype=torch.float64)
    for each in (optimizer, twin):
        update(each, 0.7)
    assert_same_bits(zeros(optimizer), zeros(twin))


# ---- errors -----------------------------------------------------------------------------------

BAD = {
    "a share of 1": ({"sparsity": 1.0}, "Invalid sparsity: 1.0, expected ≥ 0 and below 1"),
    "a share below 0": ({"sparsity": -0.1}, "Invalid sparsity: -0.1, "),
    "no share": ({"sparsity": math.nan}, "Invalid sparsity: nan, "),
    "begin": ({"begin": -1}, "Invalid begin: -1, expected finite and ≥ 0"),
    "end": ({"begin": 5, "end": 5}, "Invalid end: 5, expected finite and above begin, 5"),
    "every": ({"every": 0}, "Invalid every: 0, expected finite and ≥ 1"),
    "score": ({"score": "d"}, "Invalid score: 'd', expected one of ('metric', 'magnitude')"),
    "scope": ({"scope": "row"}, "Invalid scope: 'row', expected one of "),
    "unit": ({"unit": "col"}, "Invalid unit: 'col', expected one of "),
    "no group": ({"groups": []}, "expected a group to prune, got none whose l1 or weight_decay"),
}


@pytest.mark.parametrize("case", BAD)
def test_arguments_out_of_range(case):
    options, text = BAD[case]
    optimizer = running()
    before = snapshot(optimizer)
    options = {"sparsity": 0.5, "begin": 0, "end": 9, **options}
    kind, said = error_of(SparsityRamp, optimizer, **options)
    assert kind is ValueError
    assert said.startswith(text)
    assert_same_bits(snapshot(optimizer), before)
    assert not any(group["keep_zeros"] for group in optimizer.param_groups)


def test_optimizers_that_are_none_of_ours():
    param = Parameter(torch.ones(2))
    kind, said = error_of(SparsityRamp, torch.optim.AdamW([param]), 0.5, 0, 1)
    assert (kind, said) == (
        ValueError,
        "expected groups with keep_zeros, as ProxAdam's are, got those of AdamW.",
    )
    assert error_of(SparsityRamp, [param], 0.5, 0, 1) == (TypeError, "list is not an Optimizer")
    assert error_of(SparsityRamp, ProxAdam([param]), 0.5, 0, 1)[0] is ValueError
    assert error_of(SparsityRamp, ProxAdamW([param]), 0.5, 0, 1, groups=[1])[0] is IndexError


def _without_steps(optimizer):
    optimizer.add_param_group({"params": [Parameter(torch.ones(3))]})
    return "expected groups that have taken a step, got group 2 without; "


def _without_lr(optimizer):
    optimizer.param_groups[1]["lr"] = 0.0
    return "expected a learning rate above 0 at an update, got 0.0; "


def _without_lr_in_a_tensor(optimizer):
    optimizer.param_groups[0]["lr"] = torch.tensor(0.0)
    return "expected a learning rate above 0 at an update, got 0.0; "


def _of_two_metrics(optimizer):
    optimizer.param_groups[1]["metric"] = "euclidean"
    return "expected groups of one metric, got adaptive and euclidean ones"


def _complex(optimizer):
    param = optimizer.param_groups[1]["params"][0]
    own = optimizer.state.pop(param)
    optimizer.param_groups[1]["params"][0] = new = Parameter(param.detach() + 1j)
    optimizer.state[new] = own
    return "expected real parameters, got a complex one of shape (40, 25) in group 1."


SPOILERS = [_without_steps, _without_lr, _without_lr_in_a_tensor, _of_two_metrics, _complex]


@pytest.mark.parametrize("spoil", SPOILERS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("unit", ["weight", "row"])
def test_an_update_that_cannot_be_changes_nothing(spoil, unit):
    optimizer = running()
    text = spoil(optimizer)
    groups = range(len(optimizer.param_groups))
    if spoil is _of_two_metrics:
        kind, said = error_of(SparsityRamp, optimizer, 0.5, 0, 1, groups=groups)
        assert (kind, said.startswith(text)) == (ValueError, True)
        assert error_of(SparsityRamp, optimizer, 0.5, 0, 1, score="magnitude") is None
        optimizer.param_groups[1]["metric"] = "adaptive"
    scheduler = SparsityRamp(optimizer, 0.5, 0, 1, groups=groups, unit=unit)
    if spoil is _of_two_metrics:
        spoil(optimizer)
    before, state = copy.deepcopy(params_of(optimizer)), scheduler.state_dict()
    kind, said = error_of(scheduler.step)
    assert kind is ValueError
    assert said.startswith(text)
    assert scheduler.state_dict() == state
    for param, old in zip(params_of(optimizer), before, strict=True):
        assert_same_bits(param.detach(), old.detach())


def test_a_state_of_other_groups():
    state = SparsityRamp(running(), 0.5, 0, 1).state_dict()
    one = ProxAdamW([Parameter(torch.ones(3))])
    kind, said = error_of(SparsityRamp(one, 0.5, 0, 1).load_state_dict, state)
    assert kind is ValueError
    assert said.startswith("expected the state of 1 parameter groups, got one of groups [0, 1]; ")
