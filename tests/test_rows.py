"""l21: rows that are taken as one, and become exactly zero."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import Parameter

from proxadam import ProxAdam, ProxAdamW, prox_adam
from storages import FP32, FP64, assert_close
from test_step import Trajectory
from tools import assert_same_bits

F64 = torch.float64


# ---- the step ---------------------------------------------------------------------------------

SHAPES = [(7, 1), (5, 33), (9, 128), (4, 1025), (2, 4000), (6, 3, 3, 3), (40, 257)]


def _history(backend, storage, shape, steps):
    """Rows of gradients of all sizes: some die, some come back. Returns how many, by step."""
    options = {"lr": 0.02, "l21": 0.05, "l1": 0.02, "l2": 0.1, "amsgrad": len(shape) == 4}
    run = Trajectory(torch.randn(shape) * 0.1, backend, storage, **options)
    size = torch.logspace(-3, 0.5, shape[0]).reshape(-1, *[1] * (len(shape) - 1))
    deaths = []
    for step in range(steps):
        rest = 0 if step % 7 == 3 else 1
        param = run.step(torch.randn(shape) * size * rest * (2.0 if steps / 2 < step else 0.2))
        deaths.append((param.flatten(1) == 0).all(1).sum().item())
    return deaths


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
@pytest.mark.parametrize("storage", [FP32, FP64], ids=lambda s: s.name)
def test_a_history_against_the_oracle(backend, storage, shape):
    deaths = _history(backend, storage, shape, 14)
    assert 0 < max(deaths) < shape[0], "the options should kill some rows"


def test_a_history_in_every_storage(backend, storage):
    deaths = _history(backend, storage, (9, 40), 14)
    if storage.state != torch.float16:  # squares of small gradients are 0 in it, and d is eps
        assert 0 < max(deaths) < 9, "the options should kill some rows"


def _generator(seed):
    return torch.Generator(torch.get_default_device()).manual_seed(seed)


def _params(storage, shapes=SHAPES, seed=0):
    generator = _generator(seed)
    return [storage.parameter(torch.randn(shape, generator=generator) * 0.1) for shape in shapes]


def _run(params, storage, steps=4, **options):
    options = {"lr": 0.02, "l21": 0.05, "l1": 0.01, "l2": 0.05, **options}
    optimizer = ProxAdamW(params, **options, **storage.options)
    _take_steps(optimizer, params, storage, steps)
    return params, optimizer


def _take_steps(optimizer, params, storage, steps=4):
    generator = _generator(1)
    for _ in range(steps):
        for param in params:
            grad = torch.randn(param.shape, generator=generator) * 0.1
            param.grad = torch.empty_like(param, dtype=storage.grad).copy_(grad)
        optimizer.step()


def test_same_bits_for_every_thread_count_and_instruction_set(kernel_module, storage):
    shapes = [*SHAPES, (300, 300), (3000, 27), (3, 60_000)]
    found = []
    before = kernel_module.capability()
    try:
        for name in kernel_module.capabilities():
            kernel_module.use_capability(name)
            for threads in (1, 3):
                torch.set_num_threads(threads)
                found.append(_run(_params(storage, shapes), storage, fused=True)[0])
    finally:
        kernel_module.use_capability(before)
        torch.set_num_threads(2)
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            assert_same_bits(a, b)


def test_l21_of_zero_changes_no_bit(backend, storage):
    for options in ({}, {"l1": 0.0, "l2": 0.0}):
        plain, _ = _run(_params(storage), storage, l21=0.0, **options, **backend.options)
        found = _params(storage)
        others = {"l1": 0.01, "l2": 0.05, **options, **storage.options, **backend.options}
        _take_steps(ProxAdamW(found, lr=0.02, **others), found, storage)
        for a, b in zip(plain, found, strict=True):
            assert_same_bits(a, b)


def test_vectors_have_no_rows(backend):
    """Biases and norms in a group with l21 are stepped as without."""
    twins = []
    for l21 in (0.0, 0.5):
        param = Parameter(torch.linspace(-1, 1, 50))
        optimizer = ProxAdam([param], lr=0.1, l1=0.1, l21=l21, **backend.options)
        for _ in range(3):
            param.grad = torch.linspace(1, -0.5, 50)
            optimizer.step()
        twins.append(param.detach())
    torch.testing.assert_close(*twins, rtol=1e-6, atol=0)


def test_a_dead_row_rests_while_its_gradient_is_below(backend):
    """‖S(m̂, l1)‖ ≤ l21 · √n keeps it at zero, whatever d, lr and eps; above it wakes."""
    below = torch.tensor([[0.3, 0.5, -0.1, 0.1]])
    l1, l21 = 0.1, math.sqrt((0.04 + 0.16) / 4)
    for factor, rests in ((1.001, True), (0.999, False)):
        for lr, eps in ((1e-3, 1e-8), (0.5, 1e-3)):
            param = Parameter(torch.zeros(1, 4))
            optimizer = ProxAdam(
                [param], lr=lr, eps=eps, l1=l1, l21=factor * l21, **backend.options
            )
            for _ in range(5):
                param.grad = below.clone().to(param.device)
                optimizer.step()
                assert (param.count_nonzero() == 0) == rests
            assert (param[0, 2:] == 0).all(), "l1 holds these in any case"
            assert not param[param == 0].signbit().any()


@pytest.mark.parametrize("storage", [FP32, FP64], ids=lambda s: s.name)
def test_max_shrink_bounds_each_weight(backend, storage):
    """A row without gradients dies by max_shrink · lr a step, and the step is the oracle's."""
    start = torch.full((3, 40), 0.5)
    run = Trajectory(start, backend, storage, lr=0.01, l21=0.3, max_shrink=2.0)
    for _ in range(3):
        before = run.param.detach().clone()
        run.step(torch.zeros(3, 40))
        torch.testing.assert_close(before - run.param, torch.full_like(before, 0.02))


