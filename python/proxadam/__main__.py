"""``python -m proxadam``: versions, what is built, which instruction set runs, and why not more."""

from __future__ import annotations

import platform

import torch

from . import __version__, backends


def main() -> None:
    """Print what a bug report should begin with."""
    lines = [
        f"proxadam  {__version__}",
        f"torch     {torch.__version__}",
        f"python    {platform.python_version()} on {platform.system()} {platform.machine()}",
        f"backends  {', '.join(backends.available_backends())}",
        f"cpu       {_cpu()}",
        f"cuda      {_or_fallback('cuda', 'kernel ready')}",
    ]
    print("\n".join(lines))


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


def _or_fallback(device_type: str, running: str) -> str:
    reason = backends.reason_for_fallback(device_type)
    return running if reason is None else f"torch ops, because {reason}"


if __name__ == "__main__":
    main()
