"""The proximal operators, and the step as one: certificates of optimality and exact zeros."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import Parameter

from proxadam import ProxAdam, prox_elastic_net, prox_log_elastic_net, soft_threshold
from storages import FP32, FP64
from tools import assert_same_bits

F64 = torch.float64
strength = st.sampled_from([0.0, 1e-3, 0.3, 2.0])


def _objective(y, x, l1, l2, step_size):
    return l1 * y.abs() + l2 / 2 * y**2 + (y - x) ** 2 / (2 * step_size)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(l1=strength, l2=strength, step_size=st.sampled_from([1e-3, 0.5, 10.0]), seed=st.integers(0))
def test_elastic_net_is_the_argmin(l1, l2, step_size, seed):
    x = torch.randn(50, dtype=F64, generator=torch.Generator().manual_seed(seed % 2**31))
    metric = step_size * torch.rand(50, dtype=F64) + 1e-3
    for steps in (step_size, metric):
        y = prox_elastic_net(x, l1, l2, steps)
        best = _objective(y, x, l1, l2, steps)
        for h in (1e-3, 1e-6):
            for moved in (y + h, y - h):
                assert (best <= _objective(moved, x, l1, l2, steps) + 1e-15).all()
        # 0 ∈ l1 ∂|y| + l2 y + (y − x) / step_size
        slope = l2 * y + (y - x) / steps
        off = torch.where(y == 0, (slope.abs() - l1).clamp(min=0), slope + l1 * y.sign())
        assert (off.abs() <= 1e-13 * (1 + x.abs() / steps)).all()


@settings(max_examples=30, deadline=None, derandomize=True)
@given(l1=strength, l2=strength, knee=st.sampled_from([0.01, 1.0]), seed=st.integers(0))
def test_log_elastic_net_is_the_argmin_and_majorises(l1, l2, knee, seed):
    x, weight = torch.randn(2, 50, dtype=F64, generator=torch.Generator().manual_seed(seed % 2**31))
    weight[:5] = 0.0
    slope = 1 / (1 + weight.abs() / knee)
    y = prox_log_elastic_net(x, weight, l1, knee, l2, 0.5)
    best = _objective(y, x, l1 * slope, l2, 0.5)
    for moved in (y + 1e-3, y - 1e-3, torch.zeros_like(y)):
        assert (best <= _objective(moved, x, l1 * slope, l2, 0.5) + 1e-15).all()
    tangent = knee * (1 + weight.abs() / knee).log() + slope * (x.abs() - weight.abs())
    assert (tangent >= knee * (1 + x.abs() / knee).log() - 1e-12).all()
    assert torch.equal(
        prox_log_elastic_net(x, weight, l1, math.inf, l2), prox_elastic_net(x, l1, l2)
    )


@pytest.mark.parametrize("knee", [1e-320, 1e-45, torch.tensor(1e-45)], ids=str)
@pytest.mark.parametrize("metric", ["adaptive", "euclidean"])
def test_a_knee_so_small_that_its_inverse_overflows(backend, storage, knee, metric):
    """Zeros are pulled, and other weights let go."""
    if isinstance(knee, torch.Tensor) and backend.name.endswith("foreach"):
        knee = knee.item()
    w, g = torch.tensor([0.0, 1.0, -2.0]), torch.tensor([0.5, 0.0, 0.0])
    new, _ = _one_step(backend, storage, w, g, lr=0.1, l1=0.75, l1_knee=knee, metric=metric)
    assert torch.equal(new.double()[1:], w[1:].double())
    assert (new[0] == 0) == (metric == "adaptive")


def test_an_infinite_knee_is_plain_l1_to_the_bit(backend, storage):
    """Also as a tensor."""
    w, g = torch.randn(300), torch.randn(300)
    options = {"lr": 0.05, "l1": 0.3, "l2": 0.1, "weight_decay": 0.1}
    expected, _ = _one_step(backend, storage, w, g, **options)
    for knee in (math.inf, torch.tensor(math.inf)):
        found, _ = _one_step(backend, storage, w, g, l1_knee=knee, **options)
        assert_same_bits(found, expected)


def test_the_pull_halves_at_the_knee(backend):
    w, g = torch.tensor([0.25, 1e-9, 0.75]), torch.zeros(3)
    options = {"lr": 1e-3, "l1": 1.0, "metric": "euclidean", "l1_knee": 0.25}
    new, _ = _one_step(backend, FP64, w, g, **options)
    pulls = (w.double() - new.double()) / 1e-3
    assert pulls[0].item() == pytest.approx(0.5, rel=1e-9)
    assert pulls[2].item() == pytest.approx(0.25, rel=1e-9)


def test_known_values():
    x = torch.tensor([0.9], dtype=F64)
    assert prox_elastic_net(x, 0.3, 0.7, 0.1 / 0.25).item() == pytest.approx(0.609375, rel=1e-15)
    x = torch.tensor([3.0, -3.0, 0.5, -0.5, 0.0], dtype=F64)
    assert torch.equal(soft_threshold(x, 1.0), torch.tensor([2.0, -2, 0, 0, 0], dtype=F64))
    assert torch.equal(soft_threshold(x, 0.0), x)


def test_threshold_comes_before_the_scale():
    x = torch.tensor([1.0], dtype=F64)
    assert prox_elastic_net(x, 0.5, 1.0).item() == 0.25  # scale first would give 0


@pytest.mark.parametrize("threshold", [0.7, torch.tensor(0.7, dtype=F64)], ids=["float", "tensor"])
def test_soft_threshold_is_odd_monotone_and_nonexpansive(threshold):
    x = torch.linspace(-3, 3, 1001, dtype=F64)
    y = soft_threshold(x, threshold)
    assert torch.equal(soft_threshold(-x, threshold), -y + 0.0)
    assert (y.diff() >= 0).all()
    assert (y.diff() <= x.diff() * (1 + 1e-12)).all()
    assert (y.abs() <= x.abs()).all()


def test_zeros_are_positive_and_nan_survives():
    x = torch.tensor([-0.1, -0.0, 0.0, 0.1, math.nan, math.inf, -math.inf])
    y = soft_threshold(x, 0.5)
    assert (y[:4] == 0).all()
    assert not y[:4].signbit().any()
    assert y[4].isnan()
    assert torch.equal(y[5:], x[5:])


def test_complex_threshold_acts_on_the_modulus():
    x = torch.tensor([3 + 4j, 0.3 + 0.4j, 0j], dtype=torch.complex128)
    expected = torch.tensor([3 + 4j, 0, 0], dtype=torch.complex128) * 0.8
    assert torch.allclose(soft_threshold(x, 1.0), expected, atol=0, rtol=1e-15)


# ---- the step as a prox -----------------------------------------------------------------------


def _one_step(backend, storage, param, grad, **options):
    param = storage.parameter(torch.as_tensor(param, device=backend.device).clone())
    param.grad = storage.gradient(torch.as_tensor(grad, device=backend.device))
    optimizer = ProxAdam([param], **options, **storage.options, **backend.options)
    optimizer.step()
    return param.detach(), optimizer.state[param]


def test_step_solves_its_subproblem(backend):
    """w⁺ = argmin ⟨m̂, w⟩ + R(w) + ‖w − w_t‖²_D / (2 lr): the KKT residual is a few ulp."""
    w, g = torch.randn(200, dtype=F64), torch.randn(200, dtype=F64)
    lr, l1, l2 = 0.3, 0.6, 0.4
    new, _ = _one_step(backend, FP64, w, g, lr=lr, l1=l1, l2=l2, max_shrink=math.inf)
    d = g.abs() + 1e-8
    slope = g + l2 * new + d / lr * (new - w)
    off = torch.where(new == 0, (slope.abs() - l1).clamp(min=0), slope + l1 * new.sign())
    assert off.abs().max() < 1e-13
    assert 0 < (new == 0).sum() < 200


@pytest.mark.parametrize("eps", [1e-8, 1e-2])
@pytest.mark.parametrize("lr", [1e-4, 1.0])
def test_zero_rests_iff_the_first_moment_is_below_l1(backend, eps, lr):
    """Whatever the metric d, lr and eps: |m̂| ≤ l1 is the whole rule."""
    l1 = 0.25
    g = torch.cat([torch.linspace(-1, 1, 401, dtype=F64), torch.tensor([l1, -l1], dtype=F64)])
    param = Parameter(torch.zeros_like(g))
    optimizer = ProxAdam([param], lr=lr, eps=eps, l1=l1, **backend.options)
    param.grad = 3 * g
    optimizer.step()
    with torch.no_grad():
        param.zero_()
    param.grad = torch.zeros_like(g)
    optimizer.step()
    m_hat = 0.9 * 0.1 * 3 * g / (1 - 0.9**2)
    clear = (m_hat.abs() - l1).abs() > 1e-12
    assert torch.equal((param == 0)[clear], (m_hat.abs() <= l1)[clear])
    assert 0 < (param == 0).sum() < len(g)


def test_a_zero_weight_grows_back(backend):
    param = Parameter(torch.zeros(1, dtype=F64))
    optimizer = ProxAdam([param], lr=0.01, l1=0.05, **backend.options)
    for grad, rests in ((0.01, True), (0.01, True), (1.0, False)):
        param.grad = torch.full_like(param, grad)
        optimizer.step()
        assert (param.item() == 0) is rests


def test_threshold_has_no_bias_correction_of_the_step(backend):
    """At t = 1 a threshold of lr/(1 − β1) · l1/d is ten times too large, 1/√v uncorrected 31.6."""
    new, _ = _one_step(backend, FP64, [1.0], [0.5], lr=0.01, l1=0.05)
    d = 0.5 + 1e-8
    assert new.item() == pytest.approx(1 - 0.01 * 0.5 / d - 0.01 * 0.05 / d, rel=1e-14)


@pytest.mark.parametrize("factor", [2.0**10, 2.0**-10])
def test_adaptive_step_is_invariant_to_the_scale_of_the_objective(backend, factor):
    w, g = torch.randn(100, dtype=F64), torch.randn(100, dtype=F64)
    plain, _ = _one_step(backend, FP64, w, g, lr=0.1, l1=0.3, l2=0.2, eps=1e-8)
    scaled, _ = _one_step(
        backend, FP64, w, factor * g, lr=0.1, l1=0.3 * factor, l2=0.2 * factor, eps=1e-8 * factor
    )
    assert torch.equal(plain, scaled)


def test_euclidean_step_is_invariant_to_the_scale_of_the_loss(backend):
    w, g = torch.randn(100, dtype=F64), torch.randn(100, dtype=F64)
    options = {"lr": 0.1, "l1": 0.3, "l2": 0.2, "metric": "euclidean"}
    plain, _ = _one_step(backend, FP64, w, g, eps=1e-8, **options)
    scaled, _ = _one_step(backend, FP64, w, 1024 * g, eps=1024e-8, **options)
    assert torch.equal(plain, scaled)


def test_step_is_odd(backend, storage):
    w, g = torch.randn(300).to(storage.param), torch.randn(300).to(storage.grad)
    options = {"lr": 0.1, "l1": 0.5, "l2": 0.1}
    there, _ = _one_step(backend, storage, w, g, **options)
    back, _ = _one_step(backend, storage, -w, -g, **options)
    assert torch.equal(there, -back + 0.0)


def test_euclidean_ridge_is_adam_then_shrink(backend):
    """AdamProx; and AdamW's decay is its first-order form, to (lr · wd)² relative."""
    w, g = torch.randn(100, dtype=F64), torch.randn(100, dtype=F64)
    adam, _ = _one_step(backend, FP64, w, g, lr=0.1)
    ridge, _ = _one_step(backend, FP64, w, g, lr=0.1, l2=0.2, metric="euclidean")
    torch.testing.assert_close(ridge, adam / (1 + 0.1 * 0.2), rtol=1e-15, atol=0)
    decayed, _ = _one_step(
        backend, FP64, w, g * 0, lr=0.1, weight_decay=0.2, decoupled_weight_decay=True
    )
    shrunk, _ = _one_step(backend, FP64, w, g * 0, lr=0.1, l2=0.2, metric="euclidean")
    assert ((decayed - shrunk).abs() <= (0.1 * 0.2) ** 2 * w.abs()).all()


