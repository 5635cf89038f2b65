"""What a step of the kernel costs the host, in counts that no other load on the machine changes.

Times are judged by ``bench/step.py --check``, on an idle machine; these counts anywhere.
"""

from __future__ import annotations

import collections
import sys

import pytest
import torch
from torch.nn import Parameter
from torch.profiler import ProfilerActivity, profile

from proxadam import ProxAdam

BUSY = {"lr": 0.01, "l1": 0.1, "l2": 0.1, "weight_decay": 0.01}
# Of each parameter: torch has a Python function for a tensor's hash, which calls `id`; the state is
# looked up, and five lists are appended to.
CALLS = collections.Counter(__hash__=1)
C_CALLS = collections.Counter(id=1, get=1, append=5)


def _optimizer(count, groups=1, numel=3, **options):
    params = [Parameter(torch.randn(numel)) for _ in range(count)]
    for param in params:
        param.grad = torch.randn_like(param)
    cut = [{"params": params[i::groups]} for i in range(groups)]
    optimizer = ProxAdam(cut, **{**BUSY, **options})
    optimizer.step()  # makes the state
    return optimizer


def _profiled(optimizer):
    """The names of what torch's profiler sees of one step: its ops, and the step itself."""
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as seen:
        optimizer.step()
    return {event.key for event in seen.key_averages()}


def _calls(optimizer):
    """Calls in one step: of Python functions by name, of C functions by module and name."""
    counts = {"call": collections.Counter(), "c_call": collections.Counter()}

    def note(frame, event, function):
        if event == "call":
            counts[event][frame.f_code.co_name] += 1
        elif event == "c_call":
            counts[event][getattr(function, "__module__", None), function.__name__] += 1

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        optimizer.step()
    finally:
        sys.setprofile(before)
    return counts["call"], counts["c_call"]


@pytest.mark.parametrize("amsgrad", [False, True], ids=["", "amsgrad"])
@pytest.mark.parametrize("count", [1, 100])
def test_no_torch_op(kernel_module, count, amsgrad):  # noqa: ARG001
    optimizer = _optimizer(count, amsgrad=amsgrad)
    assert _profiled(optimizer) == {"Optimizer.step#ProxAdam.step"}
    optimizer.param_groups[0]["foreach"] = False
    assert "aten::addcdiv_" in _profiled(optimizer)  # so ops would be seen


@pytest.mark.parametrize("groups", [1, 3])
def test_one_native_call(kernel_module, groups):  # noqa: ARG001
    _, c_calls = _calls(_optimizer(30, groups=groups))
    native = {name: n for (module, name), n in c_calls.items() if "_cpu" in str(module)}
    assert sum(native.values()) == 1, native


def test_python_that_a_parameter_costs(kernel_module):  # noqa: ARG001
    two, three = (_calls(_optimizer(count)) for count in (2, 3))
    assert three[0] - two[0] <= CALLS
    grown = three[1] - two[1]
    assert collections.Counter({name: n for (_, name), n in grown.items()}) <= C_CALLS


def test_calls_do_not_grow_with_the_weights(kernel_module):  # noqa: ARG001
    few, many = (_calls(_optimizer(3, numel=numel)) for numel in (3, 100_000))
    assert many == few


def test_no_memory_for_any_number_of_parameters(kernel_module):  # noqa: ARG001
    optimizer = _optimizer(100, numel=10_000)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as seen:
        optimizer.step()
    assert sum(max(0, event.self_cpu_memory_usage) for event in seen.key_averages()) < 1024
