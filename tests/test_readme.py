"""The figures in README.md and bench/README.md are those of the committed results."""

from __future__ import annotations

import subprocess
import sys
import zlib
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.skipif(
    not (ROOT / "bench" / "results").exists(), reason="the results are in the repository alone"
)
def test_tables_are_laid_out_from_the_results():
    """Also where no progress bar is installed, which benchmarks want and tests do not."""
    code = f"""
import runpy, sys
sys.modules["tqdm"] = None
sys.argv = ["tables.py", "--check"]
sys.path.insert(0, {str(ROOT / "bench")!r})
runpy.run_module("tables", run_name="__main__")
"""
    done = subprocess.run([sys.executable, "-c", code])
    assert done.returncode == 0, "run bench/tables.py"


def test_weights_of_which_nine_in_ten_are_zero_compress_to_a_seventh():
    weights = torch.randn(1_000_000)
    weights[torch.rand(1_000_000) < 0.9] = 0
    data = weights.numpy().tobytes()
    assert len(zlib.compress(data)) < len(data) / 7


def test_the_readme_is_short_enough_to_be_read():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 220
