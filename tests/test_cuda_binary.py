"""What nvcc made of the kernels, read from the machine code: no GPU is needed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess

import pytest

from machine_code import (
    BINARY,
    CUOBJDUMP,
    bodies,
    constant_bank,
    count,
    cuobjdump,
    instructions,
    loops,
    registers,
)
from proxadam import backends

pytestmark = [
    pytest.mark.skipif(BINARY is None, reason="built without the CUDA kernel"),
    pytest.mark.skipif(CUOBJDUMP is None, reason="needs cuobjdump and nvdisasm"),
]


@pytest.fixture(scope="module")
def kernels():
    return instructions()


def main_kernels(kernels):
    return {key: code for key, code in kernels.items() if "prox_adam_kernel" in key[1]}


def coded_kernels(kernels):
    return {key: code for key, code in kernels.items() if "prox_adam_codes_kernel" in key[1]}


def row_kernels(kernels):
    return {key: code for key, code in kernels.items() if "prox_adam_rows_kernel" in key[1]}


def test_machine_code_for_each_architecture_and_ptx_for_those_between_and_to_come():
    real = set(re.findall(r"sm_(\d+)\.cubin", cuobjdump("--list-elf")))
    ptx = set(re.findall(r"sm_(\d+)\.ptx", cuobjdump("--list-ptx")))
    wanted = os.environ.get("PROXADAM_CUDA_ARCHITECTURES") or "80;90"
    assert real >= set(wanted.split(";"))
    assert ptx == {min(real, key=int), max(real, key=int)}


def test_every_kernel_is_there_for_every_architecture(kernels):
    """Six pairs of param and state dtypes, with and without amsgrad, a small and a large table.

    Of six pairs something may be rounded by chance; and codes go beside three dtypes.
    """
    by_arch: dict[str, set[str]] = {}
    for arch, name in main_kernels(kernels) | coded_kernels(kernels):
        by_arch.setdefault(arch, set()).add(name)
    assert len(set(map(frozenset, by_arch.values()))) == 1
    for names in by_arch.values():
        takes_chance = {name for name in names if "ChanceEntry" in name}
        assert sum("codes_kernel" in name for name in takes_chance) == 3
        assert len(takes_chance) == 3 + 12
        assert len(names - takes_chance) in (12, 24)


def test_rows_have_a_kernel_for_every_pair_of_types(kernels):
    """Eleven, of which two blocks of 256 threads have the registers of a multiprocessor."""
    found = row_kernels(kernels)
    for arch in {arch for arch, _ in found}:
        assert sum(key[0] == arch for key in found) == 11
    used = registers()
    assert all(used[key] <= 128 for key in found)


def test_rows_are_read_and_written_in_vectors(kernels):
    """16 bytes of float32 and float64, 8 of 16 bits; what else is moved is an element at a time."""
    for key, code in row_kernels(kernels).items():
        texts = [text for _, text in code if re.search(r"\b(LDG|STG)\.", text)]
        wide = r"\.E\.64" if re.search(r"INS_\w*float16\w*ENS_|ES1_", key[1]) else r"\.E\.128"
        assert sum("LDG" in text for text in texts if re.search(wide, text)) >= 2, key
        assert sum("STG" in text for text in texts if re.search(wide, text)) >= 1, key


@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_100", "sm_120"])
def test_instructions_a_weight_of_a_row(kernels, arch):
    """In float32: of a sum, which a row takes three or four of, and of the prox behind them.

    A sum reads two numbers a weight from the memory that a block shares, and does nothing in
    double; that at a norm divides.
    """
    found = {key[0]: code for key, code in row_kernels(kernels).items() if "IffE" in key[1]}
    if arch not in found:
        pytest.skip(f"not compiled for {arch}")
    inner = [body for body in bodies(found[arch]) if not count(body, r"SHFL|LDG|STS|DADD|F2F\.F64")]
    sums = [body for body in inner if count(body, "LDS") >= 8 and not count(body, "STG")]
    at_infinity = [2 * len(body) / count(body, "LDS") for body in sums if not count(body, "MUFU")]
    at_norm = [2 * len(body) / count(body, "LDS") for body in sums if count(body, "MUFU")]
    ends = [len(body) / 4 for body in inner if count(body, "STG")]
    assert min(at_infinity) < 8
    assert min(at_norm) < 32
    assert max(ends) < 50


def test_no_register_is_spilled(kernels):
    """Local memory would be read and written behind the loop's back."""
    spilling = {
        key: len(local)
        for key, code in kernels.items()
        if (local := [text for _, text in code if re.search(r"\b(LDL|STL)\b", text)])
    }
    assert not spilling


def test_every_main_loop_moves_16_bytes_at_a_time(kernels):
    """A loop for each of the six updates: it reads four buffers or more and writes two or three.

    Beside a buffer of float32 a thread moves 8 bytes of a 16-bit one, for both are then read and
    written in whole lines.
    """
    for key, code in main_kernels(kernels).items():
        found = loops(code)
        assert len(found) == 6, key
        beside_float32 = re.search(r"float16E?fLb|IfNS_8bfloat16E", key[1])
        allowed = r"(LDG|STG)\.E\.(64|128)" if beside_float32 else r"(LDG|STG)\.E\.128"
        wide = 2 if re.search(r"IfNS_8bfloat16E", key[1]) else 4
        for body in found:
            moves = [text for _, text in body if re.search(r"\b(LDG|STG)\.", text)]
            assert all(re.search(allowed, text) for text in moves), key
            assert sum("LDG" in text for text in moves) >= 4, key
            assert sum("STG" in text for text in moves) >= 2, key
            assert sum(".128" in text for text in moves) >= wide, key


def test_every_loop_over_blocks_of_codes_moves_vectors(kernels):
    """A lane reads and writes four vectors of codes and two exponents, and codes no other way."""
    for key, code in coded_kernels(kernels).items():
        found = loops(code)[:6]  # those behind them go element by element
        assert len(found) == 6, key
        for body in found:
            texts = [text for _, text in body]
            assert sum(bool(re.search(r"\bLDG\.E R\d", text)) for text in texts) == 4, key
            assert sum(bool(re.search(r"\bSTG\.E (desc|\[)", text)) for text in texts) == 4, key
            assert sum(".E.U8" in text for text in texts) == 4, key
            assert sum("REDUX" in text for text in texts) == 2, key


def test_every_argument_has_an_address_below_2_to_the_15(kernels):
    """Of one behind that ptxas 13.0 makes a negative one, and a GPU then read other numbers."""
    banks = constant_bank()
    assert banks.keys() == kernels.keys()
    assert max(banks.values()) <= 2**15
    negative = r"c\[0x0\]\[[^]]*\+-0x"
    assert not any(re.search(negative, text) for code in kernels.values() for _, text in code)


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
