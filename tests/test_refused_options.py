"""Options, classes and leaves that no step can be taken with: one sentence, nothing has changed."""

from __future__ import annotations

import pytest
import torch
from torch.nn import Parameter
from torch.optim.adam import adam

from proxadam import ProxAdam, prox_adam
from tools import BUSY, LOOP, assert_same_bits, error_of, weights


def refused_unchanged(optimizer):
    """The error of a step, that may change nothing whatever."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    tensors = [t for p in params for t in (p, p.grad, *optimizer.state[p].values())]
    tensors = [t for t in tensors if type(t) in (torch.Tensor, Parameter)]
    before = [t.detach().clone() for t in tensors]
    error = error_of(optimizer.step)
    assert error is not None
    for tensor, copy in zip(tensors, before, strict=True):
        assert_same_bits(tensor, copy)
    return error


def two_groups(own, **late):
    """A group left to the default path, and one on a path of its own, with options set later."""
    mine, others = weights((3,), (2, 2)), weights((4,), ())
    groups = [{"params": mine}, {"params": others, **own}]
    optimizer = ProxAdam(groups, **BUSY)
    optimizer.step()
    optimizer.param_groups[1].update(late)
    return optimizer


@pytest.mark.parametrize("foreach", [False, True], ids=["loop", "foreach"])
@pytest.mark.parametrize(
    "options",
    [
        {"l1": 1e39, "lr": 1.0, "metric": "euclidean"},
        {"weight_decay": 1e39},
        {"lr": 1e39},
        {"lr": 3e38},
        {"lr": torch.tensor(1e39, dtype=torch.float64), "foreach": False},
        {"betas": (1e39, 0.999)},
    ],
    ids=str,
)
def test_a_number_that_float32_cannot_hold(foreach, options):
    optimizer = two_groups(LOOP, foreach=foreach)
    optimizer.param_groups[1].update(options)
    kind, text = refused_unchanged(optimizer)
    assert kind is RuntimeError
    assert "cannot be converted to type float without overflow" in text


@pytest.mark.parametrize(
    ("value", "kind"),
    [(10**400, ValueError), (1j, TypeError), (torch.tensor(1j), TypeError), ("1", TypeError)],
    ids=["10**400", "1j", "complex tensor", "string"],
)
@pytest.mark.parametrize(
    "name", ["lr", "eps", "weight_decay", "l1", "l2", "l21", "l1_knee", "max_shrink"]
)
def test_an_option_that_is_no_real_number(any_backend, name, value, kind):
    got, text = refused_unchanged(two_groups(any_backend.options, **{name: value}))
    assert got is kind
    assert name in text


@pytest.mark.parametrize("name", ["lr", "l1", "l2", "eps", "weight_decay", "max_shrink"])
def test_an_option_without_a_value(name):
    """On the device "meta"."""
    refused_unchanged(two_groups(LOOP, **{name: torch.ones((), device="meta")}))


@pytest.mark.parametrize("betas", [(-1.0, 0.9), (0.9, -1.0)])
def test_a_bias_correction_of_zero_at_an_even_step(any_backend, betas):
    if any_backend.step_on_device:
        pytest.skip("no host waits to read a step that is on the device")
    kind, text = refused_unchanged(two_groups(any_backend.options, betas=betas))
    assert kind is ValueError
    assert text.startswith("Invalid beta parameter")


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch's, of the class and of its missing ops
@pytest.mark.parametrize("own", [{}, LOOP], ids=["default", "loop"])
def test_a_gradient_of_a_class_without_the_ops(own):
    """Beside parameters that the kernel steps, and behind one of torch ops."""
    optimizer = two_groups(own, weight_decay=0.0)
    last = optimizer.param_groups[1]["params"][-1]
    last.grad = torch.masked.masked_tensor(last.grad, last.grad > 0)
    kind, text = refused_unchanged(optimizer)
    assert kind is TypeError
    assert "MaskedTensor" in text


@pytest.mark.parametrize("view", [False, True], ids=["leaf", "view of a leaf"])
def test_the_functional_twin_writes_no_leaf_behind_the_back_of_autograd(any_backend, view):
    free, (leaf,) = torch.ones(3), weights((3,))
    params = [free, leaf.view(3) if view else leaf]
    lists = [[torch.zeros(3) for _ in params] for _ in range(4)]
    steps = [torch.zeros(()) for _ in params]
    options = {"lr": 0.1, "beta1": 0.9, "beta2": 0.99, "weight_decay": 0.0, "eps": 1e-8}
    options |= {"amsgrad": False, "maximize": False, **any_backend.options}
    error = error_of(prox_adam, params, *lists, steps, **options)
    assert_same_bits(free, torch.ones(3))
    assert not any(step_t.item() for step_t in steps)
    kind, text = error_of(adam, params, *lists, steps, **{**options, "fused": False})
    assert error is not None
    assert error[0] is kind is RuntimeError
    assert error[1].startswith(text)


def test_a_differentiable_step_of_a_leaf():
    optimizer = two_groups(LOOP, differentiable=True)
    optimizer.defaults["differentiable"] = True
    kind, text = refused_unchanged(optimizer)
    assert kind is RuntimeError
    assert text.startswith("a leaf Variable that requires grad is being used in an in-place")


def test_lists_that_autograd_is_to_see():
    first, second = weights((3,), (3,))
    groups = [
        {"params": [first], "foreach": False},
        {"params": [second], "foreach": True, "differentiable": True},
    ]
    before = first.detach().clone()
    error = error_of(ProxAdam(groups).step)
    assert error == (AssertionError, "_foreach ops don't support autograd")
    assert_same_bits(first.detach(), before)
