"""Timing that can be compared: arms interleaved in one process, medians of paired ratios."""

from __future__ import annotations

import math
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


def host_clock(arm: Arm) -> float:
    """Seconds until a call returns; a device is idle before it, and may go on after it."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    begin = time.perf_counter()
    arm()
    return time.perf_counter() - begin


def device_clock(calls: int) -> Callable[[Arm], float]:
    """A clock of the device's own time a call, over ``calls`` of them without a gap.

    The device pauses until the host has queued them all: what is timed has no launch in it.
    """
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def clock(arm: Arm) -> float:
        pause = 1.5 * calls * host_clock(arm) + 1e-4
        torch.cuda.synchronize()
        torch.cuda._sleep(int(pause * 2e9))  # cycles, at no more than 2 GHz
        begin.record()
        for _ in range(calls):
            arm()
        end.record()
        torch.cuda.synchronize()
        return begin.elapsed_time(end) / 1e3 / calls

    return clock


def interleave(
    arms: dict[str, Arm],
    rounds: int,
    warmup: int,
    label: str,
    clock: Callable[[Arm], float] = host_clock,
    budget: float = math.inf,
) -> Times:
    """Time every arm once a round, in random order: what ran before fills the caches.

    An arm that has a ``prepare`` is prepared before, which is not timed.
    After ``budget`` seconds no round is begun, if five have been counted.
    """
    end = time.perf_counter() + budget
    order = random.Random(0)
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for i in tqdm(range(warmup + rounds), desc=label, leave=False, disable=None):
        if i >= warmup + 5 and time.perf_counter() > end:
            break
        for name in order.sample(list(arms), len(arms)):
            if prepare := getattr(arms[name], "prepare", None):
                prepare()
            elapsed = clock(arms[name])
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
        **(_gpu() if torch.cuda.is_available() else {}),
    }


def _gpu() -> dict[str, object]:
    ask = ["nvidia-smi", "--query-gpu=driver_version,clocks.max.sm,clocks.max.mem"]
    answer = _output([*ask, "--format=csv,noheader"])
    driver, *clocks = answer.split(", ") if answer else ["unknown"]
    properties = torch.cuda.get_device_properties(0)
    return {
        "gpu": properties.name,
        "gpu_memory_GB": round(properties.total_memory / 1e9),
        "multiprocessors": properties.multi_processor_count,
        "driver": driver,
        "max_clocks": clocks,
        "torch_cuda": torch.version.cuda,
        "proxadam_cuda": backends.reason_for_fallback("cuda") or "kernel ready",
    }


def _cpu_name() -> str:
    lines = _read("/proc/cpuinfo").splitlines()
    fields = dict(tuple(map(str.strip, line.split(":", 1))) for line in lines if ":" in line)
    name = fields.get("model name", platform.processor())
    return f"{name} (family {fields['cpu family']})" if "cpu family" in fields else name


def _read(path: str) -> str:
    return Path(path).read_text().strip() if Path(path).exists() else ""


def _commit() -> str:
    """The commit: what PROXADAM_COMMIT says that it is, or git.

    Results that were written since do not make it dirty.
    """
    if told := os.environ.get("PROXADAM_COMMIT"):
        return told
    git = ["git", "-C", str(Path(__file__).parents[1])]
    commit = _output([*git, "describe", "--always"])
    if not commit:
        return "unknown"
    changed = _output([*git, "status", "--porcelain", "--", ".", ":!bench/results"])
    return f"{commit}-dirty" if changed else commit


def _output(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
