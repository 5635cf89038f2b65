"""One optimizer step against torch.optim's: numerics first, then interleaved timings.

    python bench/step.py                          # every case: some minutes, 6 GB of memory
    python bench/step.py --small --check          # a minute; exits non-zero where a goal is missed
    python bench/step.py --json bench/results/NAME.json

Every arm of a case works on the very same tensors, so that none has luckier memory. Bytes are
counted, not measured: a step reads param, grad and both moments and writes all but the gradient,
7 numbers a weight; in-place scaling reads and writes one, and its bandwidth is the ceiling.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import itertools
import json
import math
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor
from torch.nn import Parameter, ParameterList
from torch.optim import AdamW, Optimizer

from harness import Arm, Times, interleave, machine
from proxadam import ProxAdamW, is_built

LR, L1, L2 = 1e-7, 1e-5, 1e-4
DTYPES = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp64": torch.float64,
}
GPT2_SMALL = [(50257, 768), (1024, 768)] + 12 * [
    (768,), (768,), (768, 2304), (2304,), (768, 768), (768,),
    (768,), (768,), (768, 3072), (3072,), (3072, 768), (768,),
]  # fmt: skip

DIGITS = [(128, 64), (128,), (64, 128), (64,), (10, 64), (10,)]  # the network of bench/train.py


@dataclass(frozen=True)
class Case:
    """A list of parameters; ``slow`` adds the arms of torch's and our torch-op paths."""

    name: str
    shapes: list[tuple[int, ...]]
    dtype: str
    slow: bool = False
    host: bool = False  # what is timed is the work around the kernel
    sharded: bool = False  # by FSDP2, over one process: DTensors with nothing to wait for
    scaled: bool = False  # with the arms of GradScaler.step
    compiled: bool = False  # with the arms of torch.compile, on inductor

    @property
    def label(self) -> str:
        """Name and dtype, as goals refer to it."""
        return f"{self.name} {self.dtype}"

    @property
    def numel(self) -> int:
        """Weights in all."""
        return sum(math.prod(shape) for shape in self.shapes)


@dataclass(frozen=True)
class Goal:
    """``arm`` is at least ``least`` times as fast as ``base``; with ``bytes_``, moves bytes so."""

    case: str
    arm: str
    base: str
    least: float
    bytes_: bool = False

    @property
    def text(self) -> str:
        """The goal in words."""
        unit = "bytes/s" if self.bytes_ else "speed"
        return f"{self.case}: {unit} of {self.arm!r} ÷ {self.base!r} ≥ {self.least:g}"


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


def goals(small: bool) -> list[Goal]:
    """What ``--check`` holds the results to: the goals, or, small, floors that noise leaves."""
    fp32, bf16 = ("1x4Mi fp32", "1x4Mi bf16") if small else ("1x64Mi fp32", "1x64Mi bf16")
    shrink = " + softshrink"
    listed = [  # case, arm, base, goal, floor
        (fp32, "ours", "scale", 0.85, None),
        (fp32, "ours", "torch fused", 1.05, 0.4),
        (fp32, "ours", "torch fused" + shrink, 1.25, 0.5),
        (fp32, "ours", "torch default" + shrink, 2.5, 1.2),
        (bf16, "ours", "torch fused", 1.0, 0.3),
        ("1000x1024 fp32", "ours", "torch fused", 6, 1.0),
        ("200x100 fp32", "ours", "torch fused", 10, 1.2),
        ("1000x1024 FSDP2 fp32", "ours", "torch fused", 2, 1.0),
        (fp32, "ours", "ours, l1=l2=0", 1 / 1.03, 0.4),
        ("1000x1 fp32", "ours", "torch _init_group", 1 / 1.2, 0.25),
        (fp32, "ours, compiled", "torch default, compiled", 1 / 1.05, 0.4),
        (fp32, "ours on loop", "torch default" + shrink, 0.8, 0.25),
        (fp32, "ours on foreach", "torch foreach" + shrink, 0.8, 0.25),
    ]
    return [
        Goal(case, arm, base, floor if small else goal, bytes_=base == "scale")
        for case, arm, base, goal, floor in listed
        if not small or floor is not None
    ]


# ---- arms -------------------------------------------------------------------------------------


