"""The inputs and error inputs that torch tests its own Adam and AdamW with, on ours."""

from __future__ import annotations

import ast
import enum
import typing
from pathlib import Path

import pytest
import torch
from torch.nn import Parameter

from tools import TWINS, error_of


def conformance_data():
    """The Adam part of torch/testing/_internal/common_optimizers.py.

    Taken out of the file and not imported: importing it needs a package that torch does not
    depend on, and switches torch's global flags off for the rest of the process.
    """
    path = Path(torch.__file__).parent / "testing" / "_internal" / "common_optimizers.py"
    if not path.exists():
        pytest.skip("this torch comes without its testing modules", allow_module_level=True)
    wanted = {
        "CUDA_CONFIG_GPUS", "OptimizerInput", "OptimizerErrorEnum", "ErrorOptimizerInput",
        "_get_device_type", "get_error_inputs_for_all_optims", "optim_inputs_func_adam",
        "optim_inputs_func_adamw", "optim_error_inputs_func_adam", "optim_error_inputs_func_adamw",
    }  # fmt: skip
    tree = ast.parse(path.read_text())
    tree.body = [node for node in tree.body if _defined_name(node) in wanted]
    found = {"torch": torch, "Parameter": Parameter, "Enum": enum.Enum, **vars(typing)}
    exec(compile(tree, str(path), "exec"), found)
    return found


def _defined_name(node):
    target = node.targets[0] if isinstance(node, ast.Assign) else node
    return getattr(target, "name", getattr(target, "id", None))


DATA = conformance_data()


def cases(function, *devices):
    """Parameters (ours, theirs, case) for each device's cases, of Adam and of AdamW."""
    return [
        pytest.param(*twins, case, id=f"{name}-{device}-{i}-{_description(case)}")
        for name, twins in TWINS.items()
        for device in devices
        for i, case in enumerate(DATA[f"{function}_{name.lower()}"](device, torch.float32))
    ]


def _description(case):
    return getattr(case, "optimizer_error_input", case).desc


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
# What torch tries on CUDA adds capturable, which torch's own paths refuse on the CPU.
@pytest.mark.parametrize(("ours", "theirs", "case"), cases("optim_inputs_func", "cpu", "cuda"))
def test_inputs_step_as_torch(ours, theirs, case, dtype, backend):
    def run(cls, **options):
        torch.manual_seed(0)
        weights = [Parameter(torch.randn(shape, dtype=dtype)) for shape in [(7, 3), (5,), ()]]
        optimizer = cls(weights, **{**case.kwargs, **options})
        for _ in range(3):
            for weight in weights:
                weight.grad = torch.randn_like(weight)
            optimizer.step()
        return weights

    if backend.is_kernel:
        expected = run(theirs, foreach=False, capturable=False)
        torch.testing.assert_close(run(ours, **backend.options), expected)
        return
    error = error_of(run, theirs, **backend.options)
    assert error_of(run, ours, **backend.options) == error
    if not error:
        both = zip(run(ours, **backend.options), run(theirs, **backend.options), strict=True)
        assert all(torch.equal(a, b) for a, b in both)


@pytest.mark.parametrize(("ours", "theirs", "case"), cases("optim_error_inputs_func", "cpu"))
def test_error_inputs_raise_as_torch(ours, theirs, case):
    bad = case.optimizer_error_input
    params = [Parameter(torch.ones(1))] if bad.params is None else bad.params
    error = error_of(theirs, params, **bad.kwargs)
    assert error[0] is case.error_type
    assert error_of(ours, params, **bad.kwargs) == error
