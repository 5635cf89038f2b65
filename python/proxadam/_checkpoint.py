"""What a loaded state dict may change, and what it may not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ._group import check_prox_options

# How a step is taken is the instance's own choice; a checkpoint says what has been learned.
_IMPLEMENTATION = ("foreach", "capturable", "differentiable", "fused")
_MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")


def moment_dtype(param: Tensor, state_dtype: torch.dtype | None) -> torch.dtype:
    """In what the moments of a parameter are kept: its own dtype, or float32 if that is wider."""
    wider = state_dtype is torch.float32 and param.dtype in (torch.bfloat16, torch.float16)
    return torch.float32 if wider else param.dtype


def completed(optimizer: Optimizer, loaded: dict[str, Any]) -> dict[str, Any]:
    """A state dict for this optimizer, made from one that another may have saved.

    Args:
        optimizer: what it is to be loaded into.
        loaded: a state dict of ProxAdam, or of torch.optim.Adam or AdamW.

    Returns:
        The same with, in each group, the options that the saved one has not heard of, and the
        implementation that the group has chosen.

    Raises:
        ValueError: what was loaded is no state dict; an option is out of range; the state of a
            parameter lacks a moment, or has one that does not fit it. The message names it, and
            nothing has been loaded then.
    """
    for name, kind in (("state", Mapping), ("param_groups", list)):
        if not isinstance(loaded.get(name), kind):
            raise ValueError(
                f"expected a state dict with 'state' and 'param_groups', got {name!r} of the type"
                f" {type(loaded.get(name)).__name__}; was the file written to its end?"
            )
    saved_groups = loaded["param_groups"]
    pairs = list(
        zip(optimizer.param_groups, saved_groups, strict=False)
    )  # torch reports another length itself
    for group, saved in pairs:
        for param, index in zip(group["params"], saved["params"], strict=False):
            _check_state(param, loaded["state"].get(index), index)
    ours = [
        {name: group[name] for name in optimizer.defaults}
        | saved
        | {name: group[name] for name in _IMPLEMENTATION}
        for group, saved in pairs
    ]
    for group in ours:
        check_prox_options(group["l1"], group["l2"], group["metric"], group["max_shrink"])
        check_state_dtype(group["state_dtype"])
    return {**loaded, "param_groups": ours + list(saved_groups[len(pairs) :])}


def restore_state(optimizer: Optimizer, loaded: dict[str, Any]) -> None:
    """Put the loaded state where, and in the dtype that, the optimizer keeps it.

    :meth:`torch.optim.Optimizer.load_state_dict` has cast the moments to the parameters' dtype,
    which takes 16 bits from those kept in float32.
    """
    for group, saved in zip(optimizer.param_groups, loaded["param_groups"], strict=True):
        for param, index in zip(group["params"], saved["params"], strict=True):
            state = optimizer.state.get(param)
            if not state:
                continue
            dtype = moment_dtype(param, group["state_dtype"])
            for name in _MOMENTS:
                if name in state and state[name].dtype != dtype:
                    state[name] = loaded["state"][index][name].to(param.device, dtype)
            step_t = state.get("step")
            if isinstance(step_t, Tensor) and not (group["capturable"] or group["fused"]):
                state["step"] = step_t.cpu()


def check_state_dtype(state_dtype: torch.dtype | None) -> None:
    """Raise ValueError for a dtype that moments are not kept in."""
    if state_dtype not in (None, torch.float32):
        raise ValueError(f"Invalid state_dtype: {state_dtype}, expected torch.float32 or None")


def _check_state(param: Tensor, state: Mapping[str, Any] | None, index: object) -> None:
    if not state:
        return
    for name in ("step", *_MOMENTS[:2]):
        if not isinstance(state, Mapping) or name not in state:
            raise ValueError(
                f"the loaded state of parameter {index} has no {name!r}, expected step, exp_avg"
                " and exp_avg_sq; was it saved by another kind of optimizer?"
            )
    for name in _MOMENTS:
        moment = state.get(name, param)
        if not isinstance(moment, Tensor) or moment.layout is not torch.strided:
            found = str(moment.layout) if isinstance(moment, Tensor) else type(moment).__name__
            raise ValueError(
                f"the loaded {name} of parameter {index} is {found}, expected a dense tensor;"
                " nothing was loaded."
            )
        if moment.shape != param.shape:
            raise ValueError(
                f"the loaded {name} of parameter {index} has shape {tuple(moment.shape)},"
                f" expected {tuple(param.shape)}; nothing was loaded."
            )
        if moment.is_complex() != param.is_complex():
            raise ValueError(
                f"the loaded {name} of parameter {index} has dtype {moment.dtype} and the parameter"
                f" {param.dtype}; nothing was loaded."
            )
    step = state["step"]
    single = isinstance(step, (int, float)) or (isinstance(step, Tensor) and step.numel() == 1)
    on_device = isinstance(step, Tensor) and not step.is_cpu
    if not single or not (on_device or step >= 0):
        raise ValueError(
            f"the loaded step of parameter {index} is {step}, expected a count of steps, ≥ 0;"
            " nothing was loaded."
        )
