"""The machine code of the CPU loop: each instance divides and takes roots by whole vectors.

A loop that a compiler, or a change of ours, leaves scalar gives the same bits several times slower.
"""

from __future__ import annotations

import importlib.util
import platform
import re
import shutil
import subprocess

import pytest

SPEC = importlib.util.find_spec("proxadam._cpu")
OBJDUMP = shutil.which("objdump")
# For each precision: Adam and four proxes, amsgrad, unscale.
LOOPS = 5 * 2 * 2

pytestmark = [
    pytest.mark.skipif(SPEC is None, reason="the CPU kernel is not built"),
    pytest.mark.skipif(OBJDUMP is None, reason="needs objdump"),
    pytest.mark.skipif(platform.machine() != "x86_64", reason="looks for instructions of x86-64"),
]


@pytest.fixture(scope="module")
def instructions():
    command = [OBJDUMP, "--disassemble", "--no-show-raw-insn", SPEC.origin]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("precision", ["ps", "pd"], ids=["float32", "float64"])
@pytest.mark.parametrize("operation", ["sqrt", "div"])
@pytest.mark.parametrize(
    ("prefix", "register"),
    [("", "xmm"), ("v", "ymm"), ("v", "zmm")],
    ids=["baseline", "avx2", "avx512"],
)
def test_every_loop_is_vectorised(instructions, prefix, register, operation, precision):
    if register not in instructions:
        pytest.skip(f"this build has no unit with {register}")
    pattern = rf"\s{prefix}{operation}{precision} .*%{register}"
    assert len(re.findall(pattern, instructions)) >= LOOPS