@pytest.mark.parametrize("max_shrink", [1.0, 10.0])
def test_untouched_coordinates_move_by_max_shrink_at_most(backend, storage, max_shrink):
    w = torch.tensor([0.7, -0.7, 0.5, 0.0], dtype=storage.param)
    new, _ = _one_step(
        backend, storage, w, torch.zeros(4), lr=0.01, l1=1e-3, l2=1e-2, max_shrink=max_shrink
    )
    reach = max_shrink * 0.01
    expected = torch.sign(w) * (w.abs() - reach).clamp(min=0)
    tolerance = {torch.bfloat16: 2e-3, torch.float16: 3e-4}.get(storage.param, 1e-7)
    tolerance *= 2 if storage.by_chance else 1
    torch.testing.assert_close(new, expected, rtol=0, atol=tolerance)
    unbounded, _ = _one_step(
        backend, storage, w, torch.zeros(4), lr=0.01, l1=1e-3, max_shrink=math.inf
    )
    assert (unbounded == 0).all(), "without the bound an untouched weight is erased in one step"


@pytest.mark.parametrize("l1", [1e30, 3e38])
def test_huge_l1_gives_zeros_and_no_nan(backend, l1):
    w, g = torch.randn(50), torch.randn(50)
    new, _ = _one_step(backend, FP32, w, g, lr=1.0, l1=l1, l2=l1, max_shrink=math.inf)
    assert (new == 0).all()
    assert not new.signbit().any()
    still, _ = _one_step(backend, FP32, w, 0 * g, lr=1.0, l1=l1, max_shrink=math.inf)
    assert (still == 0).all()


def test_zeros_are_positive_in_every_dtype(backend, storage):
    w = torch.randn(4000).mul(0.02).to(storage.param)
    w[:100] = -torch.rand(100).mul(1e-7).to(storage.param)
    new, _ = _one_step(backend, storage, w, torch.randn(4000), lr=0.01, l1=0.3, l2=0.1)
    assert 0 < (new == 0).sum() < 4000
    assert not new[new == 0].signbit().any()


def test_stationarity_residual_is_small_only_at_the_optimum(backend):
    """d (w − w⁺) / lr, the gradient mapping, vanishes where KKT holds and nowhere else."""
    g = torch.tensor([-0.3, 0.2, 0.05], dtype=F64)  # KKT for l1 = .3 at w = (1, 0, 0)
    for w, stationary in (([1.0, 0, 0], True), ([1.0, 0, 0.1], False), ([-1.0, 0, 0], False)):
        new, state = _one_step(backend, FP64, w, g, lr=1e-3, l1=0.3, max_shrink=math.inf)
        d = (state["exp_avg_sq"] / (1 - 0.999)).sqrt() + 1e-8
        residual = (d * (torch.tensor(w, dtype=F64) - new) / 1e-3).abs().max()
        assert (residual < 1e-12) == stationary
