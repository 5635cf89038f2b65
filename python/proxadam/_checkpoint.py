"""What a loaded state dict may change, and what it may not."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

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
        ValueError: the state of a parameter lacks a moment, or has one of another shape; the
            message names them. Nothing has been loaded then.
    """
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


def _check_state(param: Tensor, state: dict[str, Any] | None, index: object) -> None:
    if not state:
        return
    for name in ("step", *_MOMENTS[:2]):
        if name not in state:
            raise ValueError(
                f"the loaded state of parameter {index} has no {name!r}, expected step, exp_avg"
                " and exp_avg_sq; was it saved by another kind of optimizer?"
            )
    for name in _MOMENTS:
        if name in state and state[name].shape != param.shape:
            raise ValueError(
                f"the loaded {name} of parameter {index} has shape {tuple(state[name].shape)},"
                f" expected {tuple(param.shape)}; nothing was loaded."
            )
