"""``python -m proxadam``: versions, what is built, which instruction set runs, and why not more.

With ``--self-test`` it also steps a small problem on each backend, and exits with 1 where the
result is wrong.
"""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Sequence

import numpy
import torch

from . import __version__, _self_test, backends


def main(arguments: Sequence[str] = ()) -> int:
    """Print what a bug report should begin with; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m proxadam", description=main.__doc__)
    parser.add_argument(
        "--self-test", action="store_true", help="step a small problem on each backend"
    )
    wants = parser.parse_args(arguments)
    lines = [
        f"proxadam  {__version__}",
        f"torch     {torch.__version__}, built for {_torch_is_for()}; numpy {numpy.__version__}",
        f"python    {platform.python_version()} on {platform.system()} {platform.machine()}, "
        f"{' '.join(platform.libc_ver())}",
        f"backends  {', '.join(backends.available_backends())}",
        f"cpu       {_cpu()}",
        f"cuda      {_cuda()}",
    ]
    print("\n".join(lines))
    return 0 if not wants.self_test or _self_test.run(print) else 1


def _torch_is_for() -> str:
    return f"CUDA {torch.version.cuda}" if torch.version.cuda else "the CPU"


def _cpu() -> str:
    module = backends.kernel("cpu")
    running = ""
    if module is not None:
        names = module.capabilities()
        wider = "" if module.capability() == names[-1] else f" (this machine has {names[-1]})"
        threads = torch.get_num_threads()
        has_pool = "parallel_for" in backends.addresses()
        pool = "torch's threads" if has_pool else "no pool found: serial"
        running = f"kernel ready, {module.capability()}{wider}, {threads} threads ({pool})"
    return _or_fallback("cpu", running)


def _cuda() -> str:
    running = ""
    if backends.kernel("cuda") is not None:
        major, minor = torch.cuda.get_device_capability()
        running = f"kernel ready, {torch.cuda.get_device_name()} ({major}.{minor})"
    return _or_fallback("cuda", running)


def _or_fallback(device_type: str, running: str) -> str:
    reason = backends.reason_for_fallback(device_type)
    return running if reason is None else f"torch ops, because {reason}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
