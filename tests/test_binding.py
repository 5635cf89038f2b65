"""How a native module comes to know this process's torch: once, believing what it has checked."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest

from proxadam import backends
from tools import HIDES_GPUS

GATEKEEPER = str(Path(__file__).with_name("test_gatekeeper.py"))

# ---- what is asked of libtorch ----------------------------------------------------------------

OTHER_FUNCTIONS = """
import sys, pytest
from proxadam import backends
backends.FUNCTIONS |= FUNCTIONS
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "-k", "turned_away or changes", FILE]))
"""
BOUND_IN_A_MODE = """
import torch
from proxadam import backends
from torch._subclasses import FakeTensorMode
from test_gatekeeper import group_of
with MODE: kernel = backends.kernel("cpu")
group = group_of()
group.grads[0] = torch._lazy_clone(group.grads[0])
assert kernel.admit([group]) is None
assert torch._C._is_cow_tensor(group.grads[0])
"""


@pytest.mark.parametrize(
    "functions",
    [
        {"sizes": "not_there"},
        dict.fromkeys(backends.FUNCTIONS, "not_there"),
        {"strides": "aoti_torch_get_sizes", "is_neg": backends.FUNCTIONS["is_inference"]},
    ],
    ids=["one is missing", "all are missing", "two are wrong"],
)
def test_functions_that_cannot_be_believed(kernel_module, functions):  # noqa: ARG001
    """DLPack's exchange table and the methods of tensors tell the same."""
    _run(f"FUNCTIONS = {functions}\nFILE = {GATEKEEPER!r}\n{OTHER_FUNCTIONS}")


@pytest.mark.parametrize("mode", ["FakeTensorMode()", "torch.device('meta')"])
def test_functions_are_believed_in_whatever_mode_a_kernel_is_first_asked_for(
    kernel_module,  # noqa: ARG001
    mode,
):
    _run(BOUND_IN_A_MODE.replace("MODE", mode))


def _run(code):
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
        env={**os.environ, **HIDES_GPUS},
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


# ---- the first step of a process --------------------------------------------------------------

FIRST_STEP = """
import os, signal, threading, torch
from proxadam import ProxAdam
torch.set_num_threads(2)
torch.ones(1_000_000).exp_()
def optimizer():
    params = [torch.nn.Parameter(torch.ones(10_000)) for _ in range(20)]
    for param in params: param.grad = torch.ones(10_000)
    return ProxAdam(params)
"""
IN_THREADS = """
barrier = threading.Barrier(4)
def run(o):
    barrier.wait()
    for _ in range(20): o.step()
threads = [threading.Thread(target=run, args=(optimizer(),)) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""
IN_A_FORK = """
o = optimizer()
if (pid := os.fork()) == 0:
    signal.alarm(20); o.step(); os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
"""


@pytest.mark.parametrize(
    ("code", "times"), [(IN_THREADS, 3), (IN_A_FORK, 1)], ids=["threads at once", "forked child"]
)
def test_the_first_step_of_a_process(code, times):
    for _ in itertools.repeat(None, times):
        _run(FIRST_STEP + code)
