"""What is built, what is chosen, and what is said where the kernel is missing."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch.nn import Parameter

import proxadam
from proxadam import ProxAdam, __main__, _self_test, available_backends, backends, is_built

WITHOUT_KERNEL = "import sys; sys.modules['proxadam._cpu'] = sys.modules['proxadam._cuda'] = None\n"


def _python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, **environment}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)


def test_names_and_presence():
    assert available_backends()[-1] == "torch"
    assert ("cpu" in available_backends()) <= is_built("cpu")
    with pytest.raises(ValueError, match="Invalid device_type: 'tpu'"):
        is_built("tpu")


@pytest.mark.skipif(
    os.environ.get("PROXADAM_REQUIRE_NATIVE") != "1", reason="the native build is not demanded here"
)
def test_native_build_is_there_where_it_is_demanded():
    assert "cpu" in available_backends()


@pytest.mark.skipif(
    os.environ.get("PROXADAM_CUDA") != "ON", reason="the CUDA build is not demanded here"
)
def test_cuda_build_is_there_where_it_is_demanded():
    assert is_built("cuda")


def test_a_cuda_build_without_a_gpu_says_so():
    if not is_built("cuda") or torch.cuda.is_available():
        pytest.skip("needs the CUDA kernel and no GPU")
    assert "cuda" not in available_backends()
    reason = backends.reason_for_fallback("cuda")
    assert reason.startswith("the cuda kernel is built, and torch ")
    assert reason.endswith(" sees no CUDA device here")


def test_report(capsys):
    __main__.main()
    report = capsys.readouterr().out
    for word in (proxadam.__version__, torch.__version__, "backends", "cpu", "cuda"):
        assert word in report
    reason = backends.reason_for_fallback("cpu")
    assert (f"{torch.get_num_threads()} threads" if reason is None else reason) in report


def test_the_self_test_passes_on_every_backend(capsys):
    assert __main__.main(["--self-test"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "self-test" in line]
    assert all(line.endswith(": passed, the zeros are exact") for line in lines)
    kernel = backends.kernel("cpu")
    sets = kernel.capabilities() if kernel else []
    for way in ["torch ops", *(f"cpu kernel, {name}" for name in sets)]:
        for dtype in ("float32", "bfloat16"):
            assert sum(line.startswith(f"self-test {way}, {dtype}: ") for line in lines) == 1
    if kernel:
        assert kernel.capability() == sets[-1] or "PROXADAM_CPU_CAPABILITY" in os.environ


def _halve(param):
    param.mul_(0.5)


def _leave_a_trace_in_zeros(param):
    param.add_(1e-30)


def _refuse(_):
    raise RuntimeError("no step today")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_halve, "from the solution, expected < 0.01"),
        (_leave_a_trace_in_zeros, "0 of 40009 weights are zero, expected 17147"),
        (_refuse, "FAILED, RuntimeError: no step today"),
    ],
)
def test_the_self_test_tells_a_wrong_step(monkeypatch, capsys, spoil, said):
    step = ProxAdam.step

    def spoilt(self):
        step(self)
        spoil(self.param_groups[0]["params"][0].data)

    monkeypatch.setattr(ProxAdam, "step", spoilt)
    monkeypatch.setattr(_self_test, "_ways", lambda: [("torch ops", "cpu", False)])
    assert __main__.main(["--self-test"]) == 1
    report = capsys.readouterr().out
    assert said in report
    assert "passed" not in report


def test_without_the_kernel_torch_ops_take_the_step():
    done = _python(
        WITHOUT_KERNEL + "import torch, proxadam\n"
        "assert proxadam.available_backends() == ['torch'] and not proxadam.is_built('cpu')\n"
        "p = torch.nn.Parameter(torch.ones(5)); p.grad = torch.zeros(5)\n"
        "o = proxadam.ProxAdam([p], lr=0.2, l1=0.1)\n"
        "o.step(); assert (p == 0).all()\n"
    )
    assert done.returncode == 0, done.stderr


def test_without_the_kernel_fused_true_is_one_sentence():
    done = _python(
        WITHOUT_KERNEL + "import torch, proxadam\n"
        "proxadam.ProxAdam([torch.nn.Parameter(torch.ones(5))], fused=True)\n"
    )
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("RuntimeError: `fused=True` cannot be had: the cpu kernel is not built")
    assert "PROXADAM_REQUIRE_NATIVE=1" in last
    assert "--no-cache-dir --force-reinstall" in last  # pip's cache may have the wheel without it


def test_report_without_the_kernel_says_why():
    done = _python(
        WITHOUT_KERNEL + "import runpy; runpy.run_module('proxadam', run_name='__main__')"
    )
    assert "torch ops, because the cpu kernel is not built here" in done.stdout, done.stderr


def test_self_test_without_the_kernel():
    done = _python(
        WITHOUT_KERNEL + "import runpy; sys.argv[1:] = ['--self-test']\n"
        "runpy.run_module('proxadam', run_name='__main__')"
    )
    assert done.returncode == 0, done.stderr
    assert "self-test torch ops, float32: passed" in done.stdout
    assert "kernel, " not in done.stdout


AGAIN = """
import importlib, sys, torch
import proxadam as first

