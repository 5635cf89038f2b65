"""TargetSparsityL1: l1 steered to a share of zeros, and let go."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch.nn import Parameter
from torch.optim import AdamW

from formats import FP32, NARROW, SMALL, each_format
from proxadam import ProxAdamW, TargetSparsityL1
from test_schedulers_of_l1 import optimizer_of
from tools import error_of, saved_and_loaded


class Plant:
    """Weights whose odds of being zero follow l1, but lag: what a training does, in short."""

    def __init__(self, l1=1.0, lag=0.0, scale=1.0, slope=1.0):
        self.optimizer = optimizer_of([l1, 0.0], 20000)
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
    optimizer = optimizer_of([1.0, 0.0])
    optimizer.param_groups[1]["params"][0].data.zero_()
    scheduler = TargetSparsityL1(optimizer, 0.5, every=1)
    scheduler.step()
    expected = 0.1 * math.exp(0.05 * -_logit(0.05))  # the first group has no zero: 0.05 for it
    assert scheduler.get_last_l1() == [pytest.approx(expected), 0.0]


def test_groups_keep_the_ratio_of_their_l1():
    optimizer = optimizer_of([1.0, 0.0, 4.0])
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


def test_nothing_to_steer_is_refused():
    raised, text = error_of(TargetSparsityL1, optimizer_of([0.0, 0.0]), 0.9)
    assert raised is ValueError
    assert "got none to steer" in text
