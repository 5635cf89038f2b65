"""Compile csrc/cuda for the host: ``python build.py DIRECTORY [--sanitize | --dry]``.

Makes the module ``_cuda`` out of the sources that nvcc compiles, with the cuda_runtime.h beside
this file in place of NVIDIA's, and the module ``_fake_device`` that feeds it CPU tensors.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pybind11

HERE = Path(__file__).resolve().parent
CSRC = HERE.parents[1] / "csrc"
MODULES = {
    "_cuda": [
        CSRC / "cuda" / "module.cpp",
        *sorted((CSRC / "cuda").glob("*.cu")),
        *sorted((CSRC / "python").glob("*.cpp")),
    ],
    "_fake_device": [HERE / "fake_device.cpp"],
}
SOURCE_FLAGS = [
    *("-std=c++17", "-fPIC", "-g1", "-Wall", "-Wextra", "-Wno-unknown-pragmas", "-pthread"),
    *("-ffp-contract=off", "-fno-strict-aliasing", "-fvisibility=hidden"),
    *("-DPROXADAM_BRANCH_FREE=1", f"-I{HERE}"),
]
FLAGS = [
    *SOURCE_FLAGS,
    *("-DPROXADAM_CUDA_OLDEST=80", "-DPROXADAM_CUDA_THREADS=32"),  # 32: threads are dear here
    f"-I{pybind11.get_include()}",
    f"-I{sysconfig.get_paths()['include']}",
]
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]


def build(directory: Path, sanitize: bool = False, dry: bool = False) -> None:
    """Compile both modules into ``directory``; ``dry`` ones launch nothing.

    Raises:
        RuntimeError: the compiler is missing, or does not compile; with what it says.
    """
    directory.mkdir(parents=True, exist_ok=True)
    flags = FLAGS + (["-O0", *SANITIZE] if sanitize else ["-O3", "-DNDEBUG"])
    flags += ["-DPROXADAM_DRY_LAUNCH"] if dry else []
    suffix = sysconfig.get_config_var("EXT_SUFFIX")

    def compiled(source: Path) -> Path:
        target = directory / f"{source.stem}.o"
        _run_compiler(*flags, "-x", "c++", "-c", source, "-o", target)
        return target

    with ThreadPoolExecutor() as pool:
        for name, sources in MODULES.items():
            objects = list(pool.map(compiled, sources))
            _run_compiler(*flags, "-shared", *objects, "-o", directory / f"{name}{suffix}")


def many_warps(directory: Path) -> Path:
    """Compile many_warps.cpp for ThreadSanitizer and return the program.

    Raises:
        RuntimeError: likewise.
    """
    program = directory / "many_warps"
    flags = [*SOURCE_FLAGS, "-O1", "-fsanitize=thread", "-DPROXADAM_CUDA_THREADS=128"]
    _run_compiler(*flags, HERE / "many_warps.cpp", "-o", program)
    return program


def _run_compiler(*arguments: object) -> None:
    compiler = shutil.which("g++")
    if compiler is None:
        raise RuntimeError("no g++ on PATH")
    command = [compiler, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{command} fails:\n{done.stderr}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--sanitize", action="store_true")
    parser.add_argument("--dry", action="store_true", help="launches do nothing, to time the host")
    arguments = parser.parse_args()
    build(arguments.directory, arguments.sanitize, arguments.dry)
