"""What nvcc made of the kernels, read from the machine code: no GPU is needed."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from proxadam import backends

SPEC = importlib.util.find_spec("proxadam._cuda")
BINARY = Path(SPEC.origin) if SPEC else None
# NVIDIA's wheels of the two tools put them here; cuobjdump looks for nvdisasm on PATH.
WHEELS = [tools for place in sys.path for tools in Path(place).glob("nvidia/*/bin")]
PATH = ":".join([*map(str, WHEELS), "/usr/local/cuda/bin", "/usr/bin", "/bin"])
CUOBJDUMP = shutil.which("cuobjdump") or shutil.which("cuobjdump", path=PATH)

pytestmark = [
    pytest.mark.skipif(BINARY is None, reason="built without the CUDA kernel"),
    pytest.mark.skipif(CUOBJDUMP is None, reason="needs cuobjdump and nvdisasm"),
]


def cuobjdump(*options: str) -> str:
    done = subprocess.run(
        [CUOBJDUMP, *options, str(BINARY)], capture_output=True, text=True, env={"PATH": PATH}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def kernels() -> dict[tuple[str, str], list[str]]:
    """Instructions of every kernel, by architecture and mangled name."""
    found: dict[tuple[str, str], list[str]] = {}
    arch = ""
    for line in cuobjdump("-sass").splitlines():
        if line.startswith("arch = "):
            arch = line.removeprefix("arch = ")
        elif "Function : " in line:
            instructions = found.setdefault((arch, line.split(" : ")[1]), [])
        elif re.match(r"\s+/\*[0-9a-f]{4,}\*/", line):
            instructions.append(line.split("*/")[1].strip())
    return found


def main_kernels(kernels):
    return {key: code for key, code in kernels.items() if "prox_adam_kernel" in key[1]}


def test_machine_code_for_each_architecture_and_ptx_for_those_to_come():
    real = set(re.findall(r"sm_(\d+)\.cubin", cuobjdump("--list-elf")))
    ptx = set(re.findall(r"sm_(\d+)\.ptx", cuobjdump("--list-ptx")))
    assert real >= {"80", "90"}
    assert ptx == {max(real, key=int)}


def test_every_kernel_is_there_for_every_architecture(kernels):
    """Ten sets of dtypes, with and without amsgrad, with a small and a large table."""
    by_arch: dict[str, set[str]] = {}
    for arch, name in main_kernels(kernels):
        by_arch.setdefault(arch, set()).add(name)
    assert len(set(map(frozenset, by_arch.values()))) == 1
    assert {len(names) for names in by_arch.values()} <= {20, 40}


def test_no_register_is_spilled(kernels):
    """Local memory would be read and written behind the loop's back."""
    spilling = {
        key: len(local)
        for key, code in kernels.items()
        if (local := [i for i in code if re.search(r"\b(LDL|STL)\b", i)])
    }
    assert not spilling


def test_every_main_loop_moves_16_bytes_at_a_time(kernels):
    """Four updates in a kernel, each of which reads four buffers or more and writes three."""
    for key, code in main_kernels(kernels).items():
        loads, stores = (sum(f"{op}.E.128" in i for i in code) for op in ("LDG", "STG"))
        assert loads >= 16, key
        assert stores >= 15, key  # one update does not write the parameter


def test_the_module_is_small():
    assert BINARY.stat().st_size < 20e6


def test_no_cuda_library_is_needed_to_import():
    """The runtime is linked in, and finds the driver by itself, if there is one."""
    assert backends.is_built("cuda")
    ldd = shutil.which("ldd")
    if ldd is None:
        pytest.skip("needs ldd")
    needed = subprocess.run([ldd, str(BINARY)], capture_output=True, text=True).stdout
    assert "libc" in needed
    assert "libcuda" not in needed
