"""The l1 schedulers: closed forms, tensors filled in place, resuming, and what they refuse."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch.nn import Parameter
from torch.optim import AdamW

from proxadam import (
    CubicL1,
    L1Scheduler,
    LinearL1,
    ProxAdam,
    RampL1,
    TargetSparsityL1,
    WarmupL1,
)
from tools import assert_same_bits, error_of, params_of, saved_and_loaded, snapshot, weights

BASES = [0.5, 0.0, 2.0]


def optimizer_of(l1s=BASES, size=100):
    params = [Parameter(torch.randn(size)) for _ in l1s]
    return ProxAdam([{"params": [p], "l1": l1} for p, l1 in zip(params, l1s, strict=True)])


# A scheduler, and its factor at step t.
RAMPS = {
    "warmup": (lambda o: WarmupL1(o, 8), lambda t: min(t / 8, 1)),
    "warmup-late": (
        lambda o: WarmupL1(o, 4, delay=3),
        lambda t: 0 if t < 3 else min((t - 3) / 4, 1),
    ),
    "linear-down": (
        lambda o: LinearL1(o, 8, start_factor=2.0, end_factor=0.5),
        lambda t: 2 - 1.5 * min(t / 8, 1),
    ),
    "linear-in-one": (lambda o: LinearL1(o, 1), lambda t: float(t > 0)),
    "cubic": (lambda o: CubicL1(o, 8), lambda t: 1 - (1 - min(t / 8, 1)) ** 3),
    "cubic-late": (
        lambda o: CubicL1(o, 4, start_factor=0.25, end_factor=4.0, delay=2),
        lambda t: 4 - 3.75 * (1 - min(max(t - 2, 0) / 4, 1)) ** 3,
    ),
    "square-root": (lambda o: RampL1(o, 8, power=0.5), lambda t: 1 - (1 - min(t / 8, 1)) ** 0.5),
}


@pytest.mark.parametrize("name", RAMPS)
def test_the_closed_form_at_every_step(name):
    make, factor = RAMPS[name]
    optimizer = optimizer_of()
    scheduler = make(optimizer)
    for t in range(15):
        assert scheduler.last_epoch == t
        expected = [base * factor(t) for base in BASES]
        assert scheduler.get_last_l1() == pytest.approx(expected, rel=1e-15, abs=0)
        assert [group["l1"] for group in optimizer.param_groups] == scheduler.get_last_l1()
        scheduler.step()


@pytest.mark.parametrize("name", ["warmup", "cubic"])
def test_the_base_is_reached_exactly(name):
    optimizer = optimizer_of([0.1, 0.3])
    scheduler = RAMPS[name][0](optimizer)
    for _ in range(8):
        scheduler.step()
    assert scheduler.get_last_l1() == [0.1, 0.3]


def test_what_get_last_l1_returns_is_a_copy():
    scheduler = WarmupL1(optimizer_of(), 8)
    scheduler.get_last_l1()[0] = 7.0
    assert scheduler.get_last_l1()[0] == 0.0


SCHEDULERS = {
    **{name: make for name, (make, _) in RAMPS.items()},
    "target": lambda o: TargetSparsityL1(o, 0.6, every=2),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_tensor_is_filled_in_place(name):
    tensors = [torch.tensor(base) for base in BASES]
    optimizer, with_floats = optimizer_of(tensors), optimizer_of()
    scheduler, expected = SCHEDULERS[name](optimizer), SCHEDULERS[name](with_floats)
    for _ in range(10):
        written = [group["l1"] for group in optimizer.param_groups]
        assert all(a is b for a, b in zip(written, tensors, strict=True))
        floats = torch.tensor([group["l1"] for group in with_floats.param_groups])
        assert_same_bits(torch.stack(written), floats)
        scheduler.step()
        expected.step()


def train(optimizer, scheduler, steps, seed):
    noise = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for param in params_of(optimizer):
            param.grad = param.detach() - 1 + torch.randn(param.shape, generator=noise)
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize("tensor", [False, True], ids=["float", "tensor"])
@pytest.mark.parametrize("order", ["optimizer-first", "scheduler-first", "built-last"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_resumed_to_the_same_bits(name, order, tensor):
    def build():
        params = weights((50,), (30,))
        l1 = torch.tensor(0.3) if tensor else 0.3
        groups = [{"params": params[:1], "l1": l1}, {"params": params[1:], "l1": 0.0}]
        return ProxAdam(groups, lr=0.05)

    optimizer = build()
    scheduler = SCHEDULERS[name](optimizer)
    train(optimizer, scheduler, 5, seed=1)
    saved = saved_and_loaded([optimizer.state_dict(), scheduler.state_dict(), params_of(optimizer)])
    train(optimizer, scheduler, 8, seed=2)

    resumed = build()
    with torch.no_grad():
        for param, value in zip(params_of(resumed), saved[2], strict=True):
            param.copy_(value)
    if order == "built-last":
        resumed.load_state_dict(saved[0])
    again = SCHEDULERS[name](resumed)
    if order == "optimizer-first":
        resumed.load_state_dict(saved[0])
    again.load_state_dict(saved[1])
    if order == "scheduler-first":
        resumed.load_state_dict(saved[0])
    train(resumed, again, 8, seed=2)

    assert_same_bits(snapshot(resumed), snapshot(optimizer))
    assert again.state_dict() == scheduler.state_dict()
    assert again.get_last_l1() == scheduler.get_last_l1()


def test_the_state_alone_restores_l1():
    optimizer, fresh = optimizer_of(), optimizer_of()
    scheduler, again = WarmupL1(optimizer, 8), WarmupL1(fresh, 8)
    for _ in range(3):
        scheduler.step()
    again.load_state_dict(copy.deepcopy(scheduler.state_dict()))
    assert [group["l1"] for group in fresh.param_groups] == [0.1875, 0.0, 0.75]


def test_a_state_is_not_changed_by_later_steps():
    scheduler = TargetSparsityL1(optimizer_of(), 0.6, every=1)
    state = scheduler.state_dict()
    before = copy.deepcopy(state)
    for _ in range(3):
        scheduler.step()
    assert state == before != scheduler.state_dict()


ERRORS = {
    "not-an-optimizer": (WarmupL1, torch.nn.Linear(1, 1), (3,), {}, TypeError, "Linear is not"),
    "no-l1": (WarmupL1, AdamW([Parameter(torch.ones(1))]), (3,), {}, ValueError, "AdamW"),
    "total_iters": (LinearL1, None, (0,), {}, ValueError, "Invalid total_iters: 0"),
    "nan-iters": (CubicL1, None, (math.nan,), {}, ValueError, "Invalid total_iters: nan"),
    "start_factor": (CubicL1, None, (1, -1.0), {}, ValueError, "Invalid start_factor: -1.0"),
    "end_factor": (LinearL1, None, (1, 0, math.inf), {}, ValueError, "Invalid end_factor: inf"),
    "delay": (WarmupL1, None, (1, -1), {}, ValueError, "Invalid delay: -1"),
    "power": (RampL1, None, (1,), {"power": 0.0}, ValueError, "Invalid power: 0.0"),
    "sparsity-0": (TargetSparsityL1, None, (0.0,), {}, ValueError, "Invalid sparsity: 0.0"),
    "sparsity-percent": (TargetSparsityL1, None, (90,), {}, ValueError, "Invalid sparsity: 90"),
    "every": (TargetSparsityL1, None, (0.9, 0), {}, ValueError, "Invalid every: 0"),
    **{
        f"{name}-{value:g}": (
            TargetSparsityL1, None, (0.9,), {name: value}, ValueError, f"Invalid {name}: {value}",
        )
        for name, value in [
            ("gain", 0.0),
            ("gain", 1.5),
            ("damping", -0.1),
            ("max_change", 1.0),
            ("max_factor", math.inf),
            ("start_factor", 200.0),
            ("start_factor", 0.0),
            ("until", 0),
        ]
    },
}  # fmt: skip


@pytest.mark.parametrize("case", ERRORS)
def test_refusals(case):
    cls, optimizer, args, options, kind, words = ERRORS[case]
    optimizer = optimizer or optimizer_of()
    raised, text = error_of(cls, optimizer, *args, **options)
    assert raised is kind
    assert words in text
    if isinstance(optimizer, ProxAdam):
        assert [group["l1"] for group in optimizer.param_groups] == BASES  # nothing was written


def test_a_group_added_later_is_refused():
    optimizer = optimizer_of()
    scheduler = WarmupL1(optimizer, 8)
    optimizer.add_param_group({"params": [Parameter(torch.ones(1))]})
    for call in (scheduler.step, lambda: scheduler.load_state_dict(scheduler.state_dict())):
        raised, text = error_of(call)
        assert raised is ValueError
        assert "got" in text and "groups" in text


def test_a_scheduler_of_ones_own():
    class Halving(L1Scheduler):
        def factor(self):
            return 0.5**self.last_epoch

    scheduler = Halving(optimizer_of())
    scheduler.step()
    scheduler.step()
    assert scheduler.get_last_l1() == [0.125, 0.0, 0.5]
