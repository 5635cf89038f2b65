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
    if any_backend.name == "foreach" and not apart:
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
