"""Two installed builds of the package, timed in turns on one machine: is the second one slower?

    python bench/versus.py OLD/bin/python NEW/bin/python  # under an hour; the machine idle
    python bench/versus.py OLD/bin/python NEW/bin/python --small  # some minutes

OLD and NEW are virtual environments, each with its build and what bench/step.py needs. Both run the
benchmark's files of this clone, over the cases of bench/step.py. A pair is a process of each build.
The two have equal tensors and take turns of a tenth of a second, so that what else the machine does
meets both. Every pair gives a ratio; the median over the pairs is reported, with the lowest and the
highest, for a process has lucky or unlucky memory as long as it lives.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from command_line import command

OURS, AGAIN, PLAIN = "ours", "ours again", "ours, l1=l2=0"
TURN = 0.1  # seconds
# How many times as long as the old build the new one may take; where the work around the kernel is
# what counts, more if two arms of the same step differ by more than half of that.
MOST, MOST_ON_HOST = 1.05, 1.02


# ---- one build --------------------------------------------------------------------------------


def serve(small: bool) -> None:
    """Answer questions, a line of JSON each, until there are no more."""
    import on_cpu
    from cases import L1, L2, Tensors
    from harness import interleave, machine
    from proxadam import ProxAdamW

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    # A build may be older than small state.
    cases = {case.label: case for case in on_cpu.cases(small) if not case.small}
    arms: dict[str, Any] = {}
    for line in sys.stdin:
        question = json.loads(line)
        if "case" in question:
            arms.clear()  # and with them the memory of the case before
            tensors = Tensors(cases[question["case"]])
            with_prox = tensors.optimizer(ProxAdamW, l1=L1, l2=L2)
            arms |= {OURS: with_prox.step, AGAIN: with_prox.step}
            arms[PLAIN] = tensors.optimizer(ProxAdamW).step
            del tensors, with_prox
        if "rounds" in question:
            times = interleave(arms, question["rounds"], warmup=2, label="")
            answer: object = {arm: times.median(arm) for arm in arms}
        else:
            hosts = [label for label, case in cases.items() if case.host]
            about = machine()
            del about["commit"]  # that of the benchmark's files
            answer = {"cases": list(cases), "on_host": hosts, "machine": about}
        print(json.dumps(answer), file=answers, flush=True)


class Build:
    """A process of one build."""

    def __init__(self, python: str, small: bool) -> None:
        command = [python, __file__, "--serve", *(["--small"] if small else [])]
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._process = subprocess.Popen(command, env=environment, text=True, **pipes)

    def ask(self, **question: object) -> Any:
        """The answer to a question.

        Raises:
            SystemExit: the process has ended; it has said why.
        """
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps(question), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            sys.exit(f"{self._process.args[0]} gave no answer to {question}")
        return json.loads(answer)

    def end(self) -> None:
        """Let the process end, and wait for it."""
        self._process.stdin.close()
        self._process.wait()


# ---- two of them ------------------------------------------------------------------------------


def compare(old: Build, new: Build, case: str, turns: int) -> dict[str, dict[str, float]]:
    """Medians over the turns, by arm: seconds of both builds, and of two arms of the same step."""
    for build in (old, new):
        build.ask(case=case)
    first = [build.ask(rounds=2) for build in (old, new)]
    rounds = max(2, min(300, int(TURN / sum(first[0].values()))))
    seen = []
    for turn in range(turns):
        order = (old, new) if turn % 2 else (new, old)
        found = {}
        for build in order:
            time.sleep(0.01)  # the other's threads spin for a moment before they sleep
            found[build] = build.ask(rounds=rounds)
        seen.append((found[old], found[new]))
    return {
        arm: {
            "old_s": statistics.median(a[arm] for a, _ in seen),
            "new_s": statistics.median(b[arm] for _, b in seen),
            "new_over_old": statistics.median(b[arm] / a[arm] for a, b in seen),
            "again_over_ours": statistics.median(t[AGAIN] / t[OURS] for pair in seen for t in pair),
        }
        for arm in first[0]
    }


def report(case: str, pairs: list[dict[str, Any]], on_host: bool) -> list[dict[str, Any]]:
    """Print one line for each arm of a case, and return them."""
    noise = abs(statistics.median(pair[OURS]["again_over_ours"] for pair in pairs) - 1)
    most = max(MOST_ON_HOST, 1 + 2 * noise) if on_host else MOST
    lines = []
    for arm in pairs[0]:
        ratios = sorted(pair[arm]["new_over_old"] for pair in pairs)
        ratio = statistics.median(ratios)
        old, new = (statistics.median(p[arm][k] for p in pairs) for k in ("old_s", "new_s"))
        slower = "SLOWER" if ratio > most else ""
        print(
            f"{case:24}{arm:16}{old * 1e3:10.3f}{new * 1e3:10.3f} ms"
            f"{ratio:8.3f}  ({ratios[0]:.3f}, {ratios[-1]:.3f})  at most {most:.3f} {slower}"
        )
        lines.append(
            {
                "case": case,
                "arm": arm,
                "old_s": old,
                "new_s": new,
                "new_over_old": ratios,
                "median": ratio,
                "most": most,
                "noise": noise,
            }
        )
    return lines


def main() -> None:
    """Alternate, report; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("python", nargs="*", metavar="PYTHON", help="of the old and the new build")
    parser.add_argument("--pairs", type=int, default=7, help="of processes (default: 7)")
    parser.add_argument("--turns", type=int, default=10, help="of each process in a case")
    parser.add_argument("--small", action="store_true", help="the small cases of bench/step.py")
    parser.add_argument("--only", default="", help="run the cases whose label contains this")
    parser.add_argument("--check", action="store_true", help="exit 1 where the new one is slower")
    parser.add_argument("--json", type=Path, help="write everything to this file")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args.small)
        return
    if len(args.python) != 2:
        parser.error("expected two Python interpreters: that of the old and of the new build")

    pairs: dict[str, list[dict[str, Any]]] = {}
    for number in range(args.pairs):
        old, new = (Build(python, args.small) for python in args.python)
        about, other = old.ask(), new.ask()
        if not number:
            machines = {"old": about["machine"], "new": other["machine"]}
            for key, value in machines["new"].items():
                print(f"{key:26}{value}")
        for case in about["cases"]:
            if args.only in case:
                pairs.setdefault(case, []).append(compare(old, new, case, args.turns))
                print(f"pair {number + 1} of {args.pairs}: {case}", file=sys.stderr)
        old.end()
        new.end()
    print(f"\n{'':40}{'old':>10}{'new':>10}    new ÷ old: median of the pairs (lowest, highest)")
    on_host = about["on_host"]
    lines = [line for case in pairs for line in report(case, pairs[case], case in on_host)]
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        found = {"machines": machines, "command": command(), "lines": lines}
        args.json.write_text(json.dumps(found, indent=1))
    if args.check and any(line["median"] > line["most"] for line in lines):
        sys.exit(1)


if __name__ == "__main__":
    main()