def test_keep_zeros_holds_weights_in_living_rows(backend, storage):
    start = torch.randn(6, 50)
    start[:, ::3] = 0
    start[2] = 0
    run = Trajectory(start, backend, storage, lr=0.05, l21=0.02, keep_zeros=True)
    for _ in range(3):
        param = run.step(torch.randn(6, 50))
    assert (param[:, ::3] == 0).all()
    assert (param[2] == 0).all()
    assert param[[0, 1, 3, 4, 5]].count_nonzero() > 100


def test_a_learning_rate_of_zero_leaves_all_bits(backend, storage):
    params = _params(storage)
    before = [param.detach().clone() for param in params]
    _run(params, storage, lr=0.0, **backend.options)
    for a, b in zip(params, before, strict=True):
        assert_same_bits(a, b)


def test_a_nan_stays_in_its_row(backend, storage):
    run = Trajectory(torch.randn(4, 40), backend, storage, lr=0.05, l21=0.02)
    grad = torch.randn(4, 40)
    grad[1, 7] = math.nan
    with pytest.raises(AssertionError):  # what the oracle makes of it is not compared
        run.step(grad)
    assert run.param[1].isnan().any()
    assert run.param[[0, 2, 3]].isfinite().all()


def test_channels_last_goes_to_the_kernel_and_has_its_rows(backend):
    plain = Parameter(torch.randn(8, 6, 3, 3))
    last = Parameter(plain.detach().clone(memory_format=torch.channels_last))
    for param in (plain, last):
        _run([param], FP32, **backend.options)
    torch.testing.assert_close(plain, last, rtol=1e-5, atol=1e-7)
    assert torch.equal(plain == 0, last == 0)


# ---- who takes them ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.randn(70, 30).T,
        lambda: torch.randn(2, 65_537),
        lambda: torch.randn(4, 3, 5).transpose(0, 1),
    ],
    ids=["columns", "long", "turned"],
)
def test_rows_that_the_kernel_cannot_take_go_to_torch_ops(kernel_module, make):  # noqa: ARG001
    """With the right prox; and fused=True says which it was, and changes nothing."""
    values = make() * 0.1
    found, _ = _run([Parameter(values.clone())], FP32)
    plain, _ = _run(
        [Parameter(values.clone(memory_format=torch.contiguous_format))], FP32, fused=False
    )
    torch.testing.assert_close(found, plain, rtol=1e-5, atol=1e-7)
    param = Parameter(values.clone())
    param.grad = torch.ones_like(param)
    optimizer = ProxAdam([param], l21=0.1, fused=True)
    with pytest.raises(RuntimeError, match="has rows that l21 cannot take there"):
        optimizer.step()
    assert torch.equal(param, values)
    assert not optimizer.state
    optimizer.param_groups[0]["l21"] = 0.0
    optimizer.step()


