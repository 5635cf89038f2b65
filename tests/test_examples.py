"""The examples in the READMEs and in the docstrings of public names run, and say what they say."""

from __future__ import annotations

import doctest
import inspect
import pydoc
import re
import textwrap
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

import proxadam

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "python" / "proxadam" / "README.md"]
PUBLIC = {name: getattr(proxadam, name) for name in proxadam.__all__}


def train(optimizer, model, steps=3):
    """What an example leaves out."""
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(4, 8)).square().sum().backward()
        optimizer.step()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_examples_of_a_page_run(page):
    """Each goes on from the one before it, with an optimizer that has stepped."""
    blocks = re.findall(r"^( *)```python\n(.*?)^ *```$", page.read_text(), re.DOTALL | re.MULTILINE)
    assert len(blocks) >= 4
    logged = []
    linear = torch.nn.Linear
    layers = {"body": linear(8, 8), "norm": torch.nn.LayerNorm(8), "head": linear(8, 8)}
    names = {
        "torch": torch,
        "model": torch.nn.Sequential(OrderedDict(layers)),
        "example_inputs": torch.randn(2, 8),
        "loss_fn": torch.nn.functional.mse_loss,
        "inputs": torch.randn(4, 8),
        "targets": torch.randn(4, 8),
        "log": logged.append,
        **{name: PUBLIC[name] for name in ("suggest_l1", "TargetSparsityL1", "state_bytes")},
    }
    for _, block in blocks:
        code = textwrap.dedent(block)
        exec(compile(code, f"{page.name}: {code.splitlines()[0]}", "exec"), names)
        train(names["optimizer"], names.get("layer", names["model"]))
    assert not logged or 0 <= logged[0]["zeros"] <= 1


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_the_examples_of_a_docstring_run(name):
    found = doctest.DocTestFinder(recurse=False).find(
        PUBLIC[name], name, globs={"torch": torch, **PUBLIC}
    )
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    for test in found:
        torch.manual_seed(0)
        runner.run(test)
    result = runner.summarize(verbose=False)
    assert result.failed == 0
    assert (result.attempted > 0) == (">>> " in inspect.getdoc(PUBLIC[name]))


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_a_public_name_documents_its_arguments(name):
    """Each by its name, here or where the docstring sends one."""
    documented = inspect.getdoc(PUBLIC[name])
    named = set(re.findall(r":class:`(?:proxadam\.)?(\w+)`", documented)) & PUBLIC.keys()
    whole = documented + "".join(inspect.getdoc(PUBLIC[other]) for other in named)
    for argument in inspect.signature(PUBLIC[name]).parameters:
        if argument not in ("args", "kwargs"):
            assert re.search(rf"\b{argument}\b", whole), f"{name} says nothing of {argument}"
    if not inspect.isclass(PUBLIC[name]) and name != "prox_adam":
        assert "Returns:" in documented


def test_most_docstrings_have_an_example():
    without = {name for name, value in PUBLIC.items() if ">>> " not in inspect.getdoc(value)}
    assert without <= {"ProxAdam", "prox_adam", "L1Scheduler", "PenaltyScheduler", "is_built"}


def test_pydoc_reads_the_package():
    text = pydoc.plain(pydoc.render_doc(proxadam))
    head = text.split("PACKAGE CONTENTS")[0]
    for name in PUBLIC.keys() - {"L1Scheduler", "LinearL1"}:  # a base, and RampL1 by another name
        assert re.search(rf"\b{name}\b", head), f"the package's docstring does not name {name}"
    assert "\n    The step:" in head