class Tensors:
    """The parameters of a case with gradients and state in mid-run, shared by all of its arms."""

    def __init__(self, case: Case) -> None:
        torch.manual_seed(0)
        dtype = DTYPES[case.dtype]
        self.params = [Parameter(torch.randn(shape).to(dtype)) for shape in case.shapes]
        for param in self.params:
            param.grad = torch.randn(param.shape).mul_(0.01).to(dtype)
        self.state = {
            param: {
                "step": torch.tensor(100.0),
                "exp_avg": torch.randn(param.shape).mul_(0.01).to(dtype),
                "exp_avg_sq": torch.rand(param.shape).add_(0.1).mul_(1e-4).to(dtype),
            }
            for param in self.params
        }
        if case.sharded:
            self._shard()

    def _shard(self) -> None:
        from torch.distributed.fsdp import fully_shard
        from torch.distributed.tensor import distribute_tensor

        whole, mesh = self.params, _mesh_of_one()
        self.params = list(fully_shard(ParameterList(whole), mesh=mesh).parameters())
        shard = functools.partial(distribute_tensor, device_mesh=mesh)
        states = [self.state[param] for param in whole]
        self.state = {}
        for param, old, state in zip(self.params, whole, states, strict=True):
            param.grad = shard(old.grad, placements=param.placements)
            moments = {k: shard(state[k], placements=param.placements) for k in list(state)[1:]}
            self.state[param] = {"step": state["step"], **moments}

    def optimizer(self, cls: type[Optimizer], **options: object) -> Optimizer:
        """An optimizer over these tensors, its state set to the shared one."""
        optimizer = cls(self.params, lr=LR, **options)  # type: ignore[call-arg]
        for param, state in self.state.items():
            optimizer.state[param] = dict(state)
        return optimizer

    def softshrink(self) -> None:
        """The cheapest separate L1 step torch has: one pass, in place."""
        for param in self.params:
            torch._C._nn.softshrink(param.data, LR * L1, out=param.data)

    def scale(self) -> None:
        """The ceiling: one array read and written."""
        for param in self.params:
            param.data.mul_(1.0)


