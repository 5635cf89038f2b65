"""Options are read from the group at every step, and each does what torch.optim's does."""

from __future__ import annotations

import decimal
import inspect
import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from proxadam import ProxAdam, prox_adam
from proxadam._step import dispatch
from proxadam._step.options import Options
from tools import (
    BUSY,
    LOOP,
    assert_same_bits,
    each_class,
    error_of,
    params_of,
    snapshot,
    twin_of,
    weights,
)

CHANGES = [
    {"lr": 0.3},
    {"betas": (0.3, 0.5)},
    {"eps": 0.1},
    {"weight_decay": 0.0},
    {"l1": 0.5},
    {"l1": 0.0, "l2": 0.0},
    {"l2": 3.0},
    {"l1_knee": 0.01},
    {"metric": "euclidean"},
    {"max_shrink": 1.0},
    {"max_shrink": math.inf},
    {"maximize": True},
    {"amsgrad": False},
]


@pytest.mark.parametrize("change", CHANGES)
@each_class
def test_a_changed_option_holds_from_the_next_step_on(cls, backend, change):
    """The step is that of an optimizer which was born with the option and given the state."""
    gentle, strong = weights((9,), (9,))
    strong.data[:], strong.grad[:] = 5.0, 1e-4  # l1 / d is large: max_shrink bounds the prox
    groups = [{"params": [gentle]}, {"params": [strong], "l1": 8.0}]
    optimizer = cls(groups, **BUSY, **backend.options)
    optimizer.step()
    gentle.grad *= 0.01  # the second moment falls: amsgrad makes a difference
    unchanged, other = twin_of(optimizer), twin_of(optimizer)
    for group in optimizer.param_groups:
        group.update(change)
    changed_groups = [
        {**group, **change, "params": [param]}
        for group, param in zip(groups, params_of(other), strict=True)
    ]
    born_so = cls(changed_groups, **backend.options)
    born_so.state = other.state
    for each in (optimizer, unchanged, born_so):
        each.step()
    assert_same_bits(snapshot(optimizer), snapshot(born_so))
    pairs = zip(params_of(optimizer), params_of(unchanged), strict=True)
    assert not all(torch.equal(p, q) for p, q in pairs), "the change had no effect"


@pytest.mark.parametrize("name", ["lr", "l1", "l2"])
def test_a_tensor_option_may_be_filled_in_place(backend, name):
    if name == "lr" and backend.options.get("foreach"):
        pytest.skip("foreach takes no tensor lr, as in torch.optim")
    value = torch.tensor(0.25)  # exact in float32, so that number and tensor mean the same
    optimizer = ProxAdam(weights((9,)), **{**BUSY, name: value}, **backend.options)
    by_number = twin_of(optimizer)
    by_number.param_groups[0][name] = 0.25
    for _ in range(2):
        optimizer.step()
        by_number.step()
        value.fill_(0.5)
        by_number.param_groups[0][name] = 0.5
    actual, expected = (list(snapshot(o).values()) for o in (optimizer, by_number))
    torch.testing.assert_close(actual, expected, rtol=3e-7, atol=1e-7)


def test_amsgrad_may_be_switched_on_in_the_middle(backend):
    (param,) = weights((9,))
    optimizer = ProxAdam([param], l1=0.01, **backend.options)
    optimizer.step()
    optimizer.param_groups[0]["amsgrad"] = True
    optimizer.step()
    state = optimizer.state[param]
    largest = state["exp_avg_sq"].clone()
    assert_same_bits(state["max_exp_avg_sq"], largest)
    param.grad.zero_()
    optimizer.step()
    assert_same_bits(state["max_exp_avg_sq"], largest)
    assert (state["exp_avg_sq"] < largest).all()


@each_class
def test_maximize_turns_the_gradient_alone(cls, backend):
    """Decay and prox shrink all the same."""
    up = cls(weights((9,)), **BUSY, maximize=True, **backend.options)
    down = twin_of(up)
    down.param_groups[0]["maximize"] = False
    for _ in range(3):
        for optimizer, sign in ((up, 1), (down, -1)):
            params_of(optimizer)[0].grad = sign * torch.arange(-4.0, 5.0)
            optimizer.step()
    assert_same_bits(snapshot(up), snapshot(down))


