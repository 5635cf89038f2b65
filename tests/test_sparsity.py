"""sparsity, stationarity and suggest_l1: counts, certificates of optimality, exact quantiles."""

from __future__ import annotations

import functools
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from sklearn.datasets import load_diabetes
from torch import nn
from torch.nn import Parameter

import proxadam
from proxadam import (
    ProxAdam,
    ProxAdamW,
    _state,
    param_groups,
    prox_elastic_net,
    sparsity,
    stationarity,
    suggest_l1,
)
from tools import assert_same_bits, error_of, params_of, snapshot, weights

# --- sparsity


def _with_zeros(shape, zeros, dtype=torch.float32):
    tensor = torch.ones(shape, dtype=dtype)
    tensor.view(-1)[:zeros] = 0
    return Parameter(tensor)


def test_counts_by_parameter_group_and_in_all(dtype):
    a, b = _with_zeros((4, 5), 7, dtype), _with_zeros(10, 10, dtype)
    c = _with_zeros((), 0, dtype)
    report = sparsity(ProxAdam([{"params": [a, b]}, {"params": [c]}]))
    assert report.params == {"0.0": 0.35, "0.1": 1.0, "1.0": 0.0}
    assert report.groups == [pytest.approx(17 / 30), 0.0]
    assert report.total == float(report) == pytest.approx(17 / 31)


def test_of_a_model_by_name_each_weight_once():
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2))
    model[0].weight = model[1].weight
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[0.0, 1.0], [-0.0, 1e-45]]))
    report = sparsity(model)
    assert report.params == {"0.weight": 0.5, "1.bias": 0.0}
    assert report.groups == []
    assert report.total == pytest.approx(2 / 6)


def test_of_an_optimizer_by_the_names_it_was_given():
    model = nn.Linear(3, 2)
    optimizer = ProxAdamW(param_groups(model, l1=1.0, named=True))
    assert list(sparsity(optimizer).params) == ["weight", "bias"]


def test_nan_is_no_zero():
    model = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[math.nan, 0.0]]))
    assert float(sparsity(model)) == 0.5


def test_nothing_to_count_is_nan():
    report = sparsity(ProxAdam([{"params": [Parameter(torch.ones(0))]}]))
    assert report.params == {}
    assert math.isnan(report.groups[0]) and math.isnan(report.total)


def test_a_report_is_a_snapshot():
    param = _with_zeros(4, 1)
    report = sparsity(ProxAdam([param]))
    param.data.zero_()
    assert report.total == 0.25


def test_only_optimizers_and_models():
    raised, text = error_of(sparsity, [torch.ones(3)])
    assert (raised, text) == (TypeError, "expected an optimizer or a model, got list")