def step(package):
    calls = []
    dispatch = sys.modules["proxadam._step.dispatch"]
    admit, dispatch._admit = dispatch._admit, lambda *a: calls.append(1) or admit(*a)
    param = torch.nn.Parameter(torch.ones(5)); param.grad = torch.zeros(5)
    optimizer = package.ProxAdam([param], lr=0.1, l1=0.1)
    optimizer.step()
    torch.compile(optimizer.step, backend="eager", fullgraph=True)()
    assert optimizer.state[param]["step"] == 2 and (param == 0).all(), param
    assert len(calls) == 1 + ("cpu" in package.available_backends()), calls
    dispatch._admit = admit

step(first)
before = first.available_backends()
for name in [name for name in sys.modules if name.split(".")[0] == "proxadam"]:
    del sys.modules[name]
import proxadam as second
assert second.ProxAdam is not first.ProxAdam
step(second)
for name in ("_step.compiled", "_step.dispatch", "optimizer"):
    importlib.reload(sys.modules[f"proxadam.{name}"])
step(importlib.reload(second))
assert second.available_backends() == before
"""


def test_the_package_may_be_imported_again():
    """As notebooks do, and test runners: the op is torch's for the life of the process."""
    done = _python(AGAIN)
    assert done.returncode == 0, done.stderr


def test_capability_from_the_environment(kernel_module):
    code = "from proxadam import _cpu; print(_cpu.capability())"
    for name in kernel_module.capabilities():
        assert _python(code, PROXADAM_CPU_CAPABILITY=name).stdout.strip() == name
    done = _python(code, PROXADAM_CPU_CAPABILITY="mmx")
    assert 'PROXADAM_CPU_CAPABILITY is "mmx", expected one that this machine has' in done.stderr


def test_fused_false_and_an_explicit_foreach_forbid_the_kernel(kernel_module, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("the kernel was called")

    monkeypatch.setattr(kernel_module, "admit", refuse)
    for options in ({"fused": False}, {"foreach": False}, {"foreach": True}):
        param = Parameter(torch.ones(3))
        param.grad = torch.ones(3)
        ProxAdam([param], **options).step()
    param.grad = torch.ones(3)
    with pytest.raises(AssertionError, match="the kernel was called"):
        ProxAdam([param]).step()


def test_functional_lists_of_different_lengths_are_refused(backend):
    tensors = [torch.ones(3)]
    with pytest.raises(ValueError):
        proxadam.prox_adam(
            tensors, tensors, [], tensors, [], [torch.tensor(0.0)],
            amsgrad=False, beta1=0.9, beta2=0.999, lr=0.1, weight_decay=0.0, eps=1e-8,
            maximize=False, **backend.options,
        )  # fmt: skip
    assert torch.equal(tensors[0], torch.ones(3))
