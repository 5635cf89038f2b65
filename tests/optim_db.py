"""ProxAdam and ProxAdamW as entries of torch's own list of optimizers under test.

The entries of Adam and AdamW are taken out of torch/testing/_internal/common_optimizers.py and not
imported: importing it needs a package that torch does not depend on, and switches torch's global
flags off for the rest of the process.
"""

from __future__ import annotations

import ast
import enum
import typing
from pathlib import Path

import pytest
import torch
from torch.nn import Parameter
from torch.optim import lr_scheduler

from tools import TWINS

_WANTED = {
    "CUDA_CONFIG_GPUS", "OptimizerInput", "OptimizerErrorEnum", "ErrorOptimizerInput",
    "OptimizerInfo", "_get_device_type", "get_error_inputs_for_all_optims",
    "optim_inputs_func_adam", "optim_inputs_func_adamw", "optim_error_inputs_func_adam",
    "optim_error_inputs_func_adamw",
}  # fmt: skip
# The names of torch's own tests and of its tolerances for them.
_NOT_FOR_US = ("decorators", "skips")


def _entries():
    """OptimizerInfo by the name of torch's class, with ours in the place of that class."""
    path = Path(torch.__file__).parent / "testing" / "_internal" / "common_optimizers.py"
    if not path.exists():
        pytest.skip("this torch comes without its testing modules", allow_module_level=True)
    tree = ast.parse(path.read_text())
    listed = next(node.value for node in tree.body if _defined_name(node) == "optim_db")
    tree.body = [node for node in tree.body if _defined_name(node) in _WANTED]
    names = {
        "torch": torch, "Parameter": Parameter, "Optimizer": torch.optim.Optimizer,
        "Enum": enum.Enum, **vars(typing),
    }  # fmt: skip
    names |= {name: getattr(lr_scheduler, name) for name in lr_scheduler.__all__}
    names |= {name: ours for name, (ours, _) in TWINS.items()}
    exec(compile(tree, str(path), "exec"), names)
    entries = {}
    for call in listed.elts:
        name = call.args[0].id
        if name in TWINS:
            call.keywords = [word for word in call.keywords if word.arg not in _NOT_FOR_US]
            entries[name] = eval(compile(ast.Expression(call), str(path), "eval"), names)
    return entries


def _defined_name(node):
    target = node.targets[0] if isinstance(node, ast.Assign) else node
    if isinstance(node, ast.AnnAssign):
        target = node.target
    return getattr(target, "name", getattr(target, "id", None))


OPTIM_DB = _entries()

# The test gets `info`, the entry of ProxAdam and then that of ProxAdamW.
each_info = pytest.mark.parametrize("info", OPTIM_DB.values(), ids=lambda info: info.name)


def inputs(info, backend, dtype=None):
    """The options that torch would try there; our kernels are capturable on the CPU as well."""
    device = "cuda" if backend.is_kernel else backend.device
    return [{**case.kwargs, **backend.options} for case in info.optim_inputs_func(device, dtype)]


def cases(function, *devices):
    """Parameters (ours, theirs, case) for each device's inputs of Adam and of AdamW."""
    return [
        pytest.param(*TWINS[name], case, id=f"{name}-{device}-{i}-{_description(case)}")
        for name, info in OPTIM_DB.items()
        for device in devices
        for i, case in enumerate(getattr(info, function)(device, torch.float32))
    ]


def _description(case):
    return getattr(case, "optimizer_error_input", case).desc