@pytest.mark.parametrize("index", [0, 1])
def test_a_beta_of_one_is_refused_before_it_divides_by_zero(backend, index):
    if backend.step_on_device:
        pytest.skip("no host waits to read a step that is on the device")
    optimizer = ProxAdam(weights((3,), (4,)), **BUSY, **backend.options)
    optimizer.step()
    before = snapshot(optimizer)
    optimizer.param_groups[0]["betas"] = (1.0, 0.9) if index == 0 else (0.9, 1.0)
    error = (ValueError, f"Invalid beta parameter at index {index}: 1.0")
    assert error_of(optimizer.step) == error
    assert_same_bits(snapshot(optimizer), before)


@pytest.mark.parametrize("betas", [(4.0, 0.9), (22.0, 0.999), (5.0, 0.0)], ids=str)
def test_a_first_beta_above_one_steps_as_in_torch(backend, betas):
    """Schedulers of momentum set such; torch steps as long as it can."""
    ours, theirs = ProxAdam(weights((9,)), **backend.options), None
    theirs = torch.optim.Adam([p.detach().clone() for p in params_of(ours)], **LOOP)
    for optimizer in (ours, theirs):
        optimizer.param_groups[0]["betas"] = betas
    for _ in range(3):
        for mine, other in zip(params_of(ours), params_of(theirs), strict=True):
            mine.grad = torch.randn(9)
            other.grad = mine.grad.clone()
        ours.step()
        theirs.step()
    torch.testing.assert_close(snapshot(ours), snapshot(theirs))


@pytest.mark.parametrize(
    ("betas", "steps"),
    [((1.0, 0.9), 0), ((-1.0, 0.9), 1), ((5.0, 0.9), 1000), ((0.9, 1.0), 0), ((0.9, 5.0), 0)],
    ids=str,
)
def test_betas_without_a_bias_correction_are_refused(backend, betas, steps):
    """Of one parameter that steps: nothing is written to another."""
    if backend.step_on_device:
        pytest.skip("no host waits to read a step that is on the device")
    params = weights((3,), (4,))
    optimizer = ProxAdam(params, **BUSY, **backend.options)
    optimizer.step()
    optimizer.state[params[1]]["step"].fill_(steps)
    optimizer.param_groups[0]["betas"] = betas
    before = snapshot(optimizer)
    index = 0 if betas[0] != 0.9 else 1
    error = (ValueError, f"Invalid beta parameter at index {index}: {betas[index]}")
    assert error_of(optimizer.step) == error
    assert_same_bits(snapshot(optimizer), before)
    for param in params:
        param.grad = None
    optimizer.step()  # with no gradient there is nothing to correct


