"""One optimizer step against torch.optim's: numerics first, then interleaved timings.

    python bench/step.py                          # every case: some minutes, 6 GB of memory
    python bench/step.py --check                  # exits non-zero where a goal is missed
    python bench/step.py --small                  # a minute, on a busy machine; judges nothing
    python bench/step.py --device cuda            # on a GPU with 40 GB; --small with 8
    python bench/step.py --json bench/results/NAME.json

Every arm of a case works on the very same tensors, so that none has luckier memory. Bytes are
counted, not measured: a step reads param, grad and both moments and writes all but the gradient,
7 numbers a weight. The ceiling is the bandwidth of scaling in place, and on a GPU of a copy.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn import Parameter
from torch.optim import AdamW

import on_cpu
import on_cuda
from cases import Case, Goal, Tensors
from command_line import command
from harness import Times, machine
from proxadam import ProxAdamW, backends, to_adam_state_dict

# ---- numerics ---------------------------------------------------------------------------------

VISIBLE = {"lr": 1e-3, "l1": 1e-2, "l2": 0.1}  # what is timed moves a weight by less than an ulp
# In units of |old weight| + |new weight| + length of Adam's step.
TOLERANCES = {torch.float32: 8 * 2.0**-23, torch.float64: 1e-12}  # 16 bits: an ulp


def verify(case: Case) -> None:
    """Stop unless our step is that of torch ops in float64, and without L1 and L2 torch's AdamW.

    Raises:
        SystemExit: with the first parameter that differs.
    """
    few = replace(case, shapes=case.shapes[:3])
    tensors = Tensors(few)
    ours = tensors.optimizer(ProxAdamW, **VISIBLE, **case.options)
    decoded = to_adam_state_dict(ours)["state"]  # a step starts from what is kept
    twins = [_in_float64(param, decoded[i]) for i, param in enumerate(tensors.params)]
    before = [twin.detach().clone() for twin, _ in twins]
    in_float64 = ProxAdamW([twin for twin, _ in twins], fused=False, foreach=False, **VISIBLE)
    in_float64.state.update(twins)
    in_float64.step()
    # How far a step goes; 1 where a moment is of no size.
    steps = [1 + state["exp_avg"].abs() / state["exp_avg_sq"].sqrt() for _, state in twins]

    def compare(
        params: list[Parameter], expected: list[Tensor], what: str, roundings: int = 1
    ) -> None:
        for i, (param, new, old, step) in enumerate(
            zip(params, expected, before, steps, strict=True)
        ):
            size = torch.finfo(param.dtype)
            unit = roundings * TOLERANCES.get(param.dtype, size.eps)
            allowed = unit * (old.abs() + new.abs() + VISIBLE["lr"] * step)
            error = (_ends(param).double() - new).abs() - size.smallest_normal * size.eps
            if not bool((error <= allowed).all()):
                worst = float((error / allowed).max())
                sys.exit(
                    f"{case.label}, parameter {i}: our step is not {what}, by {worst:.3g} times "
                    f"what rounding explains; nothing is timed"
                )

    ours.step()
    compare(tensors.params, [twin.detach() for twin, _ in twins], "that of torch ops in float64")
    if case.small:
        return

    own, theirs = Tensors(few), Tensors(few)
    own.optimizer(ProxAdamW, lr=VISIBLE["lr"]).step()
    theirs.optimizer(AdamW, lr=VISIBLE["lr"], fused=True).step()
    expected = [_ends(param).double() for param in theirs.params]  # rounded as well
    compare(own.params, expected, "torch's, with l1 = l2 = 0", roundings=2)


def _in_float64(param: Tensor, state: dict[str, Tensor]) -> tuple[Parameter, dict[str, Tensor]]:
    """A parameter with its gradient, and its state, on the host."""
    twin = Parameter(_ends(param).double())
    twin.grad = _ends(param.grad).double()
    moments = {name: _ends(state[name]).double() for name in ("exp_avg", "exp_avg_sq")}
    return twin, {"step": state["step"].clone(), **moments}


def _ends(tensor: Tensor, most: int = 1 << 20) -> Tensor:
    """A copy on the host; of a large tensor, of its first and last elements."""
    flat = (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach().view(-1)
    parts = [flat] if flat.numel() <= 2 * most else [flat[:most], flat[-most:]]
    return torch.cat(parts).cpu().clone()


# ---- report -----------------------------------------------------------------------------------


def suite(case: Case) -> ModuleType:
    """Where the case comes from."""
    return on_cuda if case.device == "cuda" else on_cpu


def table(case: Case, times: Times) -> str:
    """The arms of a case, in the order in which they were first timed."""
    unit, factor = ("ms", 1e3) if times.median("ours") > 1e-3 else ("µs", 1e6)
    lines = [
        f"{case.label}: {case.numel:,} weights in {len(case.shapes)} tensors",
        f"  {'':28}{unit:>9}{'p10':>9}{'p90':>9}{'GB/s':>8}{'ours is':>10}",
    ]
    for arm in times.seconds:
        median, (low, high) = times.median(arm), times.spread(arm)
        rate = "" if case.host else f"{suite(case).bytes_moved(case, arm) / median / 1e9:.1f}"
        ratio = "" if arm == "ours" else f"{times.ratio('ours', arm):.2f} ×"
        lines.append(
            f"  {arm:28}{median * factor:9.2f}{low * factor:9.2f}{high * factor:9.2f}"
            f"{rate:>8}{ratio:>10}"
        )
    return "\n".join(lines)


def judge(goal: Goal, case: Case, times: Times) -> dict[str, object]:
    """What became of a goal; within the noise is what two arms of the same step differ by."""
    got = times.ratio(goal.arm, goal.base)
    if goal.bytes_:
        counted = suite(case).bytes_moved
        got *= counted(case, goal.arm) / counted(case, goal.base)
    noise = abs(times.ratio("ours", "ours again") - 1)
    return {
        "goal": goal.text,
        "least": goal.least,
        "got": got,
        "met": got >= goal.least,
        "within_the_noise": abs(got / goal.least - 1) <= 2 * noise,
    }


def as_json(case: Case, times: Times) -> dict[str, object]:
    """One case for ``--json``."""
    counted = suite(case).bytes_moved
    return {
        "case": case.name,
        "dtype": case.types,
        "clock": "host" if case.host or case.device == "cpu" else "device",
        "weights": case.numel,
        "tensors": len(case.shapes),
        "arms": {
            arm: {
                "median_s": times.median(arm),
                "p10_s": times.spread(arm)[0],
                "p90_s": times.spread(arm)[1],
                "GB_per_s": None if case.host else counted(case, arm) / times.median(arm) / 1e9,
                "ours_is_times_faster": times.ratio("ours", arm),
            }
            for arm in times.seconds
        },
    }


def main() -> None:
    """Verify, time, report; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--small", action="store_true", help="small sizes, for a busy machine")
    parser.add_argument("--check", action="store_true", help="exit 1 naming each goal missed")
    parser.add_argument("--only", default="", help="run the cases whose label contains this")
    parser.add_argument("--rounds", type=int, default=0, help="counted rounds (0: by size)")
    parser.add_argument("--seconds", type=float, help="most for a case (on a GPU: 12)")
    parser.add_argument("--threads", type=int, default=0, help="torch threads (0: torch's choice)")
    parser.add_argument("--json", type=Path, help="write everything to this file")
    args = parser.parse_args()
    if args.small and args.check:
        parser.error("--check judges the full sizes, so --small cannot be given with it")
    if args.threads:
        torch.set_num_threads(args.threads)
    about = machine()
    print("\n".join(f"{key:26}{value}" for key, value in about.items()), "\n")
    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit("skipped: no device")
    reason = backends.reason_for_fallback(args.device)
    if reason:
        print(f"'ours' runs on torch ops: {reason}\n")

    results: list[dict[str, object]] = []
    verdicts: list[dict[str, object]] = []
    about |= {"command": command()}
    chosen = on_cuda if args.device == "cuda" else on_cpu
    goals = [] if args.small else chosen.goals()
    for case in chosen.cases(args.small):
        if args.only not in case.label:
            continue
        verify(case)
        times = chosen.measure(case, Tensors(case), args.rounds, args.seconds)
        print(table(case, times), flush=True)
        results.append(as_json(case, times))
        judged = [judge(goal, case, times) for goal in goals if goal.case == case.label]
        verdicts += judged
        for verdict in judged:
            met = "met   " if verdict["met"] else "MISSED"
            doubt = " (within the noise)" if verdict["within_the_noise"] else ""
            print(f"{met} {verdict['goal']} ≥ {verdict['least']:g}: {verdict['got']:.3f}{doubt}")
        print(flush=True)
        if args.json:  # after every case: a run that is cut short tells what it has measured
            args.json.parent.mkdir(parents=True, exist_ok=True)
            found = {"machine": about, "goals": verdicts, "cases": results}
            args.json.write_text(json.dumps(found, indent=1))
    if args.check and not all(verdict["met"] for verdict in verdicts):
        sys.exit(1)


if __name__ == "__main__":
    main()