class Reads(torch.utils._python_dispatch.TorchDispatchMode):
    """Counts what makes the host wait for a device: tensors turned into numbers."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
            self.count += any(isinstance(a, torch.Tensor) and a.numel() for a in args)
        return func(*args, **(kwargs or {}))


# --- stationarity


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
    monkeypatch.setattr(_state, "_CPU_CHUNK", 2)
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


def test_dtypes_may_differ():
    params = [*weights((5,)), *weights((5,), dtype=torch.float64), *weights((0,))]
    optimizer = ProxAdam(params, l1=0.1)
    optimizer.step()
    report = stationarity(optimizer)
    assert list(report.params) == ["0.0", "0.1"]
    parts = [value**2 for value in report.params.values()]
    assert report.total == pytest.approx(math.sqrt(sum(parts) / 2))
    assert suggest_l1(optimizer) == pytest.approx(_m_hat(optimizer, 0).sort().values[8].item())


def test_strides_do_not_matter(monkeypatch):
    """The gradient, or the weight, may lie in memory in another order than the moments."""
    monkeypatch.setattr(_state, "_CPU_CHUNK", 7)
    found = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        (param,) = weights((2, 3, 4, 5))
        param.data = param.data.contiguous(memory_format=memory_format)
        optimizer = ProxAdam([param], l1=0.1)
        optimizer.step()
        for gradient in ("exp_avg", "grad"):
            report = stationarity(optimizer, gradient=gradient)
            found.append([report.total, report.max, suggest_l1(optimizer)])
    assert found[0] == pytest.approx(found[2]) and found[1] == pytest.approx(found[3])


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


@pytest.mark.parametrize("measure", [sparsity, stationarity])
def test_measuring_waits_for_nothing_and_changes_nothing(measure):
    optimizer = ProxAdam(weights((4, 5), (3,), (2,)), l1=0.1)
    optimizer.step()
    before = snapshot(optimizer)
    for state in optimizer.state.values():  # a step on the device, as with capturable=True
        state["step"] = _OnDevice(state["step"])
    with Reads() as reads:
        report = measure(optimizer)
        repr(report)
        assert reads.count == 0
        float(report)
    assert_same_bits(snapshot(optimizer), before)


class _OnDevice(torch.Tensor):
    """Says that it is not on the host, so that nobody reads it there."""

    @property
    def is_cpu(self):
        return False


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


# --- suggest_l1


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


@pytest.mark.parametrize("metric", ["adaptive", "euclidean"])
@pytest.mark.parametrize("target", [1e-9, 0.5, 0.9, 0.999, 1 - 1e-9])
def test_the_smallest_l1_that_lets_so_many_rest(dtype, metric, target, monkeypatch):
    monkeypatch.setattr(_state, "_CPU_CHUNK", 64)
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
    size = (1 << 24) + 7
    raised, _ = error_of(torch.quantile, torch.zeros(size), 0.9)
    assert raised is RuntimeError
    (param,) = weights((1,))
    optimizer = ProxAdam([param], betas=(0.0, 0.999))
    optimizer.step()
    large = torch.arange(size, dtype=torch.float32)  # exact up to 2²⁴, rounded to even beyond
    param.data = torch.zeros(size)
    optimizer.state[param].update(exp_avg=large, exp_avg_sq=large)
    assert suggest_l1(optimizer, 0.25) == math.ceil(0.25 * size) - 1


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


def test_a_state_before_its_first_step_counts_as_none():
    """A GradScaler that skips the first step leaves moments with a count of 0."""
    (param,) = weights((5,))
    optimizer = ProxAdam([param])
    optimizer.step()
    optimizer.state[param]["step"].zero_()
    assert math.isnan(stationarity(optimizer).total)
    raised, text = error_of(suggest_l1, optimizer)
    assert raised is ValueError and "has taken some steps" in text


# --- sharded

SHARDED = """
import os, sys, torch, torch.distributed as dist
from torch.distributed.tensor import Replicate, Shard, distribute_tensor, init_device_mesh
from proxadam import ProxAdam, TargetSparsityL1, sparsity, stationarity, suggest_l1

torch.set_num_threads(1)
rank, store = int(sys.argv[1]), dist.FileStore(sys.argv[2], 2)
dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
mesh = init_device_mesh("cpu", (2,))
torch.manual_seed(0)
whole = [torch.randn(7, 3), torch.randn(5), torch.randn(4)]
whole[0][:5] = 0.0
plain = [torch.nn.Parameter(w.clone()) for w in whole]
placements = [[Shard(0)], [Shard(0)], [Replicate()]]
spread = [
    torch.nn.Parameter(distribute_tensor(w, mesh, p))
    for w, p in zip(whole, placements, strict=True)
]
found = []
for params in (plain, spread):
    torch.manual_seed(1)
    optimizer = ProxAdam(params, l1=0.3, lr=1e-6)
    scheduler = TargetSparsityL1(optimizer, 0.9, every=1)
    for param, w, p in zip(params, whole, placements, strict=True):
        grad = torch.randn_like(w)
        grad[w == 0] *= 1e-3
        param.grad = distribute_tensor(grad, mesh, p) if params is spread else grad
    optimizer.step()
    scheduler.step()
    zeros, residual = sparsity(optimizer), stationarity(optimizer)
    numbers = [zeros.total, *zeros.params.values(), residual.total, residual.max]
    numbers += [suggest_l1(optimizer, 0.6), *scheduler.get_last_l1()]
    found.append(torch.tensor(numbers, dtype=torch.float64))
torch.testing.assert_close(found[1], found[0], rtol=1e-6, atol=0)
assert 0.4 < found[0][0] < 0.6, found[0]
print("same", flush=True)
dist.destroy_process_group()
"""


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch has no distributed")
def test_shards_on_two_processes_give_the_numbers_of_the_whole(tmp_path):
    package = Path(proxadam.__file__).parents[1]
    environment = {
        **os.environ,
        "PYTHONPATH": f"{package}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
    }
    command = [sys.executable, "-c", SHARDED]
    processes = [
        subprocess.Popen(
            [*command, str(rank), str(tmp_path / "store")],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert all("same" in output for output in outputs), "\n".join(outputs)
