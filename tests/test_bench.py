"""The benchmarks stand alone: tests may look at bench/, and bench/ never at tests/."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
BENCH = sorted((TESTS.parent / "bench").rglob("*.py"))
RESULTS = sorted((TESTS.parent / "bench" / "results").glob("*.json"))
OURS = {path.stem for path in TESTS.iterdir()}


@pytest.mark.parametrize("script", BENCH, ids=lambda path: path.stem)
def test_imports_nothing_of_the_tests(script):
    imported = set()
    for node in ast.walk(ast.parse(script.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module.partition(".")[0])
        elif isinstance(node, ast.Constant):
            assert node.value != "tests", "reaches into the tests by path"
    assert not imported & OURS


@pytest.mark.parametrize("result", RESULTS, ids=lambda path: path.stem)
def test_results_name_no_folder_of_a_machine(result):
    assert not re.search(r"[\s\"=]/\w+/", result.read_text())
