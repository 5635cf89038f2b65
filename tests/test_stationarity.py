"""stationarity: zero at the optimum, which a certificate shows, and nowhere else."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from sklearn.datasets import load_diabetes
from torch.nn import Parameter

from proxadam import ProxAdam, prox_elastic_net, stationarity
from proxadam._sparsity import reading
from tools import error_of, weights


@functools.cache
def _diabetes():
    x, y = (torch.as_tensor(a, dtype=torch.float64) for a in load_diabetes(return_X_y=True))
    return (x - x.mean(0)) / x.std(0, correction=0), (y - y.mean()) / y.std(correction=0)


def _gradient(w):
    x, y = _diabetes()
    return x.T @ (x @ w.detach() - y) / len(y)


def _kkt(w, l1, l2=0.0):
    """Distance of 0 from the subdifferential of the objective at w, by coordinate."""
    slope = _gradient(w) + l2 * w
    off = torch.where(w == 0, (slope.abs() - l1).clamp(min=0), (slope + l1 * w.sign()).abs())
    return off.detach()


def _solved(cls=ProxAdam, steps=1500, **options):
    w = Parameter(torch.randn(10, dtype=torch.float64) * 0.3)
    optimizer = cls([w], **{"lr": 0.01, "l1": 0.1, **options})
    for _ in range(steps):
        w.grad = _gradient(w)
        optimizer.step()
    return w, optimizer


SOLVABLE = {
    "lasso": {},
    "elastic-net": {"l1": 0.05, "l2": 0.1},
    "coupled-decay": {"l1": 0.05, "weight_decay": 0.1},
    "amsgrad": {"amsgrad": True},
    "maximize": {"maximize": True},
    "tensors": {"lr": torch.tensor(0.01), "l1": torch.tensor(0.1, dtype=torch.float64)},
}


@pytest.mark.parametrize("gradient", ["exp_avg", "grad"])
@pytest.mark.parametrize("case", SOLVABLE)
def test_zero_at_the_optimum_and_nowhere_else(case, gradient):
    options = SOLVABLE[case]
    sign = -1 if options.get("maximize") else 1
    w = Parameter(torch.randn(10, dtype=torch.float64) * 0.3)
    optimizer = ProxAdam([w], **{"lr": 0.01, "l1": 0.1, **options})
    for i in range(1500):
        w.grad = sign * _gradient(w)
        optimizer.step()
        w.grad = sign * _gradient(w)
        if i < 50:
            assert stationarity(optimizer, gradient=gradient).max > 1e-4
    assert stationarity(optimizer, gradient=gradient).max <= 1e-12


def test_kept_zeros_have_nothing_to_choose():
    """At the optimum of the others their residual is 0, however much they would like to wake."""
    w = Parameter(torch.randn(10, dtype=torch.float64) * 0.3)
    w.data[[2, 8]] = 0.0
    optimizer = ProxAdam([w], lr=0.01, l1=0.1, keep_zeros=True)
    for _ in range(1500):
        w.grad = _gradient(w)
        optimizer.step()
    assert _kkt(w, 0.1)[[2, 8]].max() > 0.1
    assert stationarity(optimizer).max <= 1e-12
    optimizer.param_groups[0]["keep_zeros"] = False
    assert stationarity(optimizer).max > 0.1


def test_any_weight_moved_from_the_optimum_shows():
    w, optimizer = _solved()
    for i in range(10):
        for move in (1e-6, -1e-6):
            before = w.detach().clone()
            w.data[i] += move
            w.grad = _gradient(w)
            assert stationarity(optimizer, gradient="grad").max > 1e-8
            w.data.copy_(before)


@pytest.mark.parametrize("metric", ["adaptive", "euclidean"])
@pytest.mark.parametrize(("l1", "l2"), [(0.1, 0.0), (0.05, 0.2), (0.0, 0.0)])
@pytest.mark.parametrize("lr", [1e-4, 0.01, 1.0])
def test_it_is_the_gradient_mapping(metric, l1, l2, lr):
    """d · (w − w⁺) / lr with w⁺ a proximal step; (w − w⁺) / lr in the euclidean metric."""
    w, optimizer = _solved(steps=20, l1=0.02)
    w.data[:3] = torch.tensor([0.0, 1e-5, -1e-5])
    optimizer.param_groups[0].update(l1=l1, l2=l2, lr=lr, metric=metric)
    w.grad = _gradient(w)
    d = (optimizer.state[w]["exp_avg_sq"] / (1 - 0.999**20)).sqrt() + 1e-8
    step = lr / d if metric == "adaptive" else lr
    mapping = (w - prox_elastic_net(w - lr * w.grad / d, l1, l2, step)) / step
    report = stationarity(optimizer, gradient="grad")
    assert report.max == pytest.approx(mapping.abs().max().item(), rel=1e-9)
    assert report.total == pytest.approx(mapping.square().mean().sqrt().item(), rel=1e-9)


def test_at_lr_0_it_is_the_distance_from_the_subdifferential():
    w, optimizer = _solved(steps=20)
    assert 0 < w.count_nonzero() < 10
    w.grad = _gradient(w)
    bound = stationarity(optimizer, gradient="grad").max
    optimizer.param_groups[0]["lr"] = 0.0
    report = stationarity(optimizer, gradient="grad")
    assert report.max == pytest.approx(_kkt(w, 0.1).max().item(), rel=1e-12)
    assert bound <= report.max


def test_residuals_by_parameter_group_and_in_all(monkeypatch):
    monkeypatch.setattr(reading, "_CPU_CHUNK", 2)
    first, second = weights((3,), (5,))
    optimizer = ProxAdam([{"params": [first], "l1": 0.1}, {"params": [second]}], lr=0.01)
    optimizer.step()
    report = stationarity(optimizer)
    one, two = report.params["0.0"], report.params["1.0"]
    assert report.groups == [one, two]
    assert two == pytest.approx(second.grad.square().mean().sqrt().item(), rel=1e-5)  # no l1
    assert report.total == pytest.approx(math.sqrt((3 * one**2 + 5 * two**2) / 8))
    assert report.max >= max(one, two)


def test_the_moment_stands_for_the_gradient():
    w, optimizer = _solved(steps=30)
    assert stationarity(optimizer).max != stationarity(optimizer, gradient="grad").max
    w.grad = optimizer.state[w]["exp_avg"] / (1 - 0.9**30)
    assert stationarity(optimizer, gradient="grad").max == pytest.approx(
        stationarity(optimizer).max, rel=1e-12
    )


def test_what_has_no_state_is_left_out():
    stepped, without = weights((3,), (3,))
    without.grad = None
    optimizer = ProxAdam([{"params": [stepped]}, {"params": [without]}])
    report = stationarity(optimizer)
    assert report.params == {} and math.isnan(report.total) and math.isnan(report.max)
    optimizer.step()
    report = stationarity(optimizer)
    assert list(report.params) == ["0.0"]
    assert report.total == report.groups[0] > 0 and math.isnan(report.groups[1])


def test_of_torchs_own_adam():
    (param,) = weights((5,))
    optimizer = torch.optim.Adam([param])
    optimizer.step()
    rms = param.grad.square().mean().sqrt().item()
    assert stationarity(optimizer).total == pytest.approx(rms, rel=1e-5)


def test_bfloat16_weights_are_measured_in_float32():
    (param,) = weights((500,), dtype=torch.bfloat16)
    optimizer = ProxAdam([param])
    optimizer.step()
    expected = (optimizer.state[param]["exp_avg"].float() / 0.1).square().mean().sqrt().item()
    assert stationarity(optimizer).total == pytest.approx(expected, rel=1e-5)


def test_nan_shows():
    (param,) = weights((5,))
    optimizer = ProxAdam([param])
    optimizer.step()
    param.data[0] = math.nan
    assert math.isnan(stationarity(optimizer).max) and math.isnan(stationarity(optimizer).total)


STATIONARITY_ERRORS = {
    "gradient": ({"gradient": "m"}, torch.float32, ValueError, "Invalid gradient: 'm'"),
    "complex": ({}, torch.complex64, ValueError, "got a complex one of shape (3,)"),
}


@pytest.mark.parametrize("case", STATIONARITY_ERRORS)
def test_refusals_of_stationarity(case):
    options, dtype, kind, words = STATIONARITY_ERRORS[case]
    optimizer = ProxAdam(weights((3,), dtype=dtype))
    optimizer.step()
    raised, text = error_of(stationarity, optimizer, **options)
    assert raised is kind
    assert words in text
