"""The l1 schedulers: closed forms, tensors filled in place, resuming, and steering to a target."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch.nn import Parameter
from torch.optim import AdamW

from formats import FP32, NARROW, SMALL, each_format
from proxadam import (
    CubicL1,
    L1Scheduler,
    LinearL1,
    ProxAdam,
    ProxAdamW,
    RampL1,
    TargetSparsityL1,
    WarmupL1,
)
from tools import assert_same_bits, error_of, params_of, saved_and_loaded, snapshot, weights

BASES = [0.5, 0.0, 2.0]


def _optimizer(l1s=BASES, size=100):
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
    optimizer = _optimizer()
    scheduler = make(optimizer)
    for t in range(15):
        assert scheduler.last_epoch == t
        expected = [base * factor(t) for base in BASES]
        assert scheduler.get_last_l1() == pytest.approx(expected, rel=1e-15, abs=0)
        assert [group["l1"] for group in optimizer.param_groups] == scheduler.get_last_l1()
        scheduler.step()


@pytest.mark.parametrize("name", ["warmup", "cubic"])
def test_the_base_is_reached_exactly(name):
    optimizer = _optimizer([0.1, 0.3])
    scheduler = RAMPS[name][0](optimizer)
    for _ in range(8):
        scheduler.step()
    assert scheduler.get_last_l1() == [0.1, 0.3]


def test_what_get_last_l1_returns_is_a_copy():
    scheduler = WarmupL1(_optimizer(), 8)
    scheduler.get_last_l1()[0] = 7.0
    assert scheduler.get_last_l1()[0] == 0.0


SCHEDULERS = {
    **{name: make for name, (make, _) in RAMPS.items()},
    "target": lambda o: TargetSparsityL1(o, 0.6, every=2),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_tensor_is_filled_in_place(name):
    tensors = [torch.tensor(base) for base in BASES]
    optimizer, with_floats = _optimizer(tensors), _optimizer()
    scheduler, expected = SCHEDULERS[name](optimizer), SCHEDULERS[name](with_floats)
    for _ in range(10):
        written = [group["l1"] for group in optimizer.param_groups]
        assert all(a is b for a, b in zip(written, tensors, strict=True))
        floats = torch.tensor([group["l1"] for group in with_floats.param_groups])
        assert_same_bits(torch.stack(written), floats)
        scheduler.step()
        expected.step()


def _train(optimizer, scheduler, steps, seed):
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
    _train(optimizer, scheduler, 5, seed=1)
    saved = saved_and_loaded([optimizer.state_dict(), scheduler.state_dict(), params_of(optimizer)])
    _train(optimizer, scheduler, 8, seed=2)

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
    _train(resumed, again, 8, seed=2)

    assert_same_bits(snapshot(resumed), snapshot(optimizer))
    assert again.state_dict() == scheduler.state_dict()
    assert again.get_last_l1() == scheduler.get_last_l1()


def test_the_state_alone_restores_l1():
    optimizer, fresh = _optimizer(), _optimizer()
    scheduler, again = WarmupL1(optimizer, 8), WarmupL1(fresh, 8)
    for _ in range(3):
        scheduler.step()
    again.load_state_dict(copy.deepcopy(scheduler.state_dict()))
    assert [group["l1"] for group in fresh.param_groups] == [0.1875, 0.0, 0.75]


def test_a_state_is_not_changed_by_later_steps():
    scheduler = TargetSparsityL1(_optimizer(), 0.6, every=1)
    state = scheduler.state_dict()
    before = copy.deepcopy(state)
    for _ in range(3):
        scheduler.step()
    assert state == before != scheduler.state_dict()


class Plant:
    """Weights whose odds of being zero follow l1, but lag: what a training does, in short."""

    def __init__(self, l1=1.0, lag=0.0, scale=1.0, slope=1.0):
        self.optimizer = _optimizer([l1, 0.0], 20000)
        self.lag, self.scale, self.slope, self.odds = lag, scale, slope, 1e-4

    @property
    def l1(self):
        return self.optimizer.param_groups[0]["l1"]

    def set_zeros(self, share):
        weights = self.optimizer.param_groups[0]["params"][0].data
        weights.fill_(1.0)[: round(share * len(weights))] = 0.0

    def run(self, scheduler, steps):
        """The share of zeros after each step."""
        sparsities = []
        for _ in range(steps):
            wanted = (self.l1 * self.scale) ** self.slope
            self.odds = self.odds**self.lag * wanted ** (1 - self.lag)
            sparsities.append(self.odds / (1 + self.odds))
            self.set_zeros(sparsities[-1])
            scheduler.step()
        return sparsities


def _logit(share):
    return math.log(share / (1 - share))


@pytest.mark.parametrize("target", [0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("lag", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("off", [0.1, 1.0, 10.0], ids=lambda off: f"base-times-{off:g}")
def test_steered_to_the_target(target, lag, off):
    plant = Plant(l1=off * target / (1 - target), lag=lag)  # off = 1: the base is the answer
    scheduler = TargetSparsityL1(plant.optimizer, target, every=1)
    errors = [_logit(s) - _logit(target) for s in plant.run(scheduler, 200)]
    assert max(map(abs, errors[150:])) <= 0.05
    assert errors[0] <= 0.001  # from below,
    # and past the target by little, unless it begins at the answer and does not know.
    assert max(errors) <= (0.4 if off < 10 else 1.0)


def test_a_steep_answer_does_not_make_it_oscillate():
    plant = Plant(slope=2.5)
    scheduler = TargetSparsityL1(plant.optimizer, 0.5, every=1)
    errors = [abs(_logit(share)) for share in plant.run(scheduler, 100)]
    assert max(errors[80:]) <= 0.05


def test_the_law_of_an_update():
    plant = Plant(l1=4.0)
    options = {"gain": 0.2, "damping": 0.5, "max_change": 10.0, "start_factor": 1.0}
    scheduler = TargetSparsityL1(plant.optimizer, 0.9, every=1, **options)
    expected, before = 4.0, None
    for share, seen in ((0.0, 0.09), (0.5, 0.5), (0.8, 0.8), (1.0, 0.99)):
        plant.set_zeros(share)
        scheduler.step()
        error = _logit(0.9) - _logit(seen)
        expected *= math.exp(0.2 * error + 0.5 * (error - before if before is not None else 0))
        before = error
        assert plant.l1 == pytest.approx(expected, rel=1e-12)


def test_an_update_changes_l1_by_no_more_than_max_change():
    plant = Plant()
    scheduler = TargetSparsityL1(plant.optimizer, 0.9, every=1, gain=1.0, max_change=1.25)
    l1s = [plant.l1]
    for share in (0.0, 0.0, 1.0, 1.0):
        plant.set_zeros(share)
        scheduler.step()
        l1s.append(plant.l1)
    ratios = [after / before for after, before in zip(l1s[1:], l1s, strict=False)]
    assert ratios == pytest.approx([1.25, 1.25, 0.8, 0.8])


@pytest.mark.parametrize("scale", [1e-6, 1e6], ids=["never-so-sparse", "never-so-dense"])
def test_out_of_reach_rests_at_a_bound_and_leaves_it_at_once(scale):
    plant = Plant(scale=scale)
    scheduler = TargetSparsityL1(plant.optimizer, 0.5, every=1, max_factor=8.0, start_factor=1.0)
    plant.run(scheduler, 400)
    bound = 8.0 if scale < 1 else 1 / 8
    assert plant.l1 == pytest.approx(bound)
    plant.scale = 1 / scale  # now the error has the other sign
    plant.run(scheduler, 1)
    assert (plant.l1 < bound) if scale < 1 else (plant.l1 > bound)


def test_counts_only_at_every_nth_step():
    plant = Plant()
    scheduler = TargetSparsityL1(plant.optimizer, 0.9, every=3)
    l1s = []
    for _ in range(9):
        scheduler.step()
        l1s.append(plant.l1)
    assert l1s[0] == l1s[1] < l1s[2] == l1s[3] == l1s[4] < l1s[5] == l1s[6] == l1s[7] < l1s[8]


def test_groups_without_l1_are_neither_counted_nor_steered():
    optimizer = _optimizer([1.0, 0.0])
    optimizer.param_groups[1]["params"][0].data.zero_()
    scheduler = TargetSparsityL1(optimizer, 0.5, every=1)
    scheduler.step()
    expected = 0.1 * math.exp(0.05 * -_logit(0.05))  # the first group has no zero: 0.05 for it
    assert scheduler.get_last_l1() == [pytest.approx(expected), 0.0]


def test_groups_keep_the_ratio_of_their_l1():
    optimizer = _optimizer([1.0, 0.0, 4.0])
    scheduler = TargetSparsityL1(optimizer, 0.5, every=1)
    for _ in range(5):
        scheduler.step()
    first, none, last = scheduler.get_last_l1()
    assert (none, last / first) == (0.0, 4.0)
    assert first > 0.1


@pytest.mark.parametrize("target", [0.5, 0.8, 0.9])
def test_steers_a_real_training(target):
    """A regression on 100 inputs, of which 10 matter."""
    torch.manual_seed(3)
    x = torch.randn(400, 100)
    y = x[:, :10] @ torch.linspace(1, 2, 10) + torch.randn(400)
    w = Parameter(torch.randn(100) * 0.1)
    optimizer = ProxAdamW([w], lr=0.01, weight_decay=0.0, l1=0.1)
    scheduler = TargetSparsityL1(optimizer, target, every=10)
    for _ in range(2000):
        w.grad = x.T @ (x @ w.detach() - y) / len(y)
        optimizer.step()
        scheduler.step()
    assert abs((w == 0).sum().item() - 100 * target) <= 4
    assert w[:10].all()


def _shares(kept):
    """Of zeros, at the last of 600 steps on noisy gradients of a quadratic with random minima."""
    torch.manual_seed(0)
    w = Parameter(torch.randn(70, 61).to(kept.dtype))
    minima = w.detach().float().clone()
    optimizer = ProxAdamW([w], lr=0.02, weight_decay=0.0, l1=0.7, **kept.options)
    scheduler = TargetSparsityL1(optimizer, 0.7, every=10)
    shares = []
    for _ in range(600):
        w.grad = (w.detach().float() - minima + 0.1 * torch.randn(w.shape)).to(w.dtype)
        optimizer.step()
        scheduler.step()
        shares.append((w == 0).float().mean().item())
    return torch.tensor(shares[-100:])


@each_format([*SMALL, *NARROW])
def test_steers_every_format_as_float32(kept):
    actual, expected = _shares(kept), _shares(FP32)
    assert 0.6 < expected.mean() < 0.7  # it is on its way up to 0.7
    assert abs(actual.mean() - expected.mean()) < 0.003


def _regression(until, steps=1200, lr_at_end=0.01, **options):
    """As above; what the groups had at every step, and the share of zeros then."""
    torch.manual_seed(3)
    x = torch.randn(400, 100)
    y = x[:, :10] @ torch.linspace(1, 2, 10) + torch.randn(400)
    w, bias = Parameter(torch.randn(100) * 0.1), Parameter(torch.zeros(1))
    groups = [{"params": [w], "l1": 0.1}, {"params": [bias], "l1": 0.0}]
    optimizer = ProxAdamW(groups, lr=0.01, weight_decay=0.0)
    scheduler = TargetSparsityL1(optimizer, **{"sparsity": 0.8, "every": 5, **options}, until=until)
    seen = []
    for step in range(steps):
        if step == steps - 2:
            for group in optimizer.param_groups:
                group["lr"] = lr_at_end
        w.grad = x.T @ (x @ w.detach() - y) / len(y)
        optimizer.step()
        scheduler.step()
        group = optimizer.param_groups[0]
        seen.append((group["l1"], group["keep_zeros"], (w == 0).double().mean().item()))
    return w, optimizer, scheduler, seen


def test_debiasing_keeps_zeros_and_lets_l1_go():
    w, optimizer, scheduler, seen = _regression(until=600)
    l1s, keeps, shares = zip(*seen, strict=True)
    assert not any(keeps[:599]) and all(keeps[599:])
    gone = l1s.index(0.0)
    assert gone >= 599
    assert not any(l1s[gone:])
    assert shares[gone - 1] < 0.8 or gone == 599
    assert 0.8 <= shares[gone] <= 0.84, "at once, and by no more than came in a step"
    assert len(set(shares[gone:])) == 1, "none wakes, and there is no pull on the others"
    assert scheduler.get_last_l1() == [0.0, 0.0]
    assert not optimizer.param_groups[1]["keep_zeros"]
    biased, *_ = _regression(until=None)
    assert w[:10].sum() > biased[:10].sum() + 0.1


def test_before_until_it_steers_a_little_below():
    _, _, _, seen = _regression(until=10**9)
    assert 0.74 <= sum(share for *_, share in seen[-100:]) / 100 <= 0.79
    assert not any(keep for _, keep, _ in seen)


def test_a_share_that_is_not_reached_is_a_warning():
    """Once; and l1 stays."""
    with pytest.warns(UserWarning, match="has not reached 0.99; l1 stays as it is") as said:
        options = {"sparsity": 0.99, "start_factor": 1.0, "max_factor": 1.01}
        _, _, scheduler, seen = _regression(until=1100, lr_at_end=0.0, **options)
    assert len(said) == 1
    assert seen[-1][0] > 0
    assert scheduler.get_last_l1()[0] > 0


@pytest.mark.parametrize("stop", [300, 599, 900])
def test_debiasing_resumes_to_the_bit(stop):
    _, optimizer, scheduler, _ = _regression(until=600, steps=stop)
    optimizer = copy.deepcopy(optimizer)
    twin = ProxAdamW([{"params": g["params"]} for g in optimizer.param_groups], l1=0.1)
    resumed = TargetSparsityL1(twin, 0.5, until=1)
    twin.load_state_dict(saved_and_loaded(optimizer.state_dict()))
    resumed.load_state_dict(saved_and_loaded(scheduler.state_dict()))
    assert resumed.state_dict() == scheduler.state_dict()
    for group, own in zip(twin.param_groups, optimizer.param_groups, strict=True):
        assert (group["l1"], group["keep_zeros"]) == (own["l1"], own["keep_zeros"])


def test_debiasing_needs_groups_that_keep_zeros():
    param = Parameter(torch.ones(2))
    optimizer = AdamW([{"params": [param], "l1": 0.1}])
    raised, text = error_of(TargetSparsityL1, optimizer, 0.5, until=3)
    assert raised is ValueError
    assert text == "expected groups with keep_zeros, as ProxAdam's are, got those of AdamW."
    assert error_of(TargetSparsityL1, optimizer, 0.5) is None


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
    optimizer = optimizer or _optimizer()
    raised, text = error_of(cls, optimizer, *args, **options)
    assert raised is kind
    assert words in text
    if isinstance(optimizer, ProxAdam):
        assert [group["l1"] for group in optimizer.param_groups] == BASES  # nothing was written


def test_nothing_to_steer_is_refused():
    raised, text = error_of(TargetSparsityL1, _optimizer([0.0, 0.0]), 0.9)
    assert raised is ValueError
    assert "got none to steer" in text


def test_a_group_added_later_is_refused():
    optimizer = _optimizer()
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

    scheduler = Halving(_optimizer())
    scheduler.step()
    scheduler.step()
    assert scheduler.get_last_l1() == [0.125, 0.0, 0.5]
