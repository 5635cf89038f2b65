"""The state of a parameter: its names, its formats, how it is made, checked, saved and loaded.

The names are those of torch.optim.Adam. A state that is kept otherwise, in a dtype of its own,
with exponents for each block beside the moments, or with a seed, is one more :class:`Format`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import _get_scalar_dtype

from .options import IMPLEMENTATION, check_group

MOMENTS = ("exp_avg", "exp_avg_sq")
MAX_EXP_AVG_SQ = "max_exp_avg_sq"  # with amsgrad alone

NARROW = (torch.bfloat16, torch.float16)
KERNEL_DTYPES = (torch.float32, torch.float64, *NARROW)
DTYPES = (*KERNEL_DTYPES, torch.complex64, torch.complex128)


def goes_with(param: torch.dtype, other: torch.dtype) -> bool:
    """Whether a gradient or a moment of this dtype may go with such a parameter."""
    return other == param or (param in NARROW and other == torch.float32)


@dataclass(frozen=True, slots=True)
class Format:
    """How the moments of a parameter are kept.

    Attributes:
        dtype: of the moments.
    """

    dtype: torch.dtype

    @classmethod
    def of(cls, param: Tensor, state_dtype: torch.dtype | None) -> Format:
        """The parameter's own dtype, or float32 where that is asked for and wider."""
        wide = state_dtype is not None and goes_with(param.dtype, state_dtype)
        return cls(state_dtype if wide and state_dtype is not None else param.dtype)

    def zeros(self, param: Tensor) -> dict[str, Tensor]:
        """The moments of a parameter that has not been stepped yet."""
        return {
            name: torch.zeros_like(param, dtype=self.dtype, memory_format=torch.preserve_format)
            for name in MOMENTS
        }

    def restore(self, state: dict[str, Any], loaded: Mapping[str, Any], param: Tensor) -> None:
        """Put back the loaded moments that torch has cast to the parameter's dtype."""
        for name in (*MOMENTS, MAX_EXP_AVG_SQ):
            if name in state and state[name].dtype != self.dtype:
                state[name] = loaded[name].to(param.device, self.dtype)


# ---- making it --------------------------------------------------------------------------------


def new_state(param: Tensor, group: Mapping[str, Any]) -> dict[str, Tensor]:
    """The state of a parameter before its first step, in torch's order."""
    return {"step": new_step(param, group)} | Format.of(param, group["state_dtype"]).zeros(param)


def new_step(param: Tensor, group: Mapping[str, Any], value: float = 0.0) -> Tensor:
    """A count of steps: on the host, where reading it is free, unless a kernel is to read it."""
    on_device = group["capturable"] or group["fused"]
    return torch.tensor(
        value,
        dtype=_get_scalar_dtype(is_fused=group["fused"]),
        device=param.device if on_device else "cpu",
    )


def max_exp_avg_sq(state: dict[str, Tensor]) -> Tensor:
    """The running maximum; made late, for amsgrad may be switched on in the middle of a run."""
    if MAX_EXP_AVG_SQ not in state:
        state[MAX_EXP_AVG_SQ] = torch.zeros_like(state["exp_avg_sq"])
    return state[MAX_EXP_AVG_SQ]


# ---- loading it -------------------------------------------------------------------------------


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
    # torch reports groups of another number or length itself
    pairs = list(zip(optimizer.param_groups, saved_groups, strict=False))
    for group, saved in pairs:
        for param, index in zip(group["params"], saved["params"], strict=False):
            _check_loaded(param, loaded["state"].get(index), index)
    ours = [
        {name: group[name] for name in optimizer.defaults}
        | saved
        | {name: group[name] for name in IMPLEMENTATION}
        for group, saved in pairs
    ]
    for group in ours:
        check_group(group)
    return {**loaded, "param_groups": ours + list(saved_groups[len(pairs) :])}


def restore(optimizer: Optimizer, loaded: dict[str, Any]) -> None:
    """Put the loaded state where, and in the format that, the optimizer keeps it.

    :meth:`torch.optim.Optimizer.load_state_dict` has cast the moments to the parameters' dtype,
    which takes 16 bits from those kept in float32.
    """
    for group, saved in zip(optimizer.param_groups, loaded["param_groups"], strict=True):
        for param, index in zip(group["params"], saved["params"], strict=True):
            state = optimizer.state.get(param)
            if not state:
                continue
            Format.of(param, group["state_dtype"]).restore(state, loaded["state"][index], param)
            step_t = state.get("step")
            if isinstance(step_t, Tensor) and not (group["capturable"] or group["fused"]):
                state["step"] = step_t.cpu()


def _check_loaded(param: Tensor, state: Mapping[str, Any] | None, index: object) -> None:
    if not state:
        return
    for name in ("step", *MOMENTS):
        if not isinstance(state, Mapping) or name not in state:
            raise ValueError(
                f"the loaded state of parameter {index} has no {name!r}, expected step, exp_avg"
                " and exp_avg_sq; was it saved by another kind of optimizer?"
            )
    for name in (*MOMENTS, MAX_EXP_AVG_SQ):
        moment = state.get(name, param)
        what = f"the loaded {name} of parameter {index}"
        if not isinstance(moment, Tensor) or moment.layout is not torch.strided:
            found = str(moment.layout) if isinstance(moment, Tensor) else type(moment).__name__
            raise ValueError(f"{what} is {found}, expected a dense tensor; nothing was loaded.")
        if moment.shape != param.shape:
            raise ValueError(
                f"{what} has shape {tuple(moment.shape)}, expected {tuple(param.shape)};"
                " nothing was loaded."
            )
        if moment.is_complex() != param.is_complex():
            raise ValueError(
                f"{what} has dtype {moment.dtype} and the parameter {param.dtype};"
                " nothing was loaded."
            )
    step = state["step"]
    single = isinstance(step, (int, float)) or (isinstance(step, Tensor) and step.numel() == 1)
    on_device = isinstance(step, Tensor) and not step.is_cpu
    if not single or not (on_device or step >= 0):
        raise ValueError(
            f"the loaded step of parameter {index} is {step}, expected a count of steps, ≥ 0;"
            " nothing was loaded."
        )
