"""Problems with a known answer, solved to it: the lasso and the elastic net on diabetes data."""

from __future__ import annotations

import pytest
import torch
from sklearn.datasets import load_diabetes
from torch.nn import Parameter

from proxadam import ProxAdam, stationarity

LAMBDA_MAX = 0.586450134474689  # the smallest l1 that leaves no weight; coordinate 2 enters first


def _diabetes(dtype):
    x, y = (torch.as_tensor(a, dtype=torch.float64) for a in load_diabetes(return_X_y=True))
    x = (x - x.mean(0)) / x.std(0, correction=0)
    y = (y - y.mean()) / y.std(correction=0)
    return x.to(dtype), y.to(dtype)


def _solve(backend, dtype, l1, l2=0.0, steps=1500, lr=0.01, **options):
    x, y = _diabetes(dtype)
    start = torch.randn(10, dtype=torch.float64) * 0.3
    w = Parameter(start.to(dtype))
    optimizer = ProxAdam([w], lr=lr, l1=l1, l2=l2, **options, **backend.options)
    for _ in range(steps):
        w.grad = x.T @ (x @ w.detach() - y) / len(y)
        optimizer.step()
    return w.detach().double()


def _kkt(w, l1, l2=0.0):
    """Distance of 0 from the subdifferential of the objective at w, in float64."""
    x, y = _diabetes(torch.float64)
    slope = x.T @ (x @ w - y) / len(y) + l2 * w
    off = torch.where(w == 0, (slope.abs() - l1).clamp(min=0), slope + l1 * w.sign())
    return off.abs().max().item()


def _objective(w, l1, l2=0.0):
    x, y = _diabetes(torch.float64)
    return ((x @ w - y).square().mean() / 2 + l1 * w.abs().sum() + l2 / 2 * w.square().sum()).item()


PROBLEMS = {
    "lasso": (0.1, 0.0, 0.33741500376788, [2, 3, 6, 8]),
    "lasso-low": (0.03, 0.0, 0.277571386396446, [1, 2, 3, 4, 6, 8, 9]),
    "enet": (0.05, 0.1, 0.307042651459885, [1, 2, 3, 6, 8, 9]),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("options", [{}, {"amsgrad": True}, {"max_shrink": 3.0}])
def test_solved_to_kkt_with_the_exact_support(backend, dtype, problem, options):
    l1, l2, optimum, support = PROBLEMS[problem]
    w = _solve(backend, dtype, l1, l2, **options)
    assert _kkt(w, l1, l2) <= (1e-12 if dtype == torch.float64 else 1e-6)
    assert w.nonzero().flatten().tolist() == support
    gap = _objective(w, l1, l2) - optimum
    assert abs(gap) <= (1e-13 if dtype == torch.float64 else 1e-6)


def _reweighted(l1, knee, l2=0.0):
    """A stationary point by an independent way: coordinate descent on ever new weighted lassos."""
    x, y = _diabetes(torch.float64)
    gram, slope = x.T @ x / len(y), x.T @ y / len(y)
    w = torch.zeros(10, dtype=torch.float64)
    for _ in range(2000):
        pulls = l1 / (1 + w.abs() / knee)
        for j in range(10):
            rest = slope[j] - gram[j] @ w + gram[j, j] * w[j]
            w[j] = rest.sign() * (rest.abs() - pulls[j]).clamp(min=0) / (gram[j, j] + l2)
    return w


@pytest.mark.parametrize("l2", [0.0, 0.1])
@pytest.mark.parametrize("knee", [0.05, 0.3])
def test_a_knee_leads_to_stationary_points_of_the_log_penalty(backend, knee, l2):
    """loss + l1 · knee · Σ log(1 + |w| / knee), which is not convex: from zero, the same point."""
    l1 = 0.1
    x, y = _diabetes(torch.float64)
    w = Parameter(torch.zeros(10, dtype=torch.float64))
    optimizer = ProxAdam([w], lr=0.01, l1=l1, l2=l2, l1_knee=knee, **backend.options)
    for _ in range(4000):
        w.grad = x.T @ (x @ w.detach() - y) / len(y)
        optimizer.step()
    w.grad = x.T @ (x @ w.detach() - y) / len(y)
    assert stationarity(optimizer, gradient="grad").max <= 1e-12
    w, expected = w.detach(), _reweighted(l1, knee, l2)
    slope = x.T @ (x @ w - y) / len(y) + l2 * w
    pull = l1 / (1 + w.abs() / knee)
    off = torch.where(w == 0, (slope.abs() - l1).clamp(min=0), slope + pull * w.sign())
    assert off.abs().max() <= 1e-12
    lasso = _solve(backend, torch.float64, l1, l2)
    assert w.abs().sum() > lasso.abs().sum(), "a knee spares the survivors"
    torch.testing.assert_close(w, expected, rtol=0, atol=1e-9)


def test_known_weights(backend):
    w = _solve(backend, torch.float64, 0.1)
    expected = torch.tensor([0.304858091813, 0.106320753279, -0.05843815838, 0.264740936849])
    torch.testing.assert_close(w[[2, 3, 6, 8]], expected.double(), rtol=0, atol=1e-8)


def test_duality_gap_closes(backend):
    """A certificate that needs no known answer: the dual value of the scaled residual."""
    l1 = 0.1
    w = _solve(backend, torch.float64, l1)
    x, y = _diabetes(torch.float64)
    n = len(y)
    residual = y - x @ w
    theta = residual / n * min(1.0, l1 / (x.T @ residual / n).abs().max().item())
    dual = theta @ y - n / 2 * theta @ theta
    assert abs(_objective(w, l1) - dual.item()) < 1e-12


def test_lambda_max_empties_the_model_and_the_first_feature_enters_below(backend):
    assert _solve(backend, torch.float64, LAMBDA_MAX * 1.0001, steps=1500).count_nonzero() == 0
    w = _solve(backend, torch.float64, LAMBDA_MAX * 0.99, steps=1500)
    assert w.nonzero().flatten().tolist() == [2]


def test_euclidean_metric_solves_another_problem(backend):
    """Why adaptive is the default: the Euclidean prox after Adam misses the support of four."""
    w = _solve(backend, torch.float64, 0.1, metric="euclidean")
    assert _kkt(w, 0.1) > 1e-2
    assert w.count_nonzero() >= 8


def test_an_unpenalised_group_is_plain_adam():
    """l1 = 0 for a group: its trajectory is Adam's, while the other group loses weights."""
    torch.manual_seed(1)
    rows, bias = Parameter(torch.randn(30, dtype=torch.float64)), Parameter(torch.zeros(1))
    twin = Parameter(bias.detach().clone())
    ours = ProxAdam([{"params": [rows], "l1": 0.5}, {"params": [bias]}], lr=0.05, fused=False)
    adam = torch.optim.Adam([twin], lr=0.05, foreach=False)
    for _ in range(60):
        rows.grad = torch.randn(30, dtype=torch.float64) * 0.1
        bias.grad = torch.randn(1)
        twin.grad = bias.grad.clone()
        ours.step()
        adam.step()
    assert torch.equal(bias, twin)
    assert rows.count_nonzero() < 30
