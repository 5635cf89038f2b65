"""What sparsity, stationarity and suggest_l1 share: they read weights and moments, and no more."""

from __future__ import annotations

import copy
import math
import subprocess
import sys

import pytest
import torch

from formats import BF16, NARROW, SMALL, each_format
from proxadam import ProxAdam, sparsity, stationarity, suggest_l1
from proxadam._sparsity import reading
from tools import assert_same_bits, error_of, params_of, snapshot, weights


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


def _in_format(kept, metric="adaptive", steps=3, **options):
    torch.manual_seed(0)
    params = kept.weights((70, 61), (7,), (8, 16, 5, 9))
    optimizer = ProxAdam(params, metric=metric, **{"lr": 0.01, "l1": 0.1, **options})
    for _ in range(steps):
        for param in params:
            param.grad = (param.detach() + torch.randn(param.shape)).to(param)
        optimizer.step()
    return optimizer


def _numbers(optimizer):
    residual = stationarity(optimizer)
    rms = [*residual.params.values(), *residual.groups, residual.total]
    return [*rms, residual.max, *(suggest_l1(optimizer, share) for share in (0.1, 0.5, 0.9))]


@each_format([*SMALL, *NARROW])
@pytest.mark.parametrize("metric", ["adaptive", "euclidean"])
def test_what_is_read_of_a_format_is_read_of_its_moments_in_float32(kept, metric, monkeypatch):
    monkeypatch.setattr(reading, "_CPU_CHUNK", 1000)
    small = _in_format(kept, metric, **kept.options)
    params = [torch.nn.Parameter(p.detach().clone()) for p in params_of(small)]
    wide = ProxAdam(params, state_dtype=torch.float32)
    wide.load_state_dict(copy.deepcopy(small.state_dict()))
    assert _numbers(small) == _numbers(wide)


@each_format(SMALL)
@pytest.mark.parametrize("metric", ["adaptive", "euclidean"])
def test_a_format_reads_as_float32_within_its_error(kept, metric):
    """A number over thousands of weights is nearer than one of them, whose error is by chance."""
    small, wide = (_numbers(_in_format(kept, metric, 20, **o)) for o in (kept.options, {}))
    of_all = slice(3, 5)
    unit = 2.0**-8 if kept is BF16 else 2.0**-4
    assert small != wide
    assert small[of_all] == pytest.approx(wide[of_all], rel=unit / 4)
    assert small[-3:] == pytest.approx(wide[-3:], rel=2 * unit)


FREED = """
import torch
from proxadam import *

NUMEL = 1 << 22  # so many that what is behind the storage is no memory
READERS = {
    "sparsity": lambda optimizer: float(sparsity(optimizer)),
    "stationarity": lambda optimizer: float(stationarity(optimizer)),
    "suggest_l1": lambda optimizer: suggest_l1(optimizer, 0.5),
    "to_adam_state_dict": to_adam_state_dict,
    "SparsityRamp": lambda optimizer: SparsityRamp(optimizer, 0.5, begin=0, end=1).step(),
}
MOMENTS = {None: ("exp_avg", "exp_avg_sq"), "8bit": ("exp_avg_sq_code", "exp_avg_sq_exponent")}
refused = 0
for state_dtype, names in MOMENTS.items():
    for name in ("param", *names):
        for kept in (0, 64):
            param = torch.nn.Parameter(torch.ones(NUMEL // 64, 64))
            param.grad = torch.ones_like(param)
            optimizer = ProxAdamW([param], l1=1e-3, state_dtype=state_dtype)
            optimizer.step()
            tensor = param.data if name == "param" else optimizer.state[param][name]
            tensor.untyped_storage().resize_(kept)
            for reader, read in READERS.items():
                try:
                    read(optimizer)
                except RuntimeError as error:
                    assert "not allocated" in str(error), error
                    refused += 1
print(refused)
"""


def test_tools_do_not_read_what_is_freed_or_cut():
    """A ramp wrote zeros beyond a parameter, as FSDP1 leaves them between its steps."""
    done = subprocess.run([sys.executable, "-c", FREED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:] or done.returncode
    of_parameters = 4 * 4  # those that read them, in two formats, freed and cut
    of_moments = 2 * (2 + 3)  # exp_avg is read by two of them, exp_avg_sq by three
    of_codes = 2 * 2 * 4
    assert int(done.stdout) == of_parameters + of_moments + of_codes