def arms(case: Case, tensors: Tensors) -> dict[str, Arm]:
    """What is timed, by name."""
    prox = {"l1": L1, "l2": L2}

    def then_softshrink(step: Arm) -> Arm:
        return lambda: (step(), tensors.softshrink())

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
    found |= {
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
        }
    if case.scaled:
        found |= {
            "ours, scaler": scaled(tensors.optimizer(ProxAdamW, fused=True, **prox)),
            "torch fused, scaler": scaled(fused),
        }
    if case.compiled:
        torch._dynamo.reset()  # what was compiled for the last case would be looked through first
        found |= {
            "ours, compiled": torch.compile(tensors.optimizer(ProxAdamW, **prox).step),
            "ours on foreach, compiled": torch.compile(
                tensors.optimizer(ProxAdamW, foreach=True, **prox).step
            ),
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
    """Counted bytes of one call: 7 numbers a weight, 2 for the ceiling, 10 under a scaler.

    The scaler's search for overflows reads and writes the gradient, and so does unscaling it.
    """
    numbers = 2 if arm == "scale" else 10 if arm.endswith("scaler") else 7
    return case.numel * DTYPES[case.dtype].itemsize * numbers


@functools.cache
def _mesh_of_one() -> DeviceMesh:
    """The devices of a distributed run that has this process alone."""
    meeting = Path(tempfile.mkdtemp()) / "meeting"
    torch.distributed.init_process_group("gloo", f"file://{meeting}", rank=0, world_size=1)
    return init_device_mesh("cpu", (1,))


# ---- numerics ---------------------------------------------------------------------------------


def verify(case: Case) -> None:
    """Stop unless our step is the oracle's with L1 and L2 on, and torch's AdamW without.

    Raises:
        SystemExit: with the first parameter that differs.
    """
    oracle = _load("oracle").oracle_step
    tolerances = _load("tolerances")
    few = Case(case.name, case.shapes[:3], case.dtype, sharded=case.sharded)
    tensors = Tensors(few)
    before = [_arrays(param, tensors.state[param]) for param in tensors.params]
    tensors.optimizer(ProxAdamW, l1=L1, l2=L2).step()
    for i, (param, arrays) in enumerate(zip(tensors.params, before, strict=True)):
        new, *_, scale = oracle(
            *arrays, None, 101, lr=LR, l1=L1, l2=L2, weight_decay=1e-2, decoupled_weight_decay=True
        )
        try:
            what = f"{case.label}, parameter {i}"
            tolerances.assert_close(_local(param), new, scale, param.dtype, what)
        except AssertionError as wrong:
            sys.exit(f"numerics are wrong, so nothing is timed: {wrong}")
    ours, theirs = Tensors(few), Tensors(few)
    ours.optimizer(ProxAdamW).step()
    theirs.optimizer(AdamW, fused=True).step()
    for a, b in zip(ours.params, theirs.params, strict=True):
        if not torch.allclose(_local(a), _local(b), rtol=4 * torch.finfo(a.dtype).eps, atol=LR):
            sys.exit(f"{case.label}: with l1 = l2 = 0 our step is not torch's, nothing is timed")


def _arrays(param: Tensor, state: dict[str, Tensor]) -> list:
    tensors = (param, param.grad, state["exp_avg"], state["exp_avg_sq"])
    return [_local(t).double().numpy().copy() for t in tensors]


def _local(tensor: Tensor) -> Tensor:
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach()


def _load(name: str) -> ModuleType:
    path = Path(__file__).resolve().parents[1] / "tests" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# ---- report -----------------------------------------------------------------------------------


def table(case: Case, times: Times) -> str:
    """The arms of a case, in the order in which they were first timed."""
    unit, factor = ("ms", 1e3) if times.median("ours") > 1e-3 else ("µs", 1e6)
    lines = [
        f"{case.label}: {case.numel:,} weights in {len(case.shapes)} tensors",
        f"  {'':28}{unit:>9}{'p10':>9}{'p90':>9}{'GB/s':>8}{'ours is':>10}",
    ]
    for arm in times.seconds:
        median, (low, high) = times.median(arm), times.spread(arm)
        rate = "" if case.host else f"{bytes_moved(case, arm) / median / 1e9:.1f}"
        ratio = "" if arm == "ours" else f"{times.ratio('ours', arm):.2f} ×"
        lines.append(
            f"  {arm:28}{median * factor:9.2f}{low * factor:9.2f}{high * factor:9.2f}"
            f"{rate:>8}{ratio:>10}"
        )
    return "\n".join(lines)


def judge(goal: Goal, case: Case, times: Times) -> tuple[bool, str]:
    """Whether a goal is met, and a line that says so."""
    got = times.ratio(goal.arm, goal.base)
    if goal.bytes_:
        got *= bytes_moved(case, goal.arm) / bytes_moved(case, goal.base)
    met = got >= goal.least
    noise = abs(times.ratio("ours", "ours again") - 1)
    doubt = " (within the noise)" if abs(got / goal.least - 1) <= 2 * noise else ""
    return met, f"{'met   ' if met else 'MISSED'} {goal.text}: {got:.3f}{doubt}"


def as_json(case: Case, times: Times) -> dict[str, object]:
    """One case for ``--json``."""
    return {
        "case": case.name,
        "dtype": case.dtype,
        "weights": case.numel,
        "tensors": len(case.shapes),
        "arms": {
            arm: {
                "median_s": times.median(arm),
                "p10_s": times.spread(arm)[0],
                "p90_s": times.spread(arm)[1],
                "GB_per_s": None if case.host else bytes_moved(case, arm) / times.median(arm) / 1e9,
                "ours_is_times_faster": times.ratio("ours", arm),
            }
            for arm in times.seconds
        },
    }


def main() -> None:
    """Verify, time, report; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="small sizes, for a busy machine")
    parser.add_argument("--check", action="store_true", help="exit 1 naming each goal missed")
    parser.add_argument("--only", default="", help="run the cases whose label contains this")
    parser.add_argument("--rounds", type=int, default=0, help="counted rounds (0: by size)")
    parser.add_argument("--threads", type=int, default=0, help="torch threads (0: torch's choice)")
    parser.add_argument("--json", type=Path, help="write everything to this file")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    about = machine()
    print("\n".join(f"{key:26}{value}" for key, value in about.items()), "\n")
    if not is_built("cpu"):
        print("the CPU kernel is not built: 'ours' runs on torch ops\n")

    results, verdicts = [], []
    for case in cases(args.small):
        if args.only not in case.label:
            continue
        verify(case)
        tensors = Tensors(case)
        rounds = args.rounds or max(15, min(300, int(3e8 / (case.numel + 1e6))))
        times = interleave(arms(case, tensors), rounds, warmup=5, label=case.label)
        print(table(case, times), "\n", flush=True)
        results.append(as_json(case, times))
        verdicts += [
            judge(goal, case, times) for goal in goals(args.small) if goal.case == case.label
        ]
    for _, line in verdicts:
        print(line)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        lines = [line for _, line in verdicts]
        about |= {"command": " ".join(sys.argv)}
        args.json.write_text(
            json.dumps({"machine": about, "goals": lines, "cases": results}, indent=1)
        )
    if args.check and not all(met for met, _ in verdicts):
        sys.exit(1)


if __name__ == "__main__":
    main()
