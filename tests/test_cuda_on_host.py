"""The CUDA kernels without a GPU: their own source on host threads, under two sanitizers.

Compiles csrc/cuda with the runtime in cuda_on_host/, and in a process of its own runs the tests of
the kernel, and those of every backend that reach it through the optimizer.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import cuda_on_host
from tools import HIDES_GPUS

HERE = Path(__file__).parent
SUITES = ["test_cuda_kernel.py", "test_small_state_on_cuda.py", "test_rows_on_cuda.py"]
SUITES += ["test_step.py", "test_rows.py", "test_layout.py", "test_special_values.py"]

pytestmark = [
    pytest.mark.skipif(cuda_on_host.directory() is not None, reason="this is that process"),
    pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++"),
    pytest.mark.skipif(sys.platform != "linux", reason="preloads the sanitizers' libraries"),
]


def _library(name: str) -> str:
    done = subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """What a process needs to run the kernels on the host; building them takes about a minute."""
    build = pytest.importorskip("cuda_on_host.build", reason="needs pybind11 to compile")
    libraries = [_library("libasan.so"), _library("libubsan.so")]
    if not all(map(os.path.isabs, libraries)):
        pytest.skip("this g++ has no sanitizers")
    directory = tmp_path_factory.mktemp("cuda_on_host")
    build.build(directory, sanitize=True)
    return {
        **os.environ,
        "PROXADAM_CUDA_ON_HOST": str(directory),
        "LD_PRELOAD": " ".join(libraries),
        # Leaks are Python's own. An abort, unlike an exit, shows the test. NVIDIA's driver, where
        # there is one, maps its memory into the gap.
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1:protect_shadow_gap=0",
        **HIDES_GPUS,
        "UBSAN_OPTIONS": "print_stacktrace=1:abort_on_error=1",
    }


def test_warps_that_share_a_row_do_not_race(tmp_path):
    """Blocks of four warps under ThreadSanitizer, to the bits of the CPU loop.

    Those of the other tests have one warp, for threads are dear there.
    """
    build = pytest.importorskip("cuda_on_host.build", reason="needs pybind11 to compile")
    if not Path(_library("libtsan.so")).is_absolute():
        pytest.skip("this g++ has no ThreadSanitizer")
    program = build.many_warps(tmp_path)
    done = subprocess.run([str(program)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[:5000]
    assert "the same" in done.stdout


@pytest.mark.parametrize("suite", SUITES)
def test_on_the_host(environment, suite):
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    command += ["--capture=sys"]  # a sanitizer's report is no output of Python
    done = subprocess.run(
        [*command, str(HERE / suite)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[:5000]
    assert " passed" in done.stdout
