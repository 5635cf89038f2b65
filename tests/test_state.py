"""State is made whole or not at all: a step that raises leaves none that it has made."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from proxadam import ProxAdam
from proxadam._step import dispatch
from tools import BUSY, assert_same_bits, error_of, params_of, snapshot, twin_of, weights

SHAPES = ((5, 3), (7,), ())


def out_of_memory_at(monkeypatch, count):
    """Let so many tensors of zeros be made, and no more."""
    zeros_like = torch.zeros_like
    left = iter(range(count))

    def allocate(*args, **kwargs):
        if next(left, None) is None:
            raise RuntimeError("not enough memory")
        return zeros_like(*args, **kwargs)

    monkeypatch.setattr(torch, "zeros_like", allocate)


@pytest.mark.parametrize("count", range(3 * len(SHAPES)))
def test_out_of_memory_in_the_first_step_leaves_no_state(any_backend, monkeypatch, count):
    optimizer = ProxAdam(weights(*SHAPES), **BUSY, **any_backend.options)
    expected = twin_of(optimizer)
    before = snapshot(optimizer)
    with monkeypatch.context() as patch:
        out_of_memory_at(patch, count)
        assert error_of(optimizer.step) == (RuntimeError, "not enough memory")
    assert not optimizer.state
    assert_same_bits(snapshot(optimizer), before)
    for one in (optimizer, expected):
        one.step()
    assert_same_bits(snapshot(optimizer), snapshot(expected))


def test_out_of_memory_leaves_the_state_of_the_other_parameters(any_backend, monkeypatch):
    """One parameter gets its first gradient, and amsgrad begins, in the middle of a run."""
    first, second, late = weights(*SHAPES)
    grad, late.grad = late.grad, None
    options = {**BUSY, **any_backend.options, "amsgrad": False}
    optimizer = ProxAdam([first, second, late], **options)
    optimizer.step()
    before = snapshot(optimizer)
    late.grad = grad
    optimizer.param_groups[0]["amsgrad"] = True
    for count in range(5):
        with monkeypatch.context() as patch:
            out_of_memory_at(patch, count)
            assert error_of(optimizer.step) == (RuntimeError, "not enough memory")
        assert_same_bits(snapshot(optimizer), before)
    optimizer.step()
    assert [state["step"] for state in optimizer.state.values()] == [2, 2, 1]


@pytest.mark.parametrize("late", ["sparse", "of another dtype", "option"])
def test_a_refused_step_leaves_no_state(any_backend, late):
    """Also where the second group is the one that is refused, and the first has made its own."""
    one, other = weights((4, 2), (4, 2))
    groups = [{"params": [one]}, {"params": [other]}]
    optimizer = ProxAdam(groups, **BUSY, **any_backend.options)
    before = snapshot(optimizer)
    good = other.grad
    if late == "sparse":
        other.grad = good.to_sparse()
    elif late == "of another dtype":
        other.grad_dtype = None
        other.grad = good.to(torch.float64)
    else:
        optimizer.param_groups[1]["l1"] = -1.0
    optimizer.state[one]  # a defaultdict's empty entry
    assert error_of(optimizer.step)[0] in (RuntimeError, ValueError)
    assert not any(optimizer.state.values())
    assert_same_bits(snapshot(optimizer), before)
    other.grad = good
    optimizer.param_groups[1]["l1"] = 0.01
    optimizer.step()
    assert [state["step"] for state in optimizer.state.values()] == [1, 1]


def test_an_exception_behind_the_step_does_not_take_its_state(any_backend, monkeypatch):
    """Ctrl-C, a signal's handler: the weights have moved, and so the moments stay."""
    optimizer = ProxAdam(weights(*SHAPES), **BUSY, **any_backend.options)
    expected = twin_of(optimizer)
    expected.step()

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(dispatch.dtensor, "increment_versions", interrupt)
    with pytest.raises(KeyboardInterrupt):
        optimizer.step()
    if not any_backend.step_on_device:  # a device is not asked
        assert_same_bits(snapshot(optimizer), snapshot(expected))


LIMITED = """
import resource, torch
from proxadam import ProxAdamW
params = [torch.nn.Parameter(torch.ones(n)) for n in (10, 50_000_000)]
for param in params:
    param.grad = torch.ones_like(param)
optimizer = ProxAdamW(params)
pages = int(open("/proc/self/statm").read().split()[0])
_, hard = resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 250_000_000, hard))
try:
    optimizer.step()
except RuntimeError as error:
    assert "alloc" in str(error), error
else:
    raise AssertionError("there was memory for it")
assert not optimizer.state
resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
optimizer.step()
assert [state["step"] for state in optimizer.state.values()] == [1, 1]
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc and limits the address space")
def test_a_process_that_ran_out_of_memory_goes_on_when_there_is_some():
    done = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_state_made_in_a_step_is_in_torchs_order():
    optimizer = ProxAdam(weights(*SHAPES), **BUSY)
    optimizer.step()
    assert list(optimizer.state) == params_of(optimizer)
    for state in optimizer.state.values():
        assert list(state) == ["step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"]
