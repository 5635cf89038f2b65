"""Problems of rows with a known answer: group lasso, sparse group lasso, several tasks at once."""

from __future__ import annotations

import math

import pytest
import torch
from sklearn.datasets import load_linnerud
from sklearn.linear_model import MultiTaskLasso
from torch.nn import Parameter

from proxadam import ProxAdam

F64 = torch.float64


def _generated(features=30, tasks=5, alive=6):
    """A regression of which few features are of use, and for all tasks."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(120, features, generator=generator, dtype=F64)
    x += 0.5 * x.roll(1, 1)  # neighbours are correlated
    truth = torch.zeros(features, tasks, dtype=F64)
    truth[:: features // alive][:alive] = torch.randn(alive, tasks, generator=generator, dtype=F64)
    noise = torch.randn(120, tasks, generator=generator, dtype=F64)
    return _standardised(x), _standardised(x @ truth + 0.3 * noise)


def _linnerud():
    x, y = (torch.as_tensor(a, dtype=F64) for a in load_linnerud(return_X_y=True))
    return _standardised(x), _standardised(y)


def _standardised(a):
    return (a - a.mean(0)) / a.std(0, correction=0)


PROBLEMS = {"generated": _generated(), "linnerud": _linnerud()}


def _slope(problem, w, l2):
    x, y = problem
    return x.T @ (x @ w - y) / len(y) + l2 * w


def _kkt(problem, w, l21, l1=0.0, l2=0.0):
    """Distance of 0 from the subdifferential of the objective at w, in float64."""
    slope = _slope(problem, w, l2)
    strength = l21 * math.sqrt(w.shape[1])
    norm = w.norm(dim=1, keepdim=True)
    beyond = slope.sign() * (slope.abs() - l1).clamp(min=0)
    dead = (beyond.norm(dim=1) - strength).clamp(min=0)
    pulled = slope + strength * w / norm
    off = torch.where(w == 0, (pulled.abs() - l1).clamp(min=0), pulled + l1 * w.sign())
    return torch.where(norm.squeeze(1) == 0, dead, off.nan_to_num().abs().amax(1)).max().item()


def _solve(backend, problem, l21, l1=0.0, l2=0.0, *, steps=2000, dtype=F64, **options):
    x, y = problem
    gram, slope = (x.T @ x / len(y)).to(dtype), (x.T @ y / len(y)).to(dtype)
    w = Parameter((torch.randn(slope.shape, dtype=F64) * 0.3).to(dtype))
    optimizer = ProxAdam([w], lr=0.01, l21=l21, l1=l1, l2=l2, **options, **backend.options)
    for _ in range(steps):
        w.grad = gram @ w.detach() - slope
        optimizer.step()
    return w.detach().double()


@pytest.mark.parametrize(
    ("name", "alpha"), [("generated", 0.1), ("generated", 0.4), ("linnerud", 0.2)]
)
def test_the_solution_is_that_of_multi_task_lasso(backend, name, alpha):
    """A solver that shares nothing with ours; its objective has alpha where ours has l21 √n."""
    problem = PROBLEMS[name]
    x, y = problem
    l21 = alpha / math.sqrt(y.shape[1])
    w = _solve(backend, problem, l21)
    theirs = MultiTaskLasso(alpha, fit_intercept=False, tol=1e-14, max_iter=100_000).fit(x, y)
    expected = torch.from_numpy(theirs.coef_).T
    assert _kkt(problem, w, l21) <= 1e-10
    assert torch.equal((w == 0).all(1), (expected == 0).all(1))
    assert 0 < (w == 0).all(1).sum() < len(w)
    torch.testing.assert_close(w, expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("options", [{}, {"amsgrad": True}, {"max_shrink": 3.0}])
@pytest.mark.parametrize(("l1", "l2"), [(0.0, 0.1), (0.03, 0.0), (0.03, 0.05)])
def test_sparse_groups_are_solved_to_kkt(backend, l1, l2, options):
    problem = PROBLEMS["generated"]
    w = _solve(backend, problem, 0.08, l1, l2, **options)
    assert _kkt(problem, w, 0.08, l1, l2) <= 1e-10
    dead = (w == 0).all(1)
    assert 0 < dead.sum() < len(w)
    if l1:
        assert (w[~dead] == 0).any(), "l1 makes zeros in rows that live"


def test_float32_finds_the_same_rows(backend):
    problem = PROBLEMS["generated"]
    w = _solve(backend, problem, 0.08, 0.03, dtype=torch.float32)
    exact = _solve(backend, problem, 0.08, 0.03)
    assert torch.equal(w == 0, exact == 0)
    assert _kkt(problem, w, 0.08, 0.03) <= 2e-6


def test_the_smallest_strength_that_leaves_no_row(backend):
    """max_rows ‖xᵀy‖ / (len · √n): at it nothing lives, and below the row of the maximum."""
    problem = PROBLEMS["generated"]
    norms = _slope(problem, torch.zeros(30, 5, dtype=F64), 0.0).norm(dim=1) / math.sqrt(5)
    most = norms.max().item()
    assert _solve(backend, problem, most * 1.0001, steps=1500).count_nonzero() == 0
    w = _solve(backend, problem, most * 0.98, steps=1500)
    assert w.norm(dim=1).nonzero().flatten().tolist() == [norms.argmax().item()]


def test_the_euclidean_metric_solves_another_problem(backend):
    problem = PROBLEMS["generated"]
    w = _solve(backend, problem, 0.08, metric="euclidean", steps=1500)
    assert _kkt(problem, w, 0.08) > 1e-2
