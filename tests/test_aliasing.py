"""Memory that several parameters share: stepped one after the other, never by two threads."""

from __future__ import annotations

import pytest
import torch
from torch.nn import Parameter

from proxadam import ProxAdam
from tools import BUSY, LOOP, assert_same_bits, error_of, snapshot, threads, weights

ALIASES = {
    "same view twice": (lambda b: b, lambda b: b),
    "shifted": (lambda b: b[:-9], lambda b: b[9:]),
    "inner": (lambda b: b, lambda b: b[100:200]),
    "transposed": (lambda b: b[:900].view(30, 30), lambda b: b[:900].view(30, 30).t()),
    "dense, then with gaps": (lambda b: b[:300], lambda b: b[::2]),
    "with gaps, then dense": (lambda b: b[::2], lambda b: b[:300]),
    "both with gaps": (lambda b: b[::2], lambda b: b[::3]),
    "three in a chain": (lambda b: b[:500], lambda b: b[400:900], lambda b: b[800:]),
}


def step_aliases(alias, size, *, apart=False, **options):
    """The base after one step of parameters that overlap in it, and the error if there was one."""
    torch.manual_seed(0)
    base = torch.randn(size)
    params = [Parameter(view(base)) for view in ALIASES[alias]]
    for param in params:
        param.grad = torch.randn_like(param)
    groups = [{"params": [param]} for param in params] if apart else params
    before = base.clone()
    error = error_of(ProxAdam(groups, **BUSY, **options).step)
    if error:
        assert_same_bits(base, before)
    return base, error


@pytest.mark.parametrize("apart", [False, True], ids=["together", "apart"])
@pytest.mark.parametrize("alias", ALIASES)
def test_overlapping_parameters_are_stepped_one_after_the_other(any_backend, alias, apart):
    actual, error = step_aliases(alias, 2000, apart=apart, **any_backend.options)
    if any_backend.is_kernel:
        kind, text = error
        assert kind is RuntimeError
        assert text.startswith("`fused=True` needs the kernel for every parameter, and parameter ")
        return
    assert error is None
    if any_backend.options.get("foreach") and not apart:
        return  # each operation goes over all of them before the next, as in torch
    expected, _ = step_aliases(alias, 2000, **LOOP)
    torch.testing.assert_close(actual, expected, rtol=2e-6, atol=2e-7)


@pytest.mark.parametrize("alias", ["same view twice", "shifted"])
def test_threads_do_not_race_on_overlapping_parameters(alias):
    with threads(4):
        actual, _ = step_aliases(alias, 100_000)
    assert_same_bits(actual, step_aliases(alias, 100_000, **LOOP)[0])


each_path = pytest.mark.parametrize(
    ("ours", "theirs"),
    [(LOOP, LOOP), ({}, LOOP), ({"foreach": True}, {"foreach": True})],
    ids=["loop", "auto", "foreach"],
)


@each_path
def test_one_parameter_twice_in_a_group_is_stepped_twice_as_in_torch(ours, theirs):
    def run(cls, options):
        torch.manual_seed(0)
        (param,) = weights((50,))
        with pytest.warns(UserWarning, match="duplicate parameters"):
            optimizer = cls([param, param], **options)
        optimizer.step()
        assert optimizer.state[param]["step"] == 2
        return snapshot(optimizer)

    assert_same_bits(run(ProxAdam, ours), run(torch.optim.Adam, theirs))


@each_path
def test_a_parameter_that_overlaps_itself_is_stepped_as_in_torch(ours, theirs):
    def run(cls, options):
        torch.manual_seed(0)
        param = Parameter(torch.randn(9).as_strided((3, 4), (2, 1)))
        param.grad = torch.randn(3, 4)
        optimizer = cls([param], weight_decay=0.1, **options)
        for _ in range(2):
            optimizer.step()
        return snapshot(optimizer)

    assert_same_bits(run(ProxAdam, ours), run(torch.optim.Adam, theirs))


# ---- state and gradients that are shared -------------------------------------------------------

NUMEL = 20_000


def share_state(first, second):
    second.update(first)


def share(name):
    def spoil(first, second):
        second[name] = first[name]

    return spoil


