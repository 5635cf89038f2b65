"""What sparsity, stationarity and suggest_l1 share: they read weights and moments, and no more."""

from __future__ import annotations

import math

import pytest
import torch

from proxadam import ProxAdam, sparsity, stationarity, suggest_l1
from proxadam._sparsity import reading
from tools import assert_same_bits, error_of, snapshot, weights


class Reads(torch.utils._python_dispatch.TorchDispatchMode):
    """Counts what makes the host wait for a device: tensors turned into numbers."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
            self.count += any(isinstance(a, torch.Tensor) and a.numel() for a in args)
        return func(*args, **(kwargs or {}))


class _OnDevice(torch.Tensor):
    """Says that it is not on the host, so that nobody reads it there."""

    @property
    def is_cpu(self):
        return False


def test_dtypes_may_differ():
    params = [*weights((5,)), *weights((5,), dtype=torch.float64), *weights((0,))]
    optimizer = ProxAdam(params, l1=0.1)
    optimizer.step()
    report = stationarity(optimizer)
    assert list(report.params) == ["0.0", "0.1"]
    parts = [value**2 for value in report.params.values()]
    assert report.total == pytest.approx(math.sqrt(sum(parts) / 2))
    m_hat = torch.cat([p.grad.double() for p in params]).abs()  # after one step
    assert suggest_l1(optimizer) == pytest.approx(m_hat.sort().values[8].item())


def test_strides_do_not_matter(monkeypatch):
    """The gradient, or the weight, may lie in memory in another order than the moments."""
    monkeypatch.setattr(reading, "_CPU_CHUNK", 7)
    found = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        (param,) = weights((2, 3, 4, 5))
        param.data = param.data.contiguous(memory_format=memory_format)
        optimizer = ProxAdam([param], l1=0.1)
        optimizer.step()
        for gradient in ("exp_avg", "grad"):
            report = stationarity(optimizer, gradient=gradient)
            found.append([report.total, report.max, suggest_l1(optimizer)])
    assert found[0] == pytest.approx(found[2]) and found[1] == pytest.approx(found[3])


@pytest.mark.parametrize("measure", [sparsity, stationarity])
def test_measuring_waits_for_nothing_and_changes_nothing(measure):
    optimizer = ProxAdam(weights((4, 5), (3,), (2,)), l1=0.1)
    optimizer.step()
    before = snapshot(optimizer)
    for state in optimizer.state.values():  # a step on the device, as with capturable=True
        state["step"] = _OnDevice(state["step"])
    with Reads() as reads:
        report = measure(optimizer)
        repr(report)
        assert reads.count == 0
        float(report)
    assert_same_bits(snapshot(optimizer), before)


def test_a_state_before_its_first_step_counts_as_none():
    """A GradScaler that skips the first step leaves moments with a count of 0."""
    (param,) = weights((5,))
    optimizer = ProxAdam([param])
    optimizer.step()
    optimizer.state[param]["step"].zero_()
    assert math.isnan(stationarity(optimizer).total)
    raised, text = error_of(suggest_l1, optimizer)
    assert raised is ValueError and "has taken some steps" in text
