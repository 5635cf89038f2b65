"""The cases, arms and goals of bench/step.py on the CPU."""

from __future__ import annotations

import functools
import itertools
import math

import torch
from torch.optim import AdamW, Optimizer

import one_memory
from cases import DTYPES, L1, L2, L21, Case, Goal, Tensors
from harness import Arm, Times, interleave
from proxadam import ProxAdamW, sparsity, stationarity

GPT2_SMALL = [(50257, 768), (1024, 768)] + 12 * [
    (768,), (768,), (768, 2304), (2304,), (768, 768), (768,),
    (768,), (768,), (768, 3072), (3072,), (3072, 768), (768,),
]  # fmt: skip

SQUARE = "8192x8192"  # as many weights as 1x64Mi
ROWS = (1024, 4096)
DIGITS = [(128, 64), (128,), (64, 128), (64,), (10, 64), (10,)]  # the network of bench/train.py


def cases(small: bool) -> list[Case]:
    """The full list, or one that fits a busy machine with two cores."""
    one = (1 << 22,) if small else (1 << 26,)
    name = "1x4Mi" if small else "1x64Mi"
    odd = [(1,), (3,), (17, 31), (1023,), (65_537,), (1_000_003,), (3, 1_111_117)]
    listed = [
        Case(name, [one], "fp32", slow=True, scaled=True, compiled=True),
        Case(name, [one], "bf16", compiled=True),
        Case("1000x1024", [(1024,)] * 1000, "fp32", scaled=True),
        Case("1000x1024 FSDP2", [(1024,)] * 1000, "fp32", sharded=True),
        Case("200x100", [(100,)] * 200, "fp32"),
        Case("digits", DIGITS, "fp32", compiled=True),
        Case("1000x1", [(1,)] * 1000, "fp32", host=True),
        *small_states("2048x2048" if small else SQUARE, 2048 if small else 8192),
        *(Case(f"rows of {row}", [(one[0] // row, row)], "fp32", rows=True) for row in ROWS),
    ]
    if small:
        return listed
    return [
        *listed,
        Case(name, [one], "fp16"),
        Case(name, [one], "fp64"),
        Case("gpt2-small", GPT2_SMALL, "fp32"),
        Case("gpt2-small", GPT2_SMALL, "bf16"),
        Case("odd", odd, "fp32"),
        Case("odd", odd, "bf16"),
        Case("1000x1024", [(1024,)] * 1000, "bf16"),
    ]


def small_states(name: str, side: int) -> list[Case]:
    """The formats of csrc/codes.h and csrc/rounding.h, over a tensor of two dimensions."""
    square = functools.partial(Case, name, [(side, side)])
    return [
        square("fp32", state="bf16"),
        square("fp32", state="8bit"),
        square("bf16", state="fp32", by_chance=True),
        square("bf16", state="bf16", by_chance=True),
        square("bf16", state="8bit", by_chance=True),
    ]


def goals() -> list[Goal]:
    """What the full list is held to."""
    fp32, bf16, fp16 = "1x64Mi fp32", "1x64Mi bf16", "1x64Mi fp16"
    shrink = " + softshrink"
    return [
        Goal(fp32, "ours", "scale", 0.85, bytes_=True),
        Goal(fp32, "ours", "torch fused", 1.05),
        Goal(fp32, "ours", "torch fused" + shrink, 1.25),
        Goal(fp32, "ours", "torch default" + shrink, 2.5),
        Goal(bf16, "ours", "torch fused", 1.0),
        Goal(bf16, "ours, l2=0", "torch fused", 1.1),
        Goal(fp16, "ours", "torch fused", 0.95),
        Goal(fp16, "ours, l2=0", "torch fused", 1.0),
        Goal("1000x1024 fp32", "ours", "torch fused", 3),
        Goal("200x100 fp32", "ours", "torch fused", 5),
        Goal("1000x1024 FSDP2 fp32", "ours", "torch fused", 2),
        Goal(fp32, "ours", "ours, l1=l2=0", 1 / 1.03),
        Goal("1000x1 fp32", "ours", "torch _init_group", 1 / 1.2),
        Goal(fp32, "ours, compiled", "torch default, compiled", 1 / 1.05),
        Goal(fp32, "ours on loop", "torch default" + shrink, 1.2),
        Goal(fp32, "ours on foreach", "torch foreach" + shrink, 0.8),
        *(Goal(f"rows of {row} fp32", "ours, l21", "ours", 0.7) for row in ROWS),
        Goal(f"{SQUARE} fp32, bf16 state", "ours", "torch fused, fp32", 1.1),
        Goal(f"{SQUARE} fp32, 8bit state", "ours", "torch fused, fp32", 0.9),
        Goal(f"{SQUARE} bf16, fp32 state, by chance", "ours", "torch fused, fp32", 1.05),
        Goal(f"{SQUARE} bf16, bf16 state, by chance", "ours", "torch fused, bf16", 1.0),
    ]


def arms(case: Case, tensors: Tensors) -> dict[str, Arm]:
    """What is timed, by name."""
    prox = {"l1": L1, "l2": L2}

    def then_softshrink(step: Arm) -> Arm:
        return lambda: (step(), tensors.softshrink())

    if case.small:
        return one_memory.arms(case)
    ours = tensors.optimizer(ProxAdamW, **prox)
    fused = tensors.optimizer(AdamW, fused=True)
    default = tensors.optimizer(AdamW)
    found: dict[str, Arm] = {"ours": ours.step, "ours again": ours.step}
    if case.host:
        group = default.param_groups[0]
        found["torch _init_group"] = lambda: default._init_group(group, [], [], [], [], [], [])
        return found
    if case.sharded:
        return found | {"torch fused": fused.step}
    if case.rows:
        rows = tensors.optimizer(ProxAdamW, l21=L21, **prox)
        return found | {"ours, l21": rows.step, "torch fused": fused.step}
    found |= {
        "ours, l2=0": tensors.optimizer(ProxAdamW, l1=L1).step,
        "ours, l1=l2=0": tensors.optimizer(ProxAdamW).step,
        "torch fused": fused.step,
        "torch fused + softshrink": then_softshrink(fused.step),
        "scale": tensors.scale,
    }
    if case.slow:
        foreach = tensors.optimizer(AdamW, foreach=True)
        on_loop = tensors.optimizer(ProxAdamW, fused=False, foreach=False, **prox)
        on_foreach = tensors.optimizer(ProxAdamW, foreach=True, **prox)
        found |= {
            "torch default": default.step,
            "torch default + softshrink": then_softshrink(default.step),
            "torch foreach": foreach.step,
            "torch foreach + softshrink": then_softshrink(foreach.step),
            "ours on loop": on_loop.step,
            "ours on foreach": on_foreach.step,
            "sparsity": lambda: float(sparsity(ours)),
            "stationarity": lambda: float(stationarity(ours)),
        }
    if case.scaled:
        found |= {
            "ours, scaler": scaled(tensors.optimizer(ProxAdamW, fused=True, **prox)),
            "torch fused, scaler": scaled(fused),
        }
    if case.compiled:
        torch._dynamo.reset()  # what was compiled for the last case would be looked through first
        on_foreach = tensors.optimizer(ProxAdamW, foreach=True, **prox)
        found |= {
            "ours, compiled": torch.compile(tensors.optimizer(ProxAdamW, **prox).step),
            "ours on foreach, compiled": torch.compile(on_foreach.step),
            "torch default, compiled": torch.compile(tensors.optimizer(AdamW).step),
        }
    return found


def scaled(optimizer: Optimizer) -> Arm:
    """A step through GradScaler, which looks for overflows; the optimizer itself unscales.

    The scale goes to and fro between 2 and ½, so that gradients divided by it stay what they are.
    """
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    scaler.scale(torch.ones(()))  # makes the scale
    scales = itertools.cycle((0.5, 2.0))

    def step() -> None:
        scaler.step(optimizer)
        scaler.update(next(scales))

    return step


def bytes_moved(case: Case, arm: str) -> int:
    """Counted bytes of one call: 7 numbers a weight, but for these arms.

    A scaler's search for overflows reads and writes the gradient, and so does unscaling it; what
    only looks reads the weight, or the weight and both moments.
    """
    others = {"scale": 2, "sparsity": 1, "stationarity": 3}
    numbers = 10 if arm.endswith("scaler") else others.get(arm)
    if numbers is None:
        return case.step_bytes
    return numbers * case.numel * DTYPES[case.dtype].itemsize


def measure(case: Case, tensors: Tensors, rounds: int, seconds: float | None) -> Times:
    """Times of each arm's calls."""
    rounds = rounds or max(15, min(300, int(3e8 / (case.numel + 1e6))))
    budget = seconds or math.inf
    return interleave(arms(case, tensors), rounds, warmup=5, label=case.label, budget=budget)
