"""What bench/step.py has measured, as tables; and how any results are read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"

Rows = list[list[str]]


def load(name: str) -> Any:
    """The results in a file."""
    return json.loads((RESULTS / f"{name}.json").read_text())


def step_on_cpu() -> Rows:
    """One line for each case of bench/step.py that times a whole step."""
    head = ["weights", "ours", "GB/s (of in-place scaling)", "torch fused, no L1"]
    head += ["torch fused + softshrink", "torch default + softshrink", "ours without L1, L2"]
    bases = ["torch fused", "torch fused + softshrink", "torch default + softshrink"]
    rows = [head]
    for case in load("step-cpu")["cases"]:
        arms = case["arms"]
        if "torch fused" not in arms:
            continue
        rate = f"{arms['ours']['GB_per_s']:.0f}"
        if case["weights"] > 1e7:  # more than caches hold
            share = arms["ours"]["GB_per_s"] / arms["scale"]["GB_per_s"]
            rate += f" ({100 * share:.0f} %)"
        rows.append(
            [
                _label(case),
                f"{arms['ours']['median_s'] * 1e3:.2f} ms",
                rate,
                *(_times(arms, base) for base in (*bases, "ours, l1=l2=0")),
            ]
        )
    return rows


def step_in_short() -> Rows:
    """Four cases of bench/step.py: a network, twice; one large tensor; many small ones."""
    chosen = ["gpt2-small fp32", "gpt2-small bf16", "1x64Mi fp16", "1000x1024 fp32"]
    cases = {f"{case['case']} {case['dtype']}": case for case in load("step-cpu")["cases"]}
    rows = [
        [
            "weights",
            "a step with L1 and L2",
            "speed, of `AdamW(fused=True)` without L1",
            "speed, of the same and `softshrink`",
        ]
    ]
    for case in map(cases.__getitem__, chosen):
        arms = case["arms"]
        ratios = [_times(arms, base) for base in ("torch fused", "torch fused + softshrink")]
        rows.append([_label(case), f"{arms['ours']['median_s'] * 1e3:.1f} ms", *ratios])
    return rows


SMALL_STATE = ("step-small-state", "step-small-state-2", "step-small-state-3")


def small_state() -> Rows:
    """The formats of bench/step.py, each run of it beside the others."""
    head = ["weights", "ours, run by run", "torch fused, fp32", "torch fused, bf16"]
    rows = [head]
    for runs in zip(*(load(name)["cases"] for name in SMALL_STATE), strict=True):
        arms = [case["arms"] for case in runs]
        times = ", ".join(f"{own['ours']['median_s'] * 1e3:.0f}" for own in arms)
        rows.append([_label(runs[0]), f"{times} ms"])
        for base in head[2:]:
            found = [own[base]["ours_is_times_faster"] for own in arms if base in own]
            rows[-1].append(", ".join(f"{ratio:.2f}" for ratio in found) + " ×" if found else "–")
    return rows


STEP_ROWS = ("step-rows", "step-rows-2", "step-rows-3")


def step_with_rows(*names: str) -> Rows:
    """A step with l21 and without, each run of it beside the others."""
    rows = [["weights", "L1 and L2, run by run", "and l21", "speed with l21, of that without"]]
    found = ([case for case in load(name)["cases"] if _has_rows(case)] for name in names)
    for runs in zip(*found, strict=True):
        without, with_l21 = (
            [case["arms"][arm]["median_s"] for case in runs] for arm in ("ours", "ours, l21")
        )
        times = [", ".join(f"{t * 1e3:.2g}" for t in own) + " ms" for own in (without, with_l21)]
        ratios = ", ".join(f"{a / b:.2f}" for a, b in zip(without, with_l21, strict=True))
        rows.append([f"{runs[0]['weights'] >> 20}Mi in {_label(runs[0])}", *times, f"{ratios} ×"])
    return rows


def _has_rows(case: dict[str, Any]) -> bool:
    return "ours, l21" in case["arms"]


def step_on_cuda() -> Rows:
    """One line for each case of bench/step.py on a GPU."""
    rows = [["weights", "clock", "ours", "GB/s (of a copy)", "torch fused", "torch fused, fp32"]]
    for case in load("step-cuda")["cases"]:
        if _has_rows(case):
            continue
        arms = case["arms"]
        ours, own = arms["ours"], f"torch fused, {case['dtype'][:4]}"
        rate = "–"
        if ours["GB_per_s"]:
            share = ours["GB_per_s"] / arms["copy"]["GB_per_s"]
            rate = f"{ours['GB_per_s']:.0f} ({100 * share:.0f} %)"
        torchs = own if own in arms and case["dtype"][:4] != "fp32" else "torch fused"
        rows.append(
            [
                _label(case),
                case["clock"],
                f"{ours['median_s'] * 1e3:.3g} ms",
                rate,
                _times(arms, torchs),
                _times(arms, "torch fused, fp32"),
            ]
        )
    return rows


def goals_on_cuda() -> Rows:
    """What became of the goals of bench/step.py on a GPU."""
    rows = [["goal", "at least", "reached"]]
    for verdict in load("step-cuda")["goals"]:
        goal = verdict["goal"].replace("'", "`")
        rows.append([goal, f"{verdict['least']:.3g}", f"{verdict['got']:.3g}"])
    return rows


def around_the_step() -> Rows:
    """What steps through a GradScaler and the looks at a running optimizer cost."""
    names = {
        "ours, scaler": "`GradScaler.step`, ours",
        "torch fused, scaler": "`GradScaler.step`, torch fused",
        "sparsity": "`float(sparsity(optimizer))`",
        "stationarity": "`float(stationarity(optimizer))`",
    }
    rows = [["weights", "call", "time", "of our step"]]
    for case in load("step-cpu")["cases"]:
        arms = case["arms"]
        for arm in names.keys() & arms.keys():
            time = arms[arm]["median_s"]
            steps = time / arms["ours"]["median_s"]
            rows.append([_label(case), names[arm], f"{time * 1e3:.3g} ms", f"{steps:.2g} ×"])
    return [
        rows[0],
        *sorted(rows[1:], key=lambda row: (row[0], list(names.values()).index(row[1]))),
    ]


def compiled() -> Rows:
    """The steps of bench/step.py under torch.compile, beside the eager one."""
    arms = {
        "eager kernel": "ours",
        "the op, compiled": "ours, compiled",
        "torch ops, compiled": "ours on foreach, compiled",
        "torch's AdamW, compiled": "torch default, compiled",
    }
    rows = [["weights", *arms]]
    for case in load("step-cpu")["cases"]:
        if "ours, compiled" in case["arms"]:
            medians = [f"{case['arms'][arm]['median_s'] * 1e3:.3g} ms" for arm in arms.values()]
            rows.append([_label(case), *medians])
    return rows


def _label(case: dict[str, Any]) -> str:
    return f"{case['case'].replace('x', ' × ', 1)} {case['dtype']}"


def _times(arms: dict[str, Any], base: str) -> str:
    return f"{arms[base]['ours_is_times_faster']:.2f} ×" if base in arms else "–"


def goals() -> Rows:
    """What became of the goals in each run of bench/step.py, those of step-cpu.json first."""
    runs = [load(name)["goals"] for name in sorted(p.stem for p in RESULTS.glob("step-cpu*.json"))]
    rows = [["goal", "at least", "reached, run by run", "met"]]
    for verdicts in zip(*runs, strict=True):
        first = verdicts[0]
        rows.append(
            [
                first["goal"].replace("'", "`"),
                f"{first['least']:.3g}",
                ", ".join(f"{verdict['got']:.3g}" for verdict in verdicts),
                f"{sum(verdict['met'] for verdict in verdicts)} of {len(runs)}",
            ]
        )
    return rows
