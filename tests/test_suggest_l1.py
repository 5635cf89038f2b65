"""suggest_l1: the quantile of what the gradients let rest, exact or of a sample."""

from __future__ import annotations

import math

import pytest
import torch

from proxadam import ProxAdam, ProxAdamW, suggest_l1
from proxadam._sparsity import reading
from proxadam._sparsity import suggest_l1 as suggest_l1_module
from storages import each_dtype
from tools import error_of, params_of, weights


def _m_hat(optimizer, group):
    """|m̂|, or |m̂| / d, of all weights of a group, from the state and the equations."""
    group = optimizer.param_groups[group]
    values = []
    for param in group["params"]:
        state, (beta1, beta2) = optimizer.state[param], group["betas"]
        t = state["step"].item()
        m = state["exp_avg"].double() / (1 - beta1**t)
        d = (state["exp_avg_sq"].double() / (1 - beta2**t)).sqrt() + group["eps"]
        values.append((m / d if group["metric"] == "euclidean" else m).abs().flatten())
    return torch.cat(values)


def _running(dtype=torch.float32, metric="adaptive", l1=0.1, steps=3):
    shapes = [(40, 25), (300,), (10, 10, 5)]
    first, second = weights(*shapes, dtype=dtype), weights((77,), dtype=dtype)
    groups = [{"params": first, "l1": l1}, {"params": second, "l1": 0.0}]
    optimizer = ProxAdam(groups, metric=metric)
    for _ in range(steps):
        for param in first + second:
            param.grad = torch.randn_like(param) * 1e-3
        optimizer.step()
    return optimizer


@each_dtype
@pytest.mark.parametrize("metric", ["adaptive", "euclidean"])
@pytest.mark.parametrize("target", [1e-9, 0.5, 0.9, 0.999, 1 - 1e-9])
def test_the_smallest_l1_that_lets_so_many_rest(dtype, metric, target, monkeypatch):
    monkeypatch.setattr(reading, "_CPU_CHUNK", 64)
    optimizer = _running(dtype, metric)
    guess = suggest_l1(optimizer, target)
    values, slack = _m_hat(optimizer, 0), 1 + 4 * 2.0**-23  # float32 rounds m̂ and d
    assert (values <= guess * slack).sum() >= target * len(values)
    assert (values * slack < guess).sum() < target * len(values)


def test_exactly_the_element_of_that_rank():
    (param,) = weights((1000,))
    optimizer = ProxAdam([param], betas=(0.0, 0.999))  # m̂ is the gradient
    param.grad = torch.logspace(-20, 10, 1000)[torch.randperm(1000)]
    optimizer.step()
    ordered = param.grad.sort().values
    for rank in (1, 2, 500, 999, 1000):
        assert suggest_l1(optimizer, (rank - 0.5) / 1000) == ordered[rank - 1].item()


def test_more_weights_than_torch_quantile_takes():
    """Which was 2^24 before torch 2.15."""
    size = (1 << 24) + 7
    (param,) = weights((1,))
    optimizer = ProxAdam([param], betas=(0.0, 0.999))
    optimizer.step()
    large = torch.arange(size, dtype=torch.float32)[torch.randperm(size)]
    param.data = torch.zeros(size)
    optimizer.state[param].update(exp_avg=large, exp_avg_sq=large)
    for target in (0.25, 0.9):
        share = (large <= suggest_l1(optimizer, target)).double().mean().item()
        assert abs(share - target) <= 3 * math.sqrt(target * (1 - target) / 2**20)


def test_exact_up_to_the_size_that_is_documented():
    (param,) = weights((1 << 21,))
    optimizer = ProxAdam([param], betas=(0.0, 0.999))
    optimizer.step()
    ordered = param.grad.abs().flatten().sort().values
    for rank in (1, 2**20, 2**21 - 1):
        assert suggest_l1(optimizer, (rank - 0.5) / 2**21) == ordered[rank - 1].item()


SAMPLED = {
    "in-any-order": lambda values: values,
    "sorted": lambda values: values.sort().values,
    "by-turns": lambda values: values.sort().values.view(40, -1).T.flatten(),  # a period of 40
    "in-small-tensors": lambda values: values,
}


