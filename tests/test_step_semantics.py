"""What a step touches and what it leaves alone: one body over every backend."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import Parameter

from proxadam import ProxAdam
from tools import (
    BUSY,
    assert_same_bits,
    each_class,
    error_of,
    params_of,
    snapshot,
    twin_of,
    weights,
)

SPARSE = "Adam does not support sparse gradients, please consider SparseAdam instead"


# ---- which parameters are stepped -------------------------------------------------------------


@each_class
def test_no_gradient_means_no_step_no_state_no_decay(cls, backend):
    moved, left = weights((3,), (4,))
    before, left.grad = left.detach().clone(), None
    optimizer = cls([moved, left], **BUSY, **backend.options)
    optimizer.step()
    assert_same_bits(left, before)
    assert left not in optimizer.state
    assert optimizer.state[moved]["step"] == 1


def test_each_parameter_counts_its_own_steps(backend, storage):
    """Frozen for three steps, a parameter goes on as if these had not been."""
    params = storage.weights((5,), (7,))
    options = {**BUSY, **storage.options, **backend.options}
    both = ProxAdam(params, **options)
    copies = [storage.parameter(p.detach().clone()) for p in params]
    idle = storage.parameter(torch.zeros(1))  # so that each has its place, and its random bits
    alone = [ProxAdam([idle] * i + [param], **options) for i, param in enumerate(copies)]
    for i in range(8):
        for param, optimizer in zip(params, alone, strict=True):
            param.grad = storage.gradient(torch.randn_like(param))
            if param is params[1] and 3 <= i < 6:
                param.grad = None
            params_of(optimizer)[-1].grad = param.grad
            optimizer.step()
        both.step()
    assert [both.state[p]["step"].item() for p in params] == [8, 5]
    for param, optimizer in zip(params, alone, strict=True):
        assert_same_bits(param, params_of(optimizer)[-1])


def test_scalars_and_empty_tensors(backend, storage):
    shapes = [(), (1,), (1, 1, 1), (0,), (0, 3)]
    params = storage.weights(*shapes)
    for param in params:
        param.data.fill_(0.7)
        param.grad.fill_(0.3)
    optimizer = ProxAdam(params, **BUSY, **storage.options, **backend.options)
    for _ in range(3):
        optimizer.step()
    values = [param.item() for param in params[:3]]
    assert max(values) < 0.65
    assert len({*values}) == 1 or storage.by_chance
    for param, shape in zip(params, shapes, strict=True):
        assert param.shape == optimizer.state[param]["exp_avg"].shape == shape
        assert optimizer.state[param]["step"] == 3


def test_nothing_to_do_is_fine(backend):
    param = Parameter(torch.ones(2))
    optimizer = ProxAdam([{"params": [param]}, {"params": []}], **backend.options)
    assert optimizer.step() is None
    assert not optimizer.state


def test_integers_and_frozen_tensors_may_be_in_the_list(backend):
    (param,) = weights((3,))
    others = [torch.arange(3), torch.ones(3), torch.ones(2, dtype=torch.bool)]
    optimizer = ProxAdam([param, *others], **BUSY, **backend.options)
    optimizer.step()
    assert list(optimizer.state) == [param]


def test_mixed_dtypes_step_as_if_alone(backend):
    kinds = [torch.float32, torch.bfloat16, torch.float64, torch.float16, torch.float32]
    params = [weights((6,), dtype=kind)[0] for kind in kinds]
    together = ProxAdam(params, **BUSY, **backend.options)
    alone = [twin_of(ProxAdam([p], **BUSY, **backend.options)) for p in params]
    for optimizer in (together, *alone):
        optimizer.step()
    for param, optimizer in zip(params, alone, strict=True):
        assert_same_bits(param, params_of(optimizer)[0])


def test_groups_keep_to_their_own_options(backend):
    params = weights((6,), (6,), (6,))
    options = [{"l1": 0.0}, {"l1": 0.1, "lr": 0.1}, {"metric": "euclidean", "max_shrink": 1.0}]
    groups = [{"params": [p], **o} for p, o in zip(params, options, strict=True)]
    alone = [twin_of(ProxAdam([{**group}], **BUSY, **backend.options)) for group in groups]
    for optimizer in (ProxAdam(groups, **BUSY, **backend.options), *alone):
        optimizer.step()
    for param, optimizer in zip(params, alone, strict=True):
        assert_same_bits(param, params_of(optimizer)[0])


@pytest.mark.parametrize("steps_before", [0, 1])
def test_sparse_gradients_are_refused_in_torchs_words(backend, steps_before):
    params = weights((4, 2), (4, 2))
    optimizer = ProxAdam(params, **BUSY, **backend.options)
    for _ in range(steps_before):
        optimizer.step()
    before = snapshot(optimizer)
    params[1].grad = torch.eye(4, 2).to_sparse()
    assert error_of(optimizer.step) == (RuntimeError, SPARSE)
    after = snapshot(optimizer)
    assert_same_bits({name: after[name] for name in before}, before)


def test_torchs_default_device_and_dtype_do_not_matter(backend):
    optimizer = ProxAdam(weights((6,)), **BUSY, **backend.options)
    expected = twin_of(optimizer)
    expected.step()
    with torch.device("meta"):
        optimizer.step()
    assert_same_bits(snapshot(optimizer), snapshot(expected))
    torch.set_default_dtype(torch.float64)
    try:
        optimizer.step()
    finally:
        torch.set_default_dtype(torch.float32)
    expected.step()
    assert_same_bits(snapshot(optimizer), snapshot(expected))


def test_gradients_with_a_graph_are_taken(backend):
    """As create_graph=True leaves them."""
    (param,) = weights((6,))
    optimizer = ProxAdam([param], **BUSY, **backend.options)
    expected = twin_of(optimizer)
    param.grad = param.grad.clone().requires_grad_() * 1.0
    assert param.grad.grad_fn is not None
    optimizer.step()
    expected.step()
    assert_same_bits(snapshot(optimizer), snapshot(expected))


# ---- the closure and the grad mode ------------------------------------------------------------


def test_closure_runs_with_gradients_and_its_value_is_returned(backend):
    (param,) = weights((3,))
    optimizer = ProxAdam([param], **backend.options)
    modes = []

    def closure():
        modes.append(torch.is_grad_enabled())
        optimizer.zero_grad()
        loss = (param**2).sum()
        loss.backward()
        return loss

    with torch.no_grad():
        loss = optimizer.step(closure)
        assert not torch.is_grad_enabled()
    assert modes == [True]
    assert loss.requires_grad
    assert optimizer.step(None) is optimizer.step(closure=None) is None
    assert optimizer.step(closure=lambda: 3) == 3
    assert optimizer.state[param]["step"] == 4


@pytest.mark.parametrize("enabled", [True, False], ids=["grad", "no_grad"])
def test_grad_mode_is_restored_also_after_an_error(backend, enabled):
    (param,) = weights((3,))
    optimizer = ProxAdam([param], **backend.options)
    with torch.set_grad_enabled(enabled):
        optimizer.step()
        assert torch.is_grad_enabled() is enabled
        assert error_of(optimizer.step, lambda: 1 / 0)[0] is ZeroDivisionError
        assert torch.is_grad_enabled() is enabled
    assert param.is_leaf
    assert param.requires_grad


# ---- steps that must not be seen --------------------------------------------------------------


@each_class
def test_zero_gradients_move_nothing(cls, backend, storage):
    (param,) = storage.weights((33,))
    before = param.detach().clone()
    optimizer = cls([param], weight_decay=0.0, **storage.options, **backend.options)
    for _ in range(3):
        param.grad = storage.gradient(torch.zeros_like(param))
        optimizer.step()
    assert_same_bits(param, before)


@pytest.mark.parametrize("metric", ["adaptive", "euclidean"])
@pytest.mark.parametrize("max_shrink", [10.0, math.inf])
@each_class
def test_lr_zero_leaves_parameters_bit_identical(cls, backend, storage, metric, max_shrink):
    """Checkpointing takes such a step to make the state: no decay, no prox, no sign change."""
    params = storage.weights((33,), ())
    params[0].data[:3] = torch.tensor([-0.0, 0.0, math.inf])
    params[0].grad[4:6] = torch.tensor([math.nan, math.inf])
    options = {**BUSY, "lr": 0.0, "metric": metric, "max_shrink": max_shrink}
    before = [p.detach().clone() for p in params]
    optimizer = cls(params, **options, **storage.options, **backend.options)
    optimizer.step()
    for param, same in zip(params, before, strict=True):
        assert_same_bits(param, same)
    state = optimizer.state[params[1]]
    assert state["step"] == 1
    assert state["exp_avg"] != 0, "the moments go on at lr = 0"


def test_a_tensor_lr_of_zero_leaves_parameters_bit_identical(backend):
    if backend.options.get("foreach"):
        pytest.skip("foreach takes no tensor lr, as in torch.optim")
    (param,) = weights((33,))
    param.data[0] = -0.0
    before = param.detach().clone()
    ProxAdam([param], **{**BUSY, "lr": torch.zeros(1)}, **backend.options).step()
    assert_same_bits(param, before)


@each_class
def test_a_tiny_lr_is_invisible(cls, backend, storage):
    (param,) = storage.weights((33,))
    before = param.detach().clone()
    cls([param], **{**BUSY, "lr": 1e-28}, **storage.options, **backend.options).step()
    assert_same_bits(param, before)
