"""TargetRowSparsity: l21 steered to a share of dead rows, as test_steering_l1.py does l1."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import Parameter
from torch.optim import AdamW

from proxadam import PenaltyScheduler, ProxAdamW, TargetRowSparsity, sparsity, suggest_l21
from tools import assert_same_bits, error_of, params_of, saved_and_loaded, snapshot, weights


class Training:
    """A regression to 60 outputs, of which some depend on the inputs more than others."""

    def __init__(self, base=None, lr=0.01, l1=0.0, **options):
        torch.manual_seed(0)
        self.x = torch.randn(200, 20)
        true = torch.randn(60, 20) * torch.logspace(-2, 0, 60).unsqueeze(1)
        self.y = self.x @ true.T + 0.1 * torch.randn(200, 60)
        self.w, self.bias = Parameter(torch.randn(60, 20) * 0.1), Parameter(torch.zeros(60, 1))
        groups = [{"params": [self.w], "l21": 1.0}, {"params": [self.bias], "l21": 0.0}]
        self.optimizer = ProxAdamW(groups, lr=lr, weight_decay=0.0, l1=l1)
        if base is None:
            self.steps(20)
            base = suggest_l21(self.optimizer, 0.5)
        self.optimizer.param_groups[0]["l21"] = base
        self.scheduler = TargetRowSparsity(
            self.optimizer, **{"sparsity": 0.5, "every": 5, **options}
        )

    def steps(self, count, scheduler=None):
        """What l21, keep_zeros and the share of dead rows are behind each."""
        seen = []
        for _ in range(count):
            error = self.x @ self.w.detach().T + self.bias.detach().T - self.y
            self.w.grad, self.bias.grad = error.T @ self.x / 200, error.mean(0).unsqueeze(1)
            self.optimizer.step()
            if scheduler:
                scheduler.step()
            group = self.optimizer.param_groups[0]
            dead = (self.w == 0).all(1).double().mean().item()
            seen.append((group["l21"], group["keep_zeros"], dead))
        return seen


@pytest.mark.parametrize("target", [0.3, 0.5, 0.8])
def test_steers_a_real_training(target):
    training = Training(sparsity=target)
    seen = training.steps(1500, training.scheduler)
    assert abs(sum(dead for *_, dead in seen[-100:]) / 100 - target) <= 0.04
    assert max(dead for *_, dead in seen) <= target + 0.15
    assert sparsity(training.optimizer).rows.params["1.0"] == 0.0
    assert training.optimizer.param_groups[1]["l21"] == 0.0


def test_until_keeps_dead_rows_and_lets_l21_go():
    training = Training(until=600, l1=0.001)
    seen = training.steps(1200, training.scheduler)
    l21s, keeps, dead = zip(*seen, strict=True)
    assert not any(keeps[:599]) and all(keeps[599:])
    gone = l21s.index(0.0)
    assert gone >= 599 and not any(l21s[gone:])
    assert 0.5 <= dead[gone] <= 0.55
    assert len({*dead[gone:]}) == 1, "no row wakes, and none is pulled"
    assert training.optimizer.param_groups[0]["l1"] == 0.001
    assert not training.optimizer.param_groups[1]["keep_zeros"]


def test_a_share_that_is_not_reached_is_a_warning():
    training = Training(sparsity=0.99, until=1, lr=0.0, base=0.1)
    with pytest.warns(UserWarning, match="of dead rows has not reached 0.99; l21 stays") as said:
        training.steps(3, training.scheduler)
    assert len(said) == 1


def test_the_law_of_an_update():
    """Of what is dead, and not of scattered zeros."""
    (w,) = weights((10, 8))
    optimizer = ProxAdamW([w], l21=2.0)
    scheduler = TargetRowSparsity(optimizer, 0.6, every=1, start_factor=1.0)
    w.data[:3] = 0.0
    w.data[:, 1:] = 0.0
    scheduler.step()
    error = math.log(0.6 / 0.4) - math.log(0.3 / 0.7)
    assert scheduler.get_last_values() == [pytest.approx(2 * math.exp(0.05 * error))]
    assert optimizer.param_groups[0]["l21"] == scheduler.get_last_values()[0]
    assert optimizer.param_groups[0]["l1"] == 0.0
    assert scheduler.share() == pytest.approx(0.3)


def test_a_tensor_is_filled_in_place():
    l21 = torch.tensor(2.0)
    optimizer = ProxAdamW(weights((10, 8)), l21=l21)
    TargetRowSparsity(optimizer, 0.6, every=1).step()
    assert optimizer.param_groups[0]["l21"] is l21
    assert 0.2 < l21 < 0.3


@pytest.mark.parametrize("stop", [70, 130])
def test_resumed_to_the_same_bits(stop):
    training = Training(base=0.1, until=100)
    training.steps(stop, training.scheduler)
    saved = saved_and_loaded(
        [
            training.optimizer.state_dict(),
            training.scheduler.state_dict(),
            training.w,
            training.bias,
        ]
    )
    training.steps(60, training.scheduler)
    again = Training(base=0.7, sparsity=0.9, lr=0.1)
    again.optimizer.load_state_dict(saved[0])
    again.scheduler.load_state_dict(saved[1])
    for param, value in zip(params_of(again.optimizer), saved[2:], strict=True):
        param.data.copy_(value)
    again.steps(60, again.scheduler)
    assert_same_bits(snapshot(again.optimizer), snapshot(training.optimizer))
    assert again.scheduler.state_dict() == training.scheduler.state_dict()


def test_a_scheduler_of_ones_own():
    class HalvingL21(PenaltyScheduler):
        option = "l21"

        def factor(self):
            return 0.5**self.last_epoch

    optimizer = ProxAdamW(weights((2, 3)), l21=0.5, l1=0.25)
    scheduler = HalvingL21(optimizer)
    scheduler.step()
    assert (optimizer.param_groups[0]["l21"], optimizer.param_groups[0]["l1"]) == (0.25, 0.25)
    assert scheduler.get_last_values() == [0.25]


ERRORS = {
    "no-l21": (lambda: AdamW(weights((2, 2))), 0.5, {}, "expected groups with l21"),
    "nothing-to-steer": (lambda: ProxAdamW(weights((2, 2))), 0.5, {}, "suggest_l21 gives a first"),
    "percent": (lambda: ProxAdamW(weights((2, 2)), l21=1.0), 50, {}, "Invalid sparsity: 50"),
    "gain": (lambda: ProxAdamW(weights((2, 2)), l21=1.0), 0.5, {"gain": 2}, "Invalid gain: 2"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_refusals(case):
    make, target, options, words = ERRORS[case]
    kind, text = error_of(TargetRowSparsity, make(), target, **options)
    assert kind is ValueError
    assert words in text
