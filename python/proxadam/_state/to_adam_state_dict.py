"""A state dict for torch's own optimizers."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim import Optimizer

from .._step.options import TYPES
from .._step.state import CODES, FORMATS, MOMENTS, NUMBER, moment

__all__ = ["to_adam_state_dict"]

_OF_ADAM = {*torch.optim.Adam([torch.zeros(1)]).defaults, "params"}


def to_adam_state_dict(optimizer: Optimizer) -> dict[str, Any]:
    """The state dict of a ProxAdam or ProxAdamW as torch.optim.Adam or AdamW can load it.

    Moments in 8 bits are decoded to bfloat16, which holds them exactly; others are the optimizer's
    own tensors. The options that Adam does not have are left out of the groups.

    Args:
        optimizer: the state dict of its own is left as it is.

    Returns:
        A state dict, whose tensors may be the optimizer's: save it, or load it, before the next
        step.

    Example:
        >>> model = torch.nn.Linear(64, 64)
        >>> optimizer = ProxAdamW(model.parameters(), state_dtype="8bit")
        >>> model(torch.ones(64)).sum().backward()
        >>> optimizer.step()
        >>> adamw = torch.optim.AdamW(model.parameters())
        >>> adamw.load_state_dict(to_adam_state_dict(optimizer))
        >>> adamw.state[model.weight]["exp_avg"].dtype
        torch.float32
    """
    saved = optimizer.state_dict()
    state = {key: _of_adam(own) for key, own in saved["state"].items()}
    ours = {name for name in TYPES if name not in _OF_ADAM}
    groups = [
        {name: value for name, value in group.items() if name not in ours}
        for group in saved["param_groups"]
    ]
    return {**saved, "state": state, "param_groups": groups}


def _of_adam(own: dict[str, Any]) -> dict[str, Any]:
    others = {name: value for name, value in own.items() if name not in (*FORMATS, NUMBER)}
    if CODES[0] in own:
        return others | {name: moment(own, name).to(torch.bfloat16) for name in MOMENTS}
    return others | {name: own[name] for name in FORMATS if name in own}
