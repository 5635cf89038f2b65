"""What a ramp's updates cost, beside plain steps of the same optimizer over the same weights.

    python bench/ramp.py             # 1e8 float32 weights, two minutes, 2 GB
    python bench/ramp.py --weights 1e6

The ramp goes from no zeros to 95 % in 200 updates, with two steps before each of them. The zeros
are counted at the end, and have to be exactly as many as were asked for.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path

import torch
from torch.nn import Parameter
from tqdm import tqdm

from harness import host_clock, machine
from proxadam import ProxAdamW, SparsityRamp

UPDATES = 200
SPARSITY = 0.95


def measure(numel: int, tensors: int, unit: str) -> dict[str, object]:
    """Seconds of each step and of each update, in turns."""
    size = max(1, numel // tensors)
    params = [Parameter(torch.randn(size // 1000 or 1, min(size, 1000))) for _ in range(tensors)]
    optimizer = ProxAdamW(params, lr=1e-3)
    for param in params:
        param.grad = torch.randn_like(param) * torch.randn_like(param).exp()
    ramp = SparsityRamp(optimizer, SPARSITY, begin=0, end=UPDATES, unit=unit)
    steps, updates = [], []
    for _ in tqdm(range(UPDATES), desc=f"{numel:g} weights", leave=False, disable=None):
        steps += [host_clock(optimizer.step), host_clock(optimizer.step)]
        updates.append(host_clock(ramp.step))
    rows = sum(len(param) for param in params)
    dead = sum(int((param == 0).all(1).sum()) for param in params)
    zeros = sum(int((param == 0).sum()) for param in params)
    count = sum(param.numel() for param in params)
    found = (dead, rows) if unit == "row" else (zeros, count)
    if found[0] != round(SPARSITY * found[1]):
        sys.exit(f"ramp.py: {found[0]} of {found[1]} are zero, which is not {SPARSITY:.0%}.")
    return {
        "weights": count,
        "tensors": tensors,
        "unit": unit,
        "step_s": statistics.median(steps),
        "update_s": statistics.median(updates),
        "steps_s": sum(steps),
        "updates_s": sum(updates),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--weights", type=float, nargs="+", default=[1e8], help="how many (default: 1e8)")
    add("--tensors", type=int, default=10, help="that they are in (default: %(default)s)")
    add("--unit", choices=("weight", "row"), nargs="+", default=["weight", "row"])
    add("--json", type=Path, metavar="FILE", help="where to write all results")
    arguments = parser.parse_args()
    lines = []
    for numel in arguments.weights:
        for unit in arguments.unit:
            line = measure(int(numel), arguments.tensors, unit)
            lines.append(line)
            ratio = line["updates_s"] / line["steps_s"]
            print(
                f"{line['weights']:>11,} weights, by {unit}: a step {1e3 * line['step_s']:.3f} ms,"
                f" an update {1e3 * line['update_s']:.3f} ms; {UPDATES} updates took"
                f" {ratio:.2f} of the time of {2 * UPDATES} steps"
            )
    if arguments.json:
        arguments.json.write_text(
            json.dumps({"machine": machine(), "lines": lines}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
