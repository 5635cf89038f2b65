"""Values that are not finite, and values that are not real."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch.nn import Parameter

from proxadam import ProxAdam
from storages import assert_close
from tools import assert_same_bits, error_of, params_of, snapshot, twin_of, weights


@pytest.mark.parametrize("options", [{}, {"l1": 0.01}, {"l2": 0.1, "metric": "euclidean"}])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("position", [0, 7, 36])
def test_a_bad_gradient_makes_its_own_weight_nan_and_no_other(
    backend, storage, options, bad, position
):
    size = 37  # whole vectors and a tail
    clean = ProxAdam(storage.weights((size,)), **options, **storage.options, **backend.options)
    dirty = twin_of(clean)
    (param,), (expected,) = params_of(dirty), params_of(clean)
    param.grad[position] = bad
    clean.step()
    dirty.step()
    kept = torch.arange(size) != position
    assert param[position].isnan()
    assert_same_bits(param[kept], expected[kept])


def test_nan_in_a_parameter_stays(backend, storage):
    (param,) = storage.weights((5,))
    param.data[1], param.data[2] = math.nan, math.inf
    ProxAdam([param], l1=0.1, l2=0.1, **storage.options, **backend.options).step()
    assert param.isfinite().tolist() == [True, False, False, True, True]
    assert param[1].isnan()


def test_a_negative_weight_that_underflows_is_plus_zero(backend, storage):
    info = torch.finfo(storage.param)
    smallest = info.smallest_normal * info.eps  # the last number before zero
    param = storage.parameter(torch.full((37,), -smallest, dtype=storage.param))
    assert (param < 0).all()
    param.grad = storage.gradient(torch.zeros_like(param))
    options = {"lr": 1.0, "l2": 4.0, "metric": "euclidean"}
    ProxAdam([param], **options, **storage.options, **backend.options).step()
    left = param < 0 if storage.by_chance else torch.zeros_like(param, dtype=torch.bool)
    assert_same_bits(param, torch.where(left, -smallest, 0.0).to(param.dtype))


@pytest.mark.parametrize("max_shrink", [10.0, math.inf])
@pytest.mark.parametrize("strength", [{"l1": 0.1}, {"l2": 0.1}, {"l1": 0.1, "l2": 0.1}])
def test_an_eps_whose_inverse_overflows(backend, storage, strength, max_shrink):
    """Where no gradient was, d = eps: the prox pulls as far as max_shrink lets it."""
    dtype = torch.float64 if storage.param is torch.float64 else torch.float32
    start = torch.tensor([0.05, -0.05, 1.0, -1.0, 0.0] * 7, dtype=storage.param)
    param = storage.parameter(start.clone())
    param.grad = storage.gradient(torch.zeros_like(start))
    options = {"lr": 0.01, "eps": torch.finfo(dtype).smallest_normal / 256}
    options |= {"max_shrink": max_shrink, **strength, **storage.options, **backend.options}
    ProxAdam([param], **options).step()
    z = start.double()
    expected = z.sign() * (z.abs() - max_shrink * 0.01).clamp(min=0)
    assert_close(param, expected, scale=1, storage=storage)
    nothing = start.abs() < 0.1
    if "l1" in strength:
        assert_same_bits(param[nothing], torch.zeros_like(param[nothing]))


@pytest.mark.parametrize("strength", [{"l1": 0.1}, {"l2": 0.1}])
def test_complex_parameters_have_no_adaptive_prox(backend, strength):
    params = [*weights((3,)), *weights((3,), dtype=torch.complex64)]
    optimizer = ProxAdam(params, **strength, **backend.options)
    before = snapshot(optimizer)
    kind, text = error_of(optimizer.step)
    assert kind is ValueError
    assert text.startswith("parameter 1 of shape (3,) is complex")
    assert "metric='euclidean'" in text
    after = snapshot(optimizer)
    assert_same_bits({name: after[name] for name in before}, before)


@pytest.mark.usefixtures("kernel_module")
def test_the_kernel_does_not_take_complex_parameters():
    optimizer = ProxAdam(weights((3,), dtype=torch.complex64), fused=True)
    kind, text = error_of(optimizer.step)
    assert kind is RuntimeError
    assert "parameter 0 of shape (3,) has dtype torch.complex64" in text


torch_paths = pytest.mark.parametrize("path", [{"foreach": False}, {"foreach": True}, {}])


@torch_paths
@pytest.mark.parametrize("max_shrink", [math.inf, 10.0, 1.0])
def test_complex_parameters_are_thresholded_by_modulus(path, max_shrink):
    lr, l1, l2 = 0.1, 3.0, 0.5
    param = Parameter(torch.tensor([3 + 4j, 0.1 - 0.2j, 0j, -1e-3j], dtype=torch.complex128))
    param.grad = torch.tensor([1 - 2j, 0.5j, 0j, 0j], dtype=torch.complex128)
    adam = torch.optim.Adam([copy.deepcopy(param)], lr=lr)
    params_of(adam)[0].grad = param.grad
    options = {"l1": l1, "l2": l2, "metric": "euclidean", "max_shrink": max_shrink}
    for optimizer in (adam, ProxAdam([param], lr=lr, **options, **path)):
        optimizer.step()
    for z, actual in zip(params_of(adam)[0].tolist(), param.tolist(), strict=True):
        shrunk = 0 if abs(z) <= lr * l1 else z * (1 - lr * l1 / abs(z)) / (1 + lr * l2)
        pull, bound = abs(shrunk - z), max_shrink * lr
        expected = shrunk if pull <= bound else z + (shrunk - z) * bound / pull
        assert actual == pytest.approx(expected, rel=1e-12, abs=1e-15)


@torch_paths
def test_complex_gradients_may_be_lazily_conjugated(path):
    optimizer = ProxAdam(weights((3,), dtype=torch.complex64), weight_decay=0.1, **path)
    resolved = twin_of(optimizer)
    lazy = params_of(optimizer)[0].grad.conj()
    assert lazy.is_conj()
    params_of(optimizer)[0].grad = lazy
    params_of(resolved)[0].grad = lazy.resolve_conj()
    for _ in range(2):
        optimizer.step()
        resolved.step()
    assert_same_bits(snapshot(optimizer), snapshot(resolved))
