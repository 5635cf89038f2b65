"""The figures in README.md and bench/README.md are those of the committed results."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.skipif(
    not (ROOT / "bench" / "results").exists(), reason="the results are in the repository alone"
)
def test_tables_are_laid_out_from_the_results():
    done = subprocess.run([sys.executable, ROOT / "bench" / "tables.py", "--check"])
    assert done.returncode == 0, "run bench/tables.py"
