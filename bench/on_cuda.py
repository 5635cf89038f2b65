"""The cases, arms and goals of bench/step.py on a GPU.

A case is timed on the device, behind a pause in which the host has queued all its calls, so that no
launch is waited for; or, where the work around the kernel is what counts, on the host alone. The
large ones take 17 GB, many times the L2 cache; the ceiling is a copy of 4 GB in the same rounds.
"""

from __future__ import annotations

import functools
import math
from dataclasses import replace

import torch
from torch.optim import AdamW

from cases import L1, L2, L21, Case, Goal, Tensors
from harness import Arm, Times, device_clock, host_clock, interleave
from on_cpu import small_states
from proxadam import ProxAdamW

SQUARE = "32768x32768"  # as many weights as 1x1Gi
_COPIED = 4 << 30  # bytes
LLAMA_7B = [(32000, 4096)] * 2 + [(4096,)] + 32 * [
    *[(4096, 4096)] * 4, *[(11008, 4096)] * 2, (4096, 11008), *[(4096,)] * 2,
]  # fmt: skip


def cases(small: bool) -> list[Case]:
    """The full list, or one that any GPU has the memory for."""
    name, one = ("1x64Mi", (1 << 26,)) if small else ("1x1Gi", (1 << 30,))
    on_gpu = functools.partial(Case, device="cuda")
    listed = [
        on_gpu(name, [one], "fp32", slow=True),
        on_gpu(name, [one], "bf16"),
        on_gpu(name, [one], "bf16", state="fp32"),
        *(
            on_gpu(f"rows of {row}", [(one[0] // row, row)], dtype, rows=True)
            for row in (1 << 10, 1 << 12)
            for dtype in ("fp32", "bf16")
        ),
        on_gpu("1x100Ki", [(100 << 10,)], "fp32"),
        on_gpu("16x64Ki", [(64 << 10,)] * 16, "fp32"),
        on_gpu("16x64Ki", [(64 << 10,)] * 16, "bf16"),
        on_gpu("4x1Mi", [(1 << 20,)] * 4, "fp32"),
        on_gpu("8x1Mi", [(1 << 20,)] * 8, "fp32"),
        on_gpu("1000x1Ki", [(1 << 10,)] * 1000, "fp32", host=True),
        on_gpu("1000x4Ki", [(4 << 10,)] * 1000, "fp32", host=True),
        *(
            replace(case, device="cuda")
            for case in small_states("8192x8192" if small else SQUARE, 8192 if small else 32768)
        ),
    ]
    if small:
        return listed
    return [
        *listed,
        on_gpu(name, [one], "fp16"),
        on_gpu("llama-7b", LLAMA_7B, "bf16"),
        on_gpu("1000x1Ki on the device", [(1 << 10,)] * 1000, "fp32"),
    ]


def goals() -> list[Goal]:
    """What the full list is held to."""
    one = "1x1Gi"
    shrink = " + softshrink"
    lists = {
        "1x100Ki fp32": 3,
        "16x64Ki fp32": 3,
        "16x64Ki bf16": 3,
        "4x1Mi fp32": 1.3,
        "8x1Mi fp32": 1.0,  # memory is the limit: 1.1 if torch's step waited for nothing else
    }
    return [
        Goal(f"{one} fp32", "ours", "copy", 0.95, bytes_=True),
        Goal(f"{one} fp32", "ours", "torch fused", 1.05),
        Goal(f"{one} fp32", "ours", "torch fused" + shrink, 1.20),
        Goal(f"{one} fp32", "ours", "torch foreach" + shrink, 2.8),
        Goal(f"{one} bf16", "ours", "torch fused", 1.15),
        Goal(f"{one} bf16, fp32 state", "ours", "copy", 0.88, bytes_=True),
        *(Goal(case, "ours", "torch fused", least) for case, least in lists.items()),
        *(Goal(f"1000x{n}Ki fp32", "ours", "torch fused", 4) for n in (1, 4)),
        Goal(f"{one} fp32", "ours", "ours, l1=l2=0", 1 / 1.03),
        Goal(f"{one} fp32", "ours, captured", "ours", 1 / 1.03),
        Goal(f"{SQUARE} fp32, bf16 state", "ours", "torch fused, fp32", 1.25),
        Goal(f"{SQUARE} fp32, 8bit state", "ours", "torch fused, fp32", 1.4),
        Goal(f"{SQUARE} bf16, 8bit state, by chance", "ours", "torch fused, bf16", 0.95),
    ]


def arms(case: Case, tensors: Tensors) -> dict[str, Arm]:
    """What is timed, by name."""
    ours = {"l1": L1, "l2": L2, **case.options}
    step = tensors.optimizer(ProxAdamW, **ours).step
    found: dict[str, Arm] = {"ours": step, "ours again": step}
    found["ours, fused=True"] = tensors.optimizer(ProxAdamW, fused=True, **ours).step
    found["ours, l2=0"] = tensors.optimizer(ProxAdamW, **{**ours, "l2": 0.0}).step
    found["ours, l1=l2=0"] = tensors.optimizer(ProxAdamW, **{**ours, "l1": 0.0, "l2": 0.0}).step
    if case.rows:
        found["ours, l21"] = tensors.optimizer(ProxAdamW, l21=L21, **ours).step
    if not case.host:
        found["ours, captured"] = _captured(tensors.optimizer(ProxAdamW, capturable=True, **ours))
        found["copy"] = _copy()
    if case.by_chance or case.state in ("bf16", "8bit"):
        return found | of_torch(case)
    if not case.state:  # torch keeps the moments in the parameter's dtype
        fused = tensors.optimizer(AdamW, fused=True).step
        found["torch fused"] = fused
        if case.host or len(case.shapes) < 1000:  # more launches than a GPU queues up
            found["torch fused + softshrink"] = lambda: (fused(), tensors.softshrink())
    if case.slow:
        foreach = tensors.optimizer(AdamW, foreach=True).step
        found["torch foreach"] = foreach
        found["torch foreach + softshrink"] = lambda: (foreach(), tensors.softshrink())
        found["ours on foreach"] = tensors.optimizer(ProxAdamW, foreach=True, **ours).step
    return found


def of_torch(case: Case) -> dict[str, Arm]:
    """Torch's fused steps over as many weights, each with its moments in the parameters' dtype."""
    found: dict[str, Arm] = {}
    for dtype in {"fp32": None, case.dtype: None}:
        tensors = Tensors(replace(case, dtype=dtype, state="", by_chance=False))
        found[f"torch fused, {dtype}"] = tensors.optimizer(AdamW, fused=True).step
    return found


def _captured(optimizer: ProxAdamW) -> Arm:
    optimizer.step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizer.step()
    return graph.replay


def _copy() -> Arm:
    source, target = _copy_buffers()
    return lambda: target.copy_(source)


@functools.cache
def _copy_buffers() -> tuple[torch.Tensor, torch.Tensor]:
    source = torch.randn(_COPIED // 4, device="cuda")
    return source, torch.empty_like(source)


def bytes_moved(case: Case, arm: str) -> int:
    """Counted bytes of one call."""
    return 2 * _COPIED if arm == "copy" else case.step_bytes


def measure(case: Case, tensors: Tensors, rounds: int, seconds: float | None) -> Times:
    """Times of each arm's calls, on the device or on the host."""
    clock = host_clock if case.host else device_clock(calls=2 if case.numel > 1e8 else 10)
    budget = seconds or (math.inf if rounds else 12)
    return interleave(arms(case, tensors), rounds or 200, 5, case.label, clock, budget)
