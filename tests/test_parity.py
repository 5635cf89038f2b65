"""With l1 = l2 = 0 the torch paths are torch.optim's own, bit for bit; the kernel is close."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import Parameter

from proxadam import ProxAdam
from proxadam._step.torch_ops import BLOCK_NUMEL
from tools import LOOP, each_twin, threads

FOREACH = {"foreach": True}
REAL = (torch.float32, torch.float64)
FLAGS = [
    {"weight_decay": weight_decay, "amsgrad": amsgrad, "maximize": maximize}
    for weight_decay in (0.0, 0.1)
    for amsgrad in (False, True)
    for maximize in (False, True)
]
each_torch_path = pytest.mark.parametrize("path", [LOOP, FOREACH], ids=["loop", "foreach"])


@pytest.fixture(autouse=True)
def _one_thread():
    """So that other work on the machine does not hold up every single operation."""
    with threads(1):
        yield


def small(dtype):
    """One of each layout, and the smallest shapes."""
    whole = [torch.randn(s, dtype=dtype) for s in [(3, 5), (6, 8), (4, 3), (), (1,), (0, 3)]]
    return [whole[0], whole[1][:, ::2], whole[2].t(), *whole[3:]]


def large(dtype):
    """Odd sizes; one is taken block by block, one whole because it is not contiguous."""
    return [torch.randn(BLOCK_NUMEL + 4099, dtype=dtype), torch.randn(372, 371, dtype=dtype).t()]


def run(cls, make, dtype, steps, *, on_step=None, **options):
    """Parameters and state after some steps from the same start with the same gradients."""
    torch.manual_seed(0)
    params = [Parameter(weight) for weight in make(dtype)]
    gradients = [[torch.randn_like(p) for p in params] for _ in range(5)]
    optimizer = cls(params, **options)
    for i in range(steps):
        for param, grad in zip(params, gradients[i % 5], strict=True):
            param.grad = grad
        if on_step:
            on_step(optimizer, i)
        optimizer.step()
    return [t.detach() for p in params for t in (p, *optimizer.state[p].values())]


def assert_identical(actual, expected):
    for i, (a, b) in enumerate(zip(actual, expected, strict=True)):
        assert a.stride() == b.stride()
        assert a.numpy().tobytes() == b.numpy().tobytes(), f"tensor {i} differs: {a} and {b}"


@each_twin
@each_torch_path
@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("flags", FLAGS)
def test_steps_in_blocks_are_torchs(ours, theirs, path, dtype, flags):
    steps = 50 if flags in (FLAGS[0], FLAGS[-1]) else 3
    assert_identical(*(run(cls, large, dtype, steps, **flags, **path) for cls in (ours, theirs)))


@each_twin
@each_torch_path
@pytest.mark.parametrize("dtype", [*REAL, torch.complex64])
@pytest.mark.parametrize("flags", FLAGS)
@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.4, 0.0)], ids=str)
def test_fifty_steps_of_small_tensors_are_torchs(ours, theirs, path, dtype, flags, betas):
    options = {**flags, **path, "betas": betas, "lr": 0.01}
    assert_identical(*(run(cls, small, dtype, 50, **options) for cls in (ours, theirs)))


@each_twin
@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("flags", FLAGS)
@pytest.mark.parametrize(
    "tensors",
    [
        {"lr": torch.tensor(0.01)},
        {"lr": torch.tensor([0.01], dtype=torch.float64)},
        {"betas": (torch.tensor(0.9), torch.tensor(0.99))},
    ],
    ids=["lr", "1-d-fp64-lr", "betas"],
)
def test_tensor_options_of_the_loop_are_torchs(ours, theirs, dtype, flags, tensors):
    options = {**flags, **tensors, **LOOP}
    assert_identical(*(run(cls, small, dtype, 10, **options) for cls in (ours, theirs)))


@each_twin
@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("flags", FLAGS)
def test_differentiable_steps_have_torchs_values(ours, theirs, dtype, flags):
    options = {**flags, "differentiable": True}

    def values(cls):
        torch.manual_seed(0)
        weight, grad = torch.randn(2, 15, dtype=dtype, requires_grad=True)
        param = weight.clone()
        optimizer = cls([param], **options)
        for _ in range(5):
            param.grad = grad * param.detach()
            optimizer.step()
        return [t.detach() for t in (param, *optimizer.state[param].values())]

    assert_identical(values(ours), values(theirs))


@each_twin
@each_torch_path
def test_nan_and_inf_spread_as_in_torch(ours, theirs, path):
    def weights(_):
        return [torch.tensor([1.0, math.nan, math.inf, -math.inf, -0.0, 1e-45])]

    def poison(optimizer, i):
        grad = optimizer.param_groups[0]["params"][0].grad
        grad[0] = (math.nan, math.inf, -math.inf)[i]
        grad[5] = (1.0, 0.0, 3e38)[i]

    options = {"amsgrad": True, "on_step": poison, **path}
    assert_identical(*(run(cls, weights, None, 3, **options) for cls in (ours, theirs)))


@each_twin
@each_torch_path
def test_schedules_are_torchs(ours, theirs, path):
    """lr, betas, eps and weight_decay are read from the group at every step."""

    def change(optimizer, i):
        group = optimizer.param_groups[0]
        group["lr"] = 0.1 / (i + 1)
        group["betas"] = (0.9 - 0.1 * i, 0.99)
        group["eps"], group["weight_decay"] = 1e-8 * i, 0.01 * i
        group["maximize"] = i % 2 == 0

    options = {"on_step": change, **path}
    assert_identical(*(run(cls, small, torch.float32, 6, **options) for cls in (ours, theirs)))


@each_twin
@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("flags", FLAGS)
def test_every_backend_is_close_to_torch(ours, theirs, backend, dtype, flags):
    def weights(dtype):
        return [torch.randn(3, 5, dtype=dtype), torch.randn(4099, dtype=dtype)]

    actual = run(ours, weights, dtype, 20, **flags, **backend.options)
    expected = run(theirs, weights, dtype, 20, **flags, **LOOP)
    # Where the steps are kept depends on the path and on the version of torch.
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, check_device=a.dim() > 0)


def test_the_prox_is_not_run_without_strength(backend):
    """−0.0 stays −0.0: the prox would make it +0.0."""
    param = Parameter(torch.tensor([-0.0, 0.0]))
    param.grad = torch.zeros(2)
    ProxAdam([param], l1=0.0, l2=0.0, **backend.options).step()
    assert param.detach().signbit().tolist() == [True, False]
