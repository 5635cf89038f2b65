"""The state of a parameter: its names, its formats, how it is made and undone.

The names are those of torch.optim.Adam. A state that is kept otherwise, in a dtype of its own,
with exponents for each block beside the moments, or with a seed, is one more :class:`Format`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import _get_scalar_dtype

MOMENTS = ("exp_avg", "exp_avg_sq")
MAX_EXP_AVG_SQ = "max_exp_avg_sq"  # with amsgrad alone

NARROW = (torch.bfloat16, torch.float16)
DTYPES = (torch.float32, torch.float64, *NARROW, torch.complex64, torch.complex128)
_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)  # that torch adds to


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


def as_step(param: Tensor, group: Mapping[str, Any], step: Any) -> Tensor:
    """A count that came from elsewhere, as torch makes it of a number; of an integer tensor too."""
    if isinstance(step, Tensor) and step.dtype not in _INTEGERS:
        return step
    return new_step(param, group, float(step))


def max_exp_avg_sq(state: dict[str, Tensor]) -> Tensor:
    """The running maximum; made late, for amsgrad may be switched on in the middle of a run."""
    if MAX_EXP_AVG_SQ not in state:
        state[MAX_EXP_AVG_SQ] = torch.zeros_like(state["exp_avg_sq"])
    return state[MAX_EXP_AVG_SQ]
