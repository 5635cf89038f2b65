"""What sparsity, stationarity and suggest_l21 say of rows; shards of them are in ranks/rows.py."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import Parameter

from proxadam import (
    ProxAdam,
    ProxAdamW,
    prox_group,
    soft_threshold,
    sparsity,
    stationarity,
    suggest_l21,
)
from proxadam._sparsity import reading
from storages import each_dtype
from tools import error_of, weights

# ---- sparsity(...).rows -----------------------------------------------------------------------


@each_dtype
def test_dead_rows_by_parameter_group_and_in_all(dtype, monkeypatch):
    monkeypatch.setattr(reading, "_CPU_CHUNK", 64)
    a, b, c, bias = (torch.ones(s, dtype=dtype) for s in ((40, 5), (4, 2, 3), (8, 100), (7,)))
    a[3:23] = 0
    a[4, 2] = 1e-3
    b[1] = b[2] = -0.0
    c[:, :99] = 0
    bias[:] = 0
    groups = [{"params": [Parameter(a), Parameter(bias)]}, {"params": [Parameter(b), Parameter(c)]}]
    report = sparsity(ProxAdam(groups))
    assert report.rows.params == {"0.0": 19 / 40, "1.0": 0.5, "1.1": 0.0}
    assert report.rows.groups == [19 / 40, 2 / 12]
    assert report.rows.total == float(report.rows) == 21 / 52
    assert report.params["0.1"] == 1.0


def test_dead_rows_of_a_model_by_name():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Linear(4, 2))
    with torch.no_grad():
        model[0].weight[:6] = 0
    report = sparsity(model).rows
    assert report.params == {"0.weight": 0.75, "1.weight": 0.0}
    assert (report.groups, report.total) == ([], 0.6)


def test_rows_in_any_memory_format():
    model = nn.Conv2d(3, 8, 3).to(memory_format=torch.channels_last)
    with torch.no_grad():
        model.weight[1] = 0
        model.weight[2:, :, 1] = 0
    assert sparsity(model).rows.total == 1 / 8


def test_a_row_of_nan_is_alive_and_what_has_no_rows_is_nan():
    param = Parameter(torch.full((2, 3), math.nan))
    assert sparsity(ProxAdam([param])).rows.total == 0.0
    for shape in ((5,), (), (0, 3), (3, 0)):
        report = sparsity(ProxAdam([Parameter(torch.ones(shape))])).rows
        assert report.params == {}
        assert math.isnan(report.total)


def test_rows_are_a_snapshot():
    param = Parameter(torch.eye(4))
    report = sparsity(ProxAdam([param]))
    param.data.zero_()
    assert report.rows.total == 0.0


# ---- stationarity with l21 --------------------------------------------------------------------


class Problem:
    """Least squares for a matrix of weights, of which some rows are best at zero."""

    def __init__(self, rows=6, inputs=5):
        torch.manual_seed(0)
        self.x = torch.randn(200, inputs, dtype=torch.float64)
        self.x *= torch.linspace(0.3, 3, inputs)
        true = torch.randn(rows, inputs, dtype=torch.float64)
        true *= torch.tensor([0.0, 1.0, 0.1] * (rows // 3)).unsqueeze(1)
        self.y = self.x @ true.T + 0.1 * torch.randn(200, rows, dtype=torch.float64)
        self.w = Parameter(torch.randn(rows, inputs, dtype=torch.float64) * 0.3)

    def gradient(self):
        return (self.x @ self.w.detach().T - self.y).T @ self.x / len(self.x)

    def solved(self, steps=1500, **options):
        optimizer = ProxAdam(
            [self.w], **{"lr": 0.01, "l21": 0.1, "max_shrink": math.inf, **options}
        )
        for _ in range(steps):
            self.w.grad = self.gradient()
            optimizer.step()
        self.w.grad = self.gradient()
        return optimizer


SOLVABLE = {
    "group-lasso": {},
    "sparse-group-lasso": {"l1": 0.1},
    "with-l2": {"l1": 0.02, "l2": 0.1},
    "amsgrad": {"amsgrad": True, "l1": 0.02},
    "tensors": {"l21": torch.tensor(0.1, dtype=torch.float64), "lr": torch.tensor(0.01)},
}


@pytest.mark.parametrize("case", SOLVABLE)
def test_zero_at_the_optimum_and_nowhere_else(case):
    problem = Problem()
    w = problem.w
    optimizer = problem.solved(**SOLVABLE[case])
    assert 0 < (w == 0).all(1).sum() < len(w)
    assert stationarity(optimizer).max <= 1e-9
    for lr in (0.0, 1e-12, 1.0):
        optimizer.param_groups[0]["lr"] = lr
        assert stationarity(optimizer, gradient="grad").max <= 1e-9
        for i in range(w.numel()):
            before = w.detach().clone()
            w.data.view(-1)[i] += 1e-4
            w.grad = problem.gradient()
            assert stationarity(optimizer, gradient="grad").max > 1e-8
            w.data.copy_(before)
            w.grad = problem.gradient()


@pytest.mark.parametrize("metric", ["adaptive", "euclidean"])
@pytest.mark.parametrize(
    ("l1", "l2", "l21"), [(0.1, 0.0, 0.1), (0.05, 0.2, 0.3), (0.0, 0.0, 0.05), (0.0, 0.1, 2.0)]
)
@pytest.mark.parametrize("lr", [1e-4, 0.01, 1.0])
def test_it_is_the_gradient_mapping_of_rows(metric, l1, l2, l21, lr, monkeypatch):
    monkeypatch.setattr(reading, "_CPU_CHUNK", 12)  # two rows
    problem = Problem()
    optimizer = problem.solved(steps=20, l21=0.02)
    problem.w.data[0] = 0.0
    problem.w.data[1:3, 0] = torch.tensor([1e-5, -1e-5])
    optimizer.param_groups[0].update(l1=l1, l2=l2, lr=lr, metric=metric, l21=l21)
    w = problem.w
    w.grad = problem.gradient()
    d = (optimizer.state[w]["exp_avg_sq"] / (1 - 0.999**20)).sqrt() + 1e-8
    step = lr / d if metric == "adaptive" else torch.full_like(d, lr)
    after = prox_group(w.detach() - lr * w.grad / d, l21, step, l1=l1, l2=l2)
    mapping = (w - after) / step
    report = stationarity(optimizer, gradient="grad")
    assert report.max == pytest.approx(mapping.abs().max().item(), rel=1e-6)
    assert report.total == pytest.approx(mapping.square().mean().sqrt().item(), rel=1e-6)


def test_at_lr_0_it_is_the_distance_from_the_subdifferential_of_rows():
    """In the euclidean metric, whose norm is the usual one; for each kind of row."""
    l1, l2, l21 = 0.05, 0.1, 0.2
    (w,) = weights((40, 6), dtype=torch.float64)
    w.data[:20] = 0.0
    w.data[25:, 2] = 0.0
    w.grad[:10] *= 0.1
    optimizer = ProxAdam([w], lr=0.0, l1=l1, l2=l2, l21=l21, metric="euclidean", betas=(0.0, 0.0))
    optimizer.step()
    g = w.grad / (w.grad.abs() + 1e-8)
    slope = g + l2 * w
    rest = soft_threshold(g, l1)
    norm = rest.norm(dim=1, keepdim=True)
    dead = rest * (1 - l21 * math.sqrt(6) / norm).clamp(min=0)
    live = slope + l21 * math.sqrt(6) * w / w.norm(dim=1, keepdim=True)
    live = torch.where(w == 0, soft_threshold(live, l1), live + l1 * w.sign())
    expected = torch.where((w == 0).all(1, keepdim=True), dead, live).detach()
    report = stationarity(optimizer, gradient="grad")
    assert report.max == pytest.approx(expected.abs().max().item(), rel=1e-12)
    assert report.total == pytest.approx(expected.square().mean().sqrt().item(), rel=1e-12)


@pytest.mark.parametrize("lr", [1e-9, 0.0])
def test_small_learning_rates_cancel_nothing(lr):
    """In float32 too, where w − w⁺ would be of a few bits."""
    (w,) = weights((50, 30))
    optimizer = ProxAdam([w], lr=0.0, l1=0.1, l21=0.1)
    optimizer.step()
    optimizer.param_groups[0]["lr"] = lr
    twin = Parameter(w.detach().double())
    twin.grad = w.grad.double()
    exact = ProxAdam([twin], lr=0.0, l1=0.1, l21=0.1)
    exact.step()
    exact.param_groups[0]["lr"] = lr
    actual, expected = (stationarity(o, gradient="grad") for o in (optimizer, exact))
    assert actual.total == pytest.approx(expected.total, rel=1e-5)
    assert actual.max == pytest.approx(expected.max, rel=1e-5)


def test_kept_zeros_take_no_part_in_their_rows():
    problem = Problem()
    problem.w.data[:, 1] = 0.0
    problem.w.data[1] = 0.0
    optimizer = problem.solved(keep_zeros=True)
    kept = (problem.w == 0).clone()
    assert stationarity(optimizer).max <= 1e-9
    assert torch.equal(problem.w == 0, kept)
    optimizer.param_groups[0]["keep_zeros"] = False
    assert stationarity(optimizer).max > 0.01


def test_without_l21_nothing_changes():
    """Not a bit, whatever the shape; and vectors have no rows."""
    (matrix, vector) = weights((7, 5), (9,))
    reports = []
    for l21 in (0.0, torch.tensor(0.0), 1.0):
        optimizer = ProxAdam([vector if l21 == 1.0 else matrix], lr=1e-3, l1=0.1, l21=l21)
        optimizer.step()
        reports.append(stationarity(optimizer))
    optimizer = ProxAdam([vector], lr=1e-3, l1=0.1)
    optimizer.step()
    assert reports[2].max == pytest.approx(stationarity(optimizer).max, rel=1e-3)


# ---- suggest_l21 ------------------------------------------------------------------------------


def _running(metric="adaptive", dtype=torch.float32, steps=3, **options):
    first, second = weights((40, 25), (300,), (10, 10, 5), dtype=dtype), weights((7, 7))
    groups = [{"params": first, "l21": 0.1}, {"params": second, "l21": 0.0}]
    optimizer = ProxAdamW(groups, metric=metric, **options)
    for _ in range(steps):
        for param in first + second:
            param.grad = torch.randn_like(param) * torch.rand(len(param)).view(
                -1, *[1] * (param.ndim - 1)
            ).to(dtype)
        optimizer.step()
    return optimizer


def _needed(optimizer, l1, groups=(0,)):
    """The l21 at which each row rests, from the state and the equations."""
    found = []
    for group in (optimizer.param_groups[i] for i in groups):
        for param in group["params"]:
            if param.ndim < 2:
                continue
            state, (beta1, beta2) = optimizer.state[param], group["betas"]
            t = state["step"].item()
            m = state["exp_avg"].double() / (1 - beta1**t)
            d = (state["exp_avg_sq"].double() / (1 - beta2**t)).sqrt() + group["eps"]
            m = soft_threshold(m / d if group["metric"] == "euclidean" else m, l1).flatten(1)
            found.append(m.norm(dim=1) / math.sqrt(m.shape[1]))
    return torch.cat(found)


@pytest.mark.parametrize("metric", ["adaptive", "euclidean"])
@pytest.mark.parametrize("l1", [0.0, 0.05])
@pytest.mark.parametrize("share", [0.01, 0.5, 0.9, 0.999])
def test_the_smallest_l21_that_lets_so_many_rows_rest(metric, l1, share, monkeypatch):
    monkeypatch.setattr(reading, "_CPU_CHUNK", 64)
    optimizer = _running(metric, l1=l1)
    guess = suggest_l21(optimizer, share)
    needed = _needed(optimizer, l1)
    assert guess == pytest.approx(needed.sort().values[math.ceil(share * 50) - 1].item(), rel=1e-5)


def test_rows_at_rest_stay_dead_with_the_guess():
    """The claim itself: gradients that stay as they are let the wanted share die."""
    (param,) = weights((1000, 8))
    param.grad *= torch.rand(1000, 1)
    optimizer = ProxAdam([param], lr=0.01, l1=0.1)
    for _ in range(10):
        optimizer.step()
    optimizer.param_groups[0]["l21"] = suggest_l21(optimizer, 0.8, groups=[0])
    param.data.zero_()
    optimizer.step()
    assert (param == 0).all(1).sum() in (799, 800, 801)  # the one at the threshold may be rounded


def test_which_groups_and_which_weights():
    optimizer = _running()
    one, other = (suggest_l21(optimizer, 0.7, groups=[i]) for i in (0, 1))
    assert suggest_l21(optimizer, 0.7) == one != other  # those with l21
    optimizer.param_groups[0]["l21"] = 0.0
    assert suggest_l21(optimizer, 0.7) == suggest_l21(optimizer, 0.7, groups=[0, 1])
    for group in optimizer.param_groups:
        group["keep_zeros"] = True
        for param in group["params"]:
            param.data[: len(param) // 2 + 1] = 0.0
    assert suggest_l21(optimizer, 0.5) == 0.0


def test_of_torchs_own_adamw():
    params = weights((10, 10))
    ours, theirs = ProxAdamW(params), torch.optim.AdamW(params)
    ours.step()
    theirs.step()
    assert suggest_l21(theirs, 0.7) == suggest_l21(ours, 0.7) > 0


def _flat():
    optimizer = ProxAdam(weights((300,)))
    optimizer.step()
    return optimizer


ERRORS = {
    "percent": (_running, {"row_sparsity": 50}, ValueError, "Invalid row_sparsity: 50"),
    "no-step": (lambda: _running(steps=0), {}, ValueError, "call suggest_l21 later"),
    "no-rows": (_flat, {}, ValueError, "got one without moments"),
    "absent-group": (_running, {"groups": [2]}, IndexError, "out of range"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_refusals_of_suggest_l21(case):
    make, options, kind, words = ERRORS[case]
    raised, text = error_of(suggest_l21, make(), **options)
    assert raised is kind
    assert words in text


def test_two_metrics_have_no_common_l21():
    optimizer = _running()
    optimizer.param_groups[1]["metric"] = "euclidean"
    raised, text = error_of(suggest_l21, optimizer, groups=[0, 1])
    assert raised is ValueError and "whose l21 differ in units" in text


def test_gradients_that_are_not_finite():
    optimizer = _running()
    optimizer.param_groups[0]["params"][0].grad[:] = math.nan
    optimizer.step()
    raised, text = error_of(suggest_l21, optimizer, 0.9)
    assert raised is ValueError and "inf or NaN" in text
    assert 0 < suggest_l21(optimizer, 0.1) < 10
