"""What can be said of the CUDA kernels without a GPU: registers, bytes in flight, host time.

    python tests/cuda_without_a_gpu.py [--json bench/results/NAME.json]

Registers and instructions are read from the machine code of the installed module. The host's part
of a step is timed with csrc/cuda compiled for the host and a launch that does nothing: what is left
out is what the driver takes for a launch.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch.nn import Parameter

import machine_code
from cuda_on_host import CpuKernel, modules
from cuda_on_host.build import build
from proxadam import ProxAdamW, backends

sys.path.append(str(Path(__file__).resolve().parents[1] / "bench"))
from harness import Arm, Times, interleave, machine

THREADS, REGISTERS = 256, 65536  # of a block; of a multiprocessor
CPU_KERNEL = backends.kernel("cpu")
# The kernel's loops lie in this order.
UPDATES = ("Adam", "frozen", "adaptive, L1 alone", "Euclidean", "adaptive", "with a knee")
TYPES = {"f": "fp32", "d": "fp64", "8bfloat16": "bf16", "7float16": "fp16"}
BYTES = {"fp32": 4, "fp64": 8, "bf16": 2, "fp16": 2, "codes": 1}
# Those for numbers, of a param and a state dtype, and those for codes beside a param's.
KERNELS = r"prox_adam_kernelI(.*?)Lb([01])E|prox_adam_codes_kernelI(.*?)EEv"


def resources(arch: str) -> list[dict[str, object]]:
    """One line for each kernel with a large table: dtypes, registers, and its main loop.

    Gradients are counted in the parameter's dtype; float32 ones beside 16 bits are wider. Kernels
    that can are taken to round all by chance; what they would do to the nearest is counted too.
    """
    registers, rows = machine_code.registers(), []
    for (of, name), code in sorted(machine_code.instructions().items()):
        match = re.search(KERNELS, name)
        if of != arch or not match or "Li4096E" in name:
            continue
        coded = match[3] is not None
        dtypes = [*_dtypes(match[3]), "codes"] if coded else _dtypes(match[1])
        sizes = [BYTES[dtype] for dtype in dtypes]
        width = 8 if coded else 16 // max(sizes)
        loops = machine_code.loops(code)[: len(UPDATES)]  # others go element by element
        counts = [len(machine_code.executed(body)) / width for body in loops]
        moved = [sizes[0], sizes[0], *[sizes[1]] * (3 if match[2] == "1" else 2)]
        blocks = REGISTERS // (registers[of, name] * THREADS)
        rows.append(
            {
                "param, state": ", ".join(dtypes),
                "amsgrad": match[2] == "1",
                "by chance": "ChanceEntry" in name,
                "registers": registers[of, name],
                "blocks_a_multiprocessor": blocks,
                "KiB_in_flight_a_multiprocessor": blocks * THREADS * width * sum(moved) / 1024,
                "instructions_a_weight": {
                    update: round(count, 1) for update, count in zip(UPDATES, counts, strict=True)
                },
            }
        )
    return rows


def _dtypes(mangled: str) -> list[str]:
    found: list[str] = []
    for token in re.findall(r"NS_8bfloat16E|NS_7float16E|S1_|[fd]", mangled)[:2]:
        found.append(found[0] if token == "S1_" else TYPES[token.removeprefix("NS_").rstrip("E")])
    return found


def host_times(count: int, numel: int, rounds: int) -> Times:
    """The whole step() of the optimizer, with the fake device's kernel for the CPU's."""
    params = [Parameter(torch.randn(numel)) for _ in range(count)]
    for param in params:
        param.grad = torch.randn(numel)
    arms = {}
    for name, on_host in (("step on the host", True), ("step on the device", False)):
        optimizer = ProxAdamW(params, l1=1e-5, fused=True)
        kernel = CpuKernel(on_host)
        arms[name] = lambda o=optimizer, k=kernel: _with(k, o.step)
    on_cpu = ProxAdamW(params, l1=1e-5, fused=True)
    arms["the CPU kernel, whole"] = lambda: _with(CPU_KERNEL, on_cpu.step)
    fused = torch.optim.AdamW(params, fused=True)
    group = fused.param_groups[0]
    fused.step()
    arms["torch _init_group"] = lambda: fused._init_group(group, [], [], [], [], [], [])
    return interleave(arms, rounds, warmup=10, label=f"{count}x{numel}")


def _with(kernel: Any, step: Arm) -> None:
    backends.kernel = lambda _: kernel
    step()


def main() -> None:
    """Print both, and write them; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", default="sm_90")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--json", type=Path, help="write everything to this file")
    args = parser.parse_args()
    if machine_code.BINARY is None or machine_code.CUOBJDUMP is None:
        sys.exit("needs the CUDA kernel built (PROXADAM_CUDA=ON), and cuobjdump with nvdisasm")
    about = machine()
    rows = resources(args.arch)
    print(*rows[0], sep="  ")
    for row in rows:
        print("  ".join(f"{value!s:>{len(key)}}" for key, value in row.items()))
    with tempfile.TemporaryDirectory() as directory:
        build(Path(directory), dry=True)
        os.environ["PROXADAM_CUDA_ON_HOST"] = directory
        modules()
    times = {
        f"{n}x{m}": host_times(n, m, args.rounds) for n, m in ((1, 1), (1000, 1), (1000, 1024))
    }
    host = {
        case: {arm: {"median_s": t.median(arm), "p10_p90_s": t.spread(arm)} for arm in t.seconds}
        for case, t in times.items()
    }
    for case, arms in host.items():
        for arm, figures in arms.items():
            print(f"{case:12}{arm:24}{figures['median_s'] * 1e6:10.1f} µs")
    if args.json:
        found = {"machine": about, "arch": args.arch, "kernels": rows, "host": host}
        args.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