def test_capturable_on_the_cpu_is_for_the_kernel_alone(backend):
    if backend.device != "cpu":
        pytest.skip("torch ops may be captured there")
    optimizer = ProxAdam(weights((9,)), **BUSY, capturable=True, **backend.options)
    plain = twin_of(optimizer)
    plain.param_groups[0]["capturable"] = False
    before = params_of(optimizer)[0].detach().clone()
    if backend.is_kernel:
        optimizer.step()
        plain.step()
        assert_same_bits(snapshot(optimizer), snapshot(plain))
        return
    kind, text = error_of(optimizer.step)
    assert kind is AssertionError
    assert text.startswith("If capturable=True, params and state_steps must be on supported ")
    assert_same_bits(params_of(optimizer)[0], before)
    assert not optimizer.state


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"weight_decay": 0.1},
        {"amsgrad": True, "maximize": True},
        {"l1": 0.03},
        {"l1": 0.03, "l2": 0.1, "metric": "euclidean"},
        {"l1": 3.0, "max_shrink": 1.0},
        {"l1": 0.03, "max_shrink": math.inf},
    ],
)
@each_class
def test_autograd_goes_through_differentiable_steps(cls, options):
    def two_steps(weight, grad, lr):
        param = weight.clone()
        optimizer = cls([param], lr=lr, differentiable=True, **options)
        for i in range(2):
            param.grad = grad * (i + 1)
            optimizer.step()
        return param

    weight = torch.tensor([1.0, -0.5, 0.3, 2.0], dtype=torch.float64, requires_grad=True)
    grad = torch.tensor([0.5, 1.5, -0.7, 0.1], dtype=torch.float64, requires_grad=True)
    lr = torch.tensor(0.05, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(two_steps, (weight, grad, 0.05))
    assert torch.autograd.gradcheck(two_steps, (weight.detach(), grad.detach(), lr))


def test_autograd_reaches_a_tensor_l1():
    def step(l1):
        param = torch.tensor([1.0, -0.5, 0.3, 2.0], dtype=torch.float64).requires_grad_().clone()
        param.grad = torch.tensor([0.5, 1.5, -0.7, 0.1], dtype=torch.float64)
        ProxAdam([param], l1=l1, l2=l1, differentiable=True).step()
        return param

    l1 = torch.tensor(0.05, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(step, (l1,))


@pytest.mark.parametrize("value", ["0.1", None, 0.1j, decimal.Decimal("0.1"), [0.1]], ids=repr)
@pytest.mark.parametrize("name", ["lr", "eps", "weight_decay", "betas", "l1", "max_shrink"])
def test_what_is_no_number_is_refused_before_anything_is_written(any_backend, name, value):
    optimizer = ProxAdam(weights((3,), (4,)), **BUSY, **any_backend.options)
    optimizer.step()
    before = snapshot(optimizer)
    optimizer.param_groups[0][name] = (0.9, value) if name == "betas" else value
    kind, text = error_of(optimizer.step)
    assert kind is TypeError
    name = "beta2" if name == "betas" else name
    assert text == f"{name} is {value!r}, expected a number or a one-element tensor."
    assert_same_bits(snapshot(optimizer), before)


@pytest.mark.parametrize("name", ["lr", "eps", "weight_decay"])
def test_a_tensor_of_several_numbers_is_refused_before_anything_is_written(backend, name):
    optimizer = ProxAdam(weights((2,), (4,)), **BUSY, **backend.options)
    optimizer.step()
    before = snapshot(optimizer)
    optimizer.param_groups[0][name] = torch.tensor([0.1, 0.2])
    kind, text = error_of(optimizer.step)
    assert (kind, text) in [
        (ValueError, f"Tensor {name} must be 1-element, got shape (2,)"),
        (RuntimeError, "lr as a Tensor is not supported for capturable=False and foreach=True"),
    ]
    assert_same_bits(snapshot(optimizer), before)


@pytest.mark.parametrize("lr", [np.float32(0.125), np.float64(0.125), Fraction(1, 8)], ids=repr)
def test_numbers_of_other_makers_are_numbers(backend, lr):
    optimizer = ProxAdam(weights((9,)), **BUSY, **backend.options)
    expected = twin_of(optimizer)
    optimizer.param_groups[0]["lr"], expected.param_groups[0]["lr"] = lr, 0.125
    for each in (optimizer, expected):
        each.step()
    torch.testing.assert_close(snapshot(optimizer), snapshot(expected))


@pytest.mark.parametrize("flag", ["maximize", "amsgrad"])
@pytest.mark.parametrize("value", [1, "yes"], ids=repr)
def test_what_counts_as_true_is_a_flag(backend, flag, value):
    """As in torch's loop; torch's fused step takes nothing but True and False."""
    optimizer = ProxAdam(weights((9,)), l1=0.01, **backend.options)
    expected = twin_of(optimizer)
    optimizer.param_groups[0][flag], expected.param_groups[0][flag] = value, True
    for each in (optimizer, expected):
        each.step()
    assert_same_bits(snapshot(optimizer), snapshot(expected))


def test_betas_that_want_a_gradient_are_numbers_to_a_plain_step(backend):
    """They are differentiated by differentiable=True alone, as in torch."""
    if backend.options.get("foreach"):
        pytest.skip("foreach takes no tensor betas, as in torch.optim")
    betas = tuple(torch.tensor(b, requires_grad=True) for b in (0.5, 0.75))
    optimizer = ProxAdam(weights((9,)), lr=0.1, l1=0.01, betas=betas, **backend.options)
    by_number = ProxAdam(weights((9,)), lr=0.1, l1=0.01, betas=(0.5, 0.75), **backend.options)
    for param, twin in zip(params_of(optimizer), params_of(by_number), strict=True):
        twin.data.copy_(param.data)
        twin.grad = param.grad.clone()
    for _ in range(2):
        optimizer.step()
        by_number.step()
    torch.testing.assert_close(snapshot(optimizer), snapshot(by_number))
    assert not any(param.grad_fn for param in params_of(optimizer))


def test_the_function_hands_on_every_option(monkeypatch):
    names = [name for name in inspect.signature(prox_adam).parameters if hasattr(Options(), name)]
    given = {name: object() for name in names}
    groups = []
    monkeypatch.setattr(dispatch, "step", lambda those, *_: groups.extend(those))
    prox_adam([], [], [], [], [], [], **given)
    assert {name: getattr(groups[0].options, name) for name in names} == given
    assert {"lr", "beta1", "l1", "l21", "keep_zeros", "fused"} <= set(names)
