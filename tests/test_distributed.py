"""The engines of torch.distributed, with real processes: see ranks/ for what each check does.

A world of ranks is started once and goes through all the checks that were asked for. A failure
ends it, and a new one goes on with the rest.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist

from proxadam import backends
from ranks import CHECKS
from tools import HIDES_GPUS

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="this torch has no gloo"
)
WORLD_SECONDS = 300


@pytest.fixture(scope="module")
def errors_of(request, tmp_path_factory):
    """Errors by (world size, check), all checks of a world size at once when one is asked for."""
    saved = tmp_path_factory.mktemp("checkpoints")
    ours = [item for item in request.session.items if item.module.__name__ == __name__]
    wanted = [
        item.callspec.params for item in ours if not _lacks_kernel(item.callspec.params["check"])
    ]
    found = {}

    def errors(ranks, check):
        if (ranks, check) not in found:
            names = [case["check"] for case in wanted if case["ranks"] == ranks]
            for name in names:
                if name.startswith("loaded"):
                    errors(4, name.replace("loaded", "saved"))
            found.update(run_all(ranks, names if check in names else [check], saved))
        return found[ranks, check]

    return errors


def _lacks_kernel(check):
    return "kernel" in check and backends.kernel("cpu") is None


def run_all(ranks, names, folder):
    found = {}
    while left := [name for name in names if (ranks, name) not in found]:
        found.update({(ranks, name): error for name, error in run(ranks, left, folder).items()})
    return found


def run(ranks, names, folder):
    """Start the ranks; the errors of the checks that were begun, which are one at least."""
    for old in [folder / "meeting", *folder.glob("errors-*.json")]:
        old.unlink(missing_ok=True)
    command = [sys.executable, "-m", "ranks", str(ranks), str(folder)]
    log = folder / f"log-{ranks}"
    with log.open("w") as out:
        world = subprocess.Popen(
            [*command, *names],
            cwd=Path(__file__).parent,
            env={**os.environ, "OMP_NUM_THREADS": "1", **HIDES_GPUS},
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        with contextlib.suppress(subprocess.TimeoutExpired):
            world.wait(WORLD_SECONDS)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(world.pid, signal.SIGKILL)
        world.wait()
    errors = {}
    for rank in range(ranks):
        said = folder / f"errors-{rank}.json"
        begun = json.loads(said.read_text()) if said.exists() else {names[0]: "did not start"}
        for name, error in begun.items():
            errors.setdefault(name, []).extend([f"rank {rank} of {ranks}: {error}"] * bool(error))
    if any(errors.values()):
        errors[list(errors)[-1]].append(f"the last words of all ranks: {log.read_text()[-2000:]}")
    return errors


@pytest.mark.parametrize(
    ("ranks", "check"),
    [(ranks, check) for ranks in (4, 2) for check, (_, sizes) in CHECKS.items() if ranks in sizes],
    ids=lambda value: f"{value} ranks" if isinstance(value, int) else value,
)
def test_on_many_ranks(errors_of, ranks, check):
    if _lacks_kernel(check):
        pytest.skip(str(backends.reason_for_fallback("cpu")))
    errors = errors_of(ranks, check)
    assert not errors, "\n".join(errors)