@pytest.mark.parametrize("case", SAMPLED)
@pytest.mark.parametrize("target", [0.5, 0.9, 0.99])
def test_a_sample_errs_by_what_is_stated(case, target, monkeypatch):
    monkeypatch.setattr(suggest_l1_module, "_MOST", 100)  # one of 40 neighbours
    squares = []
    for _ in range(100):
        values = SAMPLED[case](torch.rand(4_000))
        params = weights(*[(50,)] * 80) if case == "in-small-tensors" else weights((4_000,))
        optimizer = ProxAdam(params, betas=(0.0, 0.999))
        for param, grad in zip(params, values.split(params[0].numel()), strict=True):
            param.grad = grad
        optimizer.step()
        share = (values <= suggest_l1(optimizer, target)).double().mean().item()
        squares.append((share - target) ** 2)
    # The 100 squares leave the mean known to 14 %, and the rank of a sample is a whole number.
    stated = math.sqrt(target * (1 - target) / 100)
    assert math.sqrt(sum(squares) / 100) <= 1.25 * stated + 1 / 100


def test_a_sample_is_repeated_and_draws_on_nobodys_random_numbers(monkeypatch):
    monkeypatch.setattr(suggest_l1_module, "_MOST", 100)
    optimizer = _running()
    before = torch.get_rng_state()
    guesses = {suggest_l1(optimizer, 0.9) for _ in range(3)}
    assert len(guesses) == 1
    assert torch.equal(torch.get_rng_state(), before)


def test_which_groups():
    optimizer = _running()
    every = _running(l1=0.0)
    one, other = (suggest_l1(optimizer, 0.9, groups=[i]) for i in (0, 1))
    assert suggest_l1(optimizer, 0.9) == one != other  # those with l1
    optimizer.param_groups[0]["l1"] = 0.0
    assert suggest_l1(optimizer, 0.9) == suggest_l1(optimizer, 0.9, groups=[0, 1])
    assert one != suggest_l1(optimizer, 0.9) != other
    assert suggest_l1(every, 0.9) > 0


def test_of_torchs_own_adamw():
    params = weights((100,))
    ours, theirs = ProxAdamW(params), torch.optim.AdamW(params)
    ours.step()
    theirs.step()
    assert suggest_l1(theirs, 0.7) == suggest_l1(ours, 0.7) > 0


def test_weights_at_rest_stay_at_zero_with_the_guess():
    """The claim itself: gradients that stay as they are let the wanted share reach zero."""
    (param,) = weights((1000,))
    optimizer = ProxAdam([param], lr=0.01)
    for _ in range(10):
        optimizer.step()
    optimizer.param_groups[0]["l1"] = suggest_l1(optimizer, 0.8)
    param.data.zero_()
    optimizer.step()
    assert (param == 0).sum() in (799, 800, 801)  # the one at the threshold may be rounded up


SUGGEST_ERRORS = {
    "percent": (_running, {"sparsity": 90}, ValueError, "Invalid sparsity: 90"),
    "zero": (_running, {"sparsity": 0.0}, ValueError, "Invalid sparsity: 0.0"),
    "no-group": (_running, {"groups": []}, ValueError, "has taken some steps"),
    "absent-group": (_running, {"groups": [2]}, IndexError, "out of range"),
    "no-step": (lambda: _running(steps=0), {}, ValueError, "has taken some steps"),
    "complex": (lambda: _running(torch.complex64, "euclidean"), {}, ValueError, "real parameters"),
}


@pytest.mark.parametrize("case", SUGGEST_ERRORS)
def test_refusals_of_suggest_l1(case):
    make, options, kind, words = SUGGEST_ERRORS[case]
    raised, text = error_of(suggest_l1, make(), **options)
    assert raised is kind
    assert words in text


def test_two_metrics_have_no_common_l1():
    optimizer = _running()
    optimizer.param_groups[1]["metric"] = "euclidean"
    raised, text = error_of(suggest_l1, optimizer, groups=[0, 1])
    assert raised is ValueError and "units" in text


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_gradients_that_are_not_finite(value):
    optimizer = _running()
    params_of(optimizer)[0].grad[:] = value  # more than half of the group
    optimizer.step()
    raised, text = error_of(suggest_l1, optimizer, 0.9)
    assert raised is ValueError and "inf or NaN" in text
    assert 0 < suggest_l1(optimizer, 0.3) < 1