def share_a_part(name):
    def spoil(first, second):
        base = torch.cat([first[name], second[name]])
        first[name], second[name] = base[:NUMEL], base[NUMEL // 2 : NUMEL // 2 + NUMEL]

    return spoil


SHARED_STATE = {
    "all": share_state,
    "exp_avg": share("exp_avg"),
    "exp_avg_sq": share("exp_avg_sq"),
    "max_exp_avg_sq": share("max_exp_avg_sq"),
    "step": share("step"),
    "part of exp_avg": share_a_part("exp_avg"),
    "part of max_exp_avg_sq": share_a_part("max_exp_avg_sq"),
}
SHARED_GRADS = {
    "the other's data": lambda params, _: params[0].detach(),
    "the other's moment": lambda _, first: first["exp_avg"],
    "its own data": lambda params, _: params[2].detach(),
}


def step_shared(cls, spoil, *, apart=False, options=({}, {}), **all_of_them):
    """Three steps of four parameters, of which `spoil(params, state)` makes two share memory."""
    torch.manual_seed(0)
    params = [Parameter(torch.randn(NUMEL)) for _ in range(4)]
    for param in params:
        param.grad = torch.randn_like(param)
    cut = [params[:2], params[2:]] if apart else [params]
    groups = [{"params": group, **own} for group, own in zip(cut, options, strict=False)]
    optimizer = cls(groups, lr=0.05, amsgrad=True, **all_of_them)
    optimizer.step()
    spoil(params, [optimizer.state[param] for param in params])
    for _ in range(2):
        optimizer.step()
    return snapshot(optimizer)


def assert_stepped_in_list_order(spoil, apart, options, ours):
    expected = step_shared(torch.optim.Adam, spoil, apart=apart, **LOOP)
    for count in (1, 4):
        with threads(count):
            actual = step_shared(ProxAdam, spoil, apart=apart, options=options, **ours)
        assert actual.keys() == expected.keys()
        for name, tensor in expected.items():
            torch.testing.assert_close(actual[name], tensor, rtol=2e-6, atol=2e-7)


each_mix = pytest.mark.parametrize(
    ("apart", "options"),
    [(False, [{}]), (True, [{}, {}]), (True, [{"foreach": False}, {}]), (True, [{}, LOOP])],
    ids=["one group", "two groups", "a loop, then auto", "auto, then a loop"],
)


@each_mix
@pytest.mark.parametrize("shared", SHARED_STATE)
def test_shared_state_is_stepped_in_list_order(kernel_module, shared, apart, options):  # noqa: ARG001
    def spoil(_, states):
        SHARED_STATE[shared](states[0], states[2])

    assert_stepped_in_list_order(spoil, apart, options, {})


@each_mix
@pytest.mark.parametrize("shared", SHARED_GRADS)
def test_shared_gradients_are_read_in_list_order(kernel_module, shared, apart, options):  # noqa: ARG001
    def spoil(params, states):
        params[2].grad = SHARED_GRADS[shared](params, states[0])

    assert_stepped_in_list_order(spoil, apart, options, {})


def test_a_gradient_of_two_parameters_is_no_reason_to_leave_the_kernel(kernel_module):  # noqa: ARG001
    def spoil(params, _):
        params[2].grad = params[0].grad

    step_shared(ProxAdam, spoil, fused=True)


@pytest.mark.parametrize("shared", SHARED_STATE)
def test_fused_refuses_shared_state(kernel_module, shared):  # noqa: ARG001
    def spoil(_, states):
        SHARED_STATE[shared](states[0], states[2])

    kind, text = error_of(step_shared, ProxAdam, spoil, fused=True)
    assert kind is RuntimeError
    assert "parameter 0 of shape (20000,) shares memory with another parameter" in text


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("exp_avg", "grad"), ("exp_avg_sq", "grad"), ("exp_avg", "exp_avg_sq"),
        ("exp_avg", "param"), ("exp_avg_sq", "max_exp_avg_sq"), ("grad", "param"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("shift", [0, 1], ids=["all", "a part"])
def test_the_tensors_of_one_parameter_may_not_share_memory(any_backend, name, other, shift):
    """But a gradient that is the parameter, element by element: Adam reads it before it writes."""
    torch.manual_seed(0)
    (param,) = weights((9,))
    untouched = weights((5,))[0]
    optimizer = ProxAdam([untouched, param], amsgrad=True, l1=0.01, **any_backend.options)
    optimizer.step()
    base = torch.rand(10)
    own = optimizer.state[param]
    for key, view in ((name, base[:9]), (other, base[shift : 9 + shift])):
        if key == "param":
            param.data = view
        elif key == "grad":
            param.grad = view
        else:
            own[key] = view
    before = snapshot(optimizer)
    error = error_of(optimizer.step)
    if (name, other, shift) == ("grad", "param", 0) and not any_backend.is_kernel:
        assert error is None
        return
    assert error[0] is RuntimeError
    assert "memory" in error[1]
    assert_same_bits(snapshot(optimizer), before)


def test_memory_that_comes_to_be_shared_and_ceases_to_be(kernel_module):  # noqa: ARG001
    """What a look remembers of the step before must not outlive it."""
    params = weights(*[(50,)] * 6)
    optimizer = ProxAdam(params, **BUSY, fused=True)
    optimizer.step()
    states = [optimizer.state[param] for param in params]
    own = states[4]["exp_avg"]
    for _ in range(3):
        states[4]["exp_avg"] = states[1]["exp_avg"]
        for _ in range(2):
            assert "shares memory" in error_of(optimizer.step)[1]
        states[4]["exp_avg"] = own
        grad, params[2].grad = params[2].grad, params[3].detach()
        assert "parameter 2 of shape (50,) shares memory" in error_of(optimizer.step)[1]
        params[2].grad = grad
        optimizer.step()
        optimizer.step()
