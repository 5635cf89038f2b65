"""Timing that can be compared: arms interleaved in one process, medians of paired ratios."""

from __future__ import annotations

import os
import platform
import random
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

import proxadam
from proxadam import backends

Arm = Callable[[], object]


@dataclass(frozen=True)
class Times:
    """Seconds of each counted round, by arm; round i of one arm stands next to round i of all."""

    seconds: dict[str, list[float]]

    def median(self, arm: str) -> float:
        """Median time of a call, in seconds."""
        return statistics.median(self.seconds[arm])

    def spread(self, arm: str) -> tuple[float, float]:
        """The 10th and 90th percentile, in seconds."""
        deciles = statistics.quantiles(self.seconds[arm], n=10, method="inclusive")
        return deciles[0], deciles[-1]

    def ratio(self, arm: str, base: str) -> float:
        """How many times ``arm`` is as fast as ``base``: the median over rounds."""
        pairs = zip(self.seconds[base], self.seconds[arm], strict=True)
        return statistics.median(b / a for b, a in pairs)


def interleave(arms: dict[str, Arm], rounds: int, warmup: int, label: str) -> Times:
    """Call every arm once a round, in random order: what ran before fills the caches."""
    order = random.Random(0)
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for i in tqdm(range(warmup + rounds), desc=label, leave=False, disable=None):
        for name in order.sample(list(arms), len(arms)):
            begin = time.perf_counter()
            arms[name]()
            elapsed = time.perf_counter() - begin
            if i >= warmup:
                seconds[name].append(elapsed)
    return Times(seconds)


def machine() -> dict[str, object]:
    """What the numbers were measured on."""
    kernel = backends.kernel("cpu")
    threads = {k: v for k, v in os.environ.items() if k.startswith(("OMP_", "GOMP_", "KMP_"))}
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "loadavg": os.getloadavg()[0],
        "transparent_hugepages": _read("/sys/kernel/mm/transparent_hugepage/enabled"),
        "environment": threads,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "proxadam": proxadam.__version__,
        "proxadam_cpu_capability": kernel.capability() if kernel else None,
        "commit": _commit(),
    }


def _cpu_name() -> str:
    lines = _read("/proc/cpuinfo").splitlines()
    fields = dict(tuple(map(str.strip, line.split(":", 1))) for line in lines if ":" in line)
    name = fields.get("model name", platform.processor())
    return f"{name} (family {fields['cpu family']})" if "cpu family" in fields else name


def _read(path: str) -> str:
    return Path(path).read_text().strip() if Path(path).exists() else ""


def _commit() -> str:
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