@pytest.mark.parametrize("value", [-1e-9, math.nan, math.inf, "0.1", torch.ones(2)], ids=str)
@pytest.mark.parametrize("cls", [ProxAdam, ProxAdamW])
def test_a_bad_strength_is_one_sentence(cls, value):
    param = Parameter(torch.ones(2, 2))
    with pytest.raises((ValueError, TypeError), match="l21"):
        cls([param], l21=value)
    optimizer = cls([param])
    optimizer.param_groups[0]["l21"] = value
    param.grad = torch.ones(2, 2)
    with pytest.raises((ValueError, TypeError), match="l21"):
        optimizer.step()
    assert torch.equal(param, torch.ones(2, 2))
    assert not optimizer.state


def test_what_l21_does_not_go_with():
    param = Parameter(torch.ones(2, 2))
    with pytest.raises(ValueError, match="l21 does not support differentiable=True"):
        ProxAdam([param], l21=0.1, differentiable=True)
    param = Parameter(torch.ones(2, 2, dtype=torch.complex64))
    param.grad = torch.ones_like(param)
    with pytest.raises(ValueError, match="l21 takes real rows alone"):
        ProxAdam([param], l21=0.1, metric="euclidean").step()
    assert torch.equal(param, torch.ones_like(param))


def test_a_strength_in_a_tensor(backend):
    """As a number, to the bit; and changed in place."""
    if backend.options.get("foreach"):
        pytest.skip("torch refuses tensors among the options of foreach")
    shapes = [(9, 128), (6, 3, 3, 3)]
    plain, _ = _run(_params(FP32, shapes), FP32, **backend.options)
    strength = torch.tensor(0.05, dtype=F64)
    found, optimizer = _run(_params(FP32, shapes), FP32, l21=strength, **backend.options)
    for a, b in zip(plain, found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)
    strength.fill_(1e6)
    for param in found:
        param.grad.zero_()
    for _ in range(30):
        optimizer.step()
    assert all(param.count_nonzero() == 0 for param in found)


def test_l21_in_checkpoints_and_groups():
    param = Parameter(torch.randn(3, 4))
    saved = ProxAdamW([param], l21=0.25).state_dict()
    assert saved["param_groups"][0]["l21"] == 0.25
    other = ProxAdamW([param], l21=0.5)
    other.load_state_dict(saved)
    assert other.param_groups[0]["l21"] == 0.25
    older = torch.optim.AdamW([param]).state_dict()
    other.load_state_dict(older)
    assert other.param_groups[0]["l21"] == 0.25, "what a file lacks stays"


def test_the_functional_twin():
    param, twin = (Parameter(torch.full((3, 5), 0.1)) for _ in range(2))
    param.grad = torch.ones(3, 5)
    ProxAdam([param], lr=0.01, l21=0.3).step()
    zeros = [torch.zeros(3, 5) for _ in range(2)]
    with torch.no_grad():
        prox_adam(
            [twin], [param.grad], [zeros[0]], [zeros[1]], [], [torch.zeros(())], amsgrad=False,
            beta1=0.9, beta2=0.999, lr=0.01, weight_decay=0, eps=1e-8, maximize=False, l21=0.3,
        )  # fmt: skip
    assert_same_bits(param, twin)


def test_gradients_are_unscaled_first(backend):
    """grad_scale, as GradScaler sets it, and found_inf."""
    plain, twin = _params(FP32), _params(FP32)
    _run(plain, FP32, steps=1, **backend.options)
    optimizer = ProxAdamW(twin, lr=0.02, l21=0.05, l1=0.01, l2=0.05, **backend.options)
    for param, other in zip(twin, plain, strict=True):
        param.grad = other.grad * 64
    optimizer.grad_scale = torch.tensor(64.0)
    optimizer.found_inf = torch.tensor(1.0)
    before = [param.detach().clone() for param in twin]
    optimizer.step()
    for a, b in zip(twin, before, strict=True):
        assert_same_bits(a, b)
    optimizer.found_inf = torch.tensor(0.0)
    optimizer.step()
    for a, b in zip(twin, plain, strict=True):
        assert_same_bits(a, b)
        assert_same_bits(a.grad, b.grad)


def test_steps_close_on_every_storage(backend, storage):
    """The whole optimizer on many parameters against torch ops in float64."""
    shapes = [(30, 64), (16, 3, 3, 3)]
    found, _ = _run(_params(storage, shapes), storage, steps=1, **backend.options)
    expected, _ = _run(_params(storage, shapes), storage, steps=1, fused=False, foreach=False)
    for a, b in zip(found, expected, strict=True):
        scale = b.detach().double().abs() + 0.2
        assert_close(a, b.detach().double(), scale, storage, "param")
