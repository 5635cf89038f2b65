"""What is said of the project in several places agrees: versions, interpreters, and what is run."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import proxadam

tomllib = pytest.importorskip("tomllib", reason="needs Python 3.11")

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
HIDDEN = [ROOT / name for name in (".ci", ".github", ".pre-commit-config.yaml")]
in_repository = pytest.mark.skipif(
    not all(path.exists() for path in HIDDEN), reason="these files are in the repository alone"
)
RUN = {
    line.rsplit(" ", 1)[1]
    for line in PROJECT["project"]["classifiers"]
    if re.search(r":: 3\.\d+$", line)
}


def minor(version: str) -> int:
    return int(version.split(".")[1])


def test_the_version_is_the_installed_one():
    assert PROJECT["project"]["version"] == proxadam.__version__


def test_the_oldest_interpreter_is_the_one_that_pip_asks_for():
    assert PROJECT["project"]["requires-python"] == f">={min(RUN, key=minor)}"


def test_wheels_are_built_for_every_interpreter_that_we_claim():
    (builds,) = re.findall(r"^cp3\{([\d,]+)\}-manylinux", PROJECT["tool"]["cibuildwheel"]["build"])
    assert {f"3.{number}" for number in builds.split(",")} >= RUN


@in_repository
def test_the_citation_has_the_version():
    citation = (ROOT / ".github" / "CITATION.cff").read_text()
    assert f"\nversion: {proxadam.__version__}\n" in citation
    assert PROJECT["project"]["urls"]["Repository"] in citation


@in_repository
def test_the_suite_is_run_with_the_oldest_torch_and_python_that_we_claim():
    (torch,) = re.findall(r"torch>=([\d.]+)", " ".join(PROJECT["project"]["dependencies"]))
    pairs = re.findall(r"python(3\.\d+)=(\S+)", (ROOT / ".ci" / "versions").read_text())
    assert (min(RUN, key=minor), f"{torch}.0") in pairs
    assert (max(RUN, key=minor), "newest") in pairs


@in_repository
def test_the_workflows_call_what_a_person_calls():
    for workflow, script in {"ci": ".ci/run", "release": ".ci/wheels"}.items():
        text = (ROOT / ".github" / "workflows" / f"{workflow}.yml").read_text()
        assert f"- run: {script}\n" in text
        assert (ROOT / script).stat().st_mode & 0o100, "is to be run"


@in_repository
def test_scripts_of_python_parse_and_hooks_are_pinned():
    ast.parse((ROOT / ".ci" / "smoke.py").read_text())
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    for pins in re.findall(r"additional_dependencies: \[(.*)\]", hooks):
        assert all("==" in pin for pin in pins.split(","))
