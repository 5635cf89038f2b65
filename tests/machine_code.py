"""The machine code in the module _cuda, read with NVIDIA's cuobjdump; no GPU is needed."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

SPEC = importlib.util.find_spec("proxadam._cuda")
BINARY = Path(SPEC.origin) if SPEC else None
# NVIDIA's wheels of the two tools put them here; cuobjdump looks for nvdisasm on PATH.
WHEELS = [tools for place in sys.path for tools in Path(place).glob("nvidia/*/bin")]
PATH = ":".join([*map(str, WHEELS), "/usr/local/cuda/bin", "/usr/bin", "/bin"])
CUOBJDUMP = shutil.which("cuobjdump") or shutil.which("cuobjdump", path=PATH)


def cuobjdump(*options: str) -> str:
    """What the tool says of the module.

    Raises:
        RuntimeError: with its error.
    """
    command = [CUOBJDUMP, *options, str(BINARY)]
    done = subprocess.run(command, capture_output=True, text=True, env={"PATH": PATH})
    if done.returncode != 0:
        raise RuntimeError(f"{command} fails: {done.stderr}")
    return done.stdout


def instructions() -> dict[tuple[str, str], list[tuple[int, str]]]:
    """(address, instruction) of every kernel, by architecture and mangled name."""
    found: dict[tuple[str, str], list[tuple[int, str]]] = {}
    arch, code = "", []
    for line in cuobjdump("-sass").splitlines():
        if line.startswith("arch = "):
            arch = line.removeprefix("arch = ")
        elif "Function : " in line:
            code = found.setdefault((arch, line.split(" : ")[1]), [])
        elif match := re.match(r"\s+/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;", line):
            code.append((int(match[1], 16), match[2]))
    return found


def registers() -> dict[tuple[str, str], int]:
    """Registers a thread of every kernel, by architecture and mangled name."""
    return _usage("REG")


def constant_bank() -> dict[tuple[str, str], int]:
    """Bytes of the constant bank that has a kernel's arguments, likewise."""
    return _usage("CONSTANT[0]")


def _usage(resource: str) -> dict[tuple[str, str], int]:
    found, arch, name = {}, "", ""
    for line in cuobjdump("-res-usage").splitlines():
        if line.startswith("arch = "):
            arch = line.removeprefix("arch = ")
        elif match := re.match(r" Function (\S+):", line):
            name = match[1]
        elif match := re.search(rf"\b{re.escape(resource)}:(\d+)", line):
            found[arch, name] = int(match[1])
    return found


Code = list[tuple[int, str]]
HASHES = "0x7feb352d"  # a factor in csrc/rounding.h


def bodies(code: Code) -> list[Code]:
    """The bodies of all loops, in the order of their ends."""
    found = []
    for address, instruction in code:
        target = _target(instruction)
        if target is not None and target < address:
            found.append([(at, text) for at, text in code if target <= at <= address])
    return found


def loops(code: Code) -> list[Code]:
    """Those of the loops that move 16 bytes at a time."""
    return [body for body in bodies(code) if any("LDG.E.128" in text for _, text in body)]


def count(code: Code, operation: str) -> int:
    """How often an operation stands there, with or without a predicate."""
    return sum(bool(re.search(rf"^(@\S+ )?{operation}\b", text)) for _, text in code)


def executed(body: Code) -> list[str]:
    """What is executed of a loop on its common path.

    Without AMP, and without the calls for numbers that a short sequence is not for: a branch over a
    block is taken, but for the one over the stores, that follows from such a number, and those over
    what is drawn.
    """
    last_store = max(at for at, text in body if "STG" in text)
    draws = [at for at, text in body if HASHES in text]
    run, resume = [], 0
    for address, instruction in body:
        if address < resume:
            continue
        run.append(instruction)
        target = _target(instruction)
        if target is None or target < address:
            continue
        if any(address < at < target for at in draws) or address < last_store < target:
            continue
        resume = target
    return run


def _target(instruction: str) -> int | None:
    branch = re.search(r"\bBRA\b.*\b0x([0-9a-f]+)", instruction)
    return int(branch[1], 16) if branch else None
