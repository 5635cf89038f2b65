"""The state of a parameter: its names, its formats, how it is made and undone.

The names are those of torch.optim.Adam. A state that is kept otherwise, in a dtype of its own,
with exponents for each block beside the moments, or with a seed, is one more :class:`Format`.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
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

    def zeros(self, param: Tensor) -> Tensor:
        """A moment of a parameter that has not been stepped yet."""
        return torch.zeros_like(param, dtype=self.dtype, memory_format=torch.preserve_format)


def new_state(param: Tensor, group: Mapping[str, Any]) -> dict[str, Tensor]:
    """The state of a parameter before its first step, in torch's order."""
    kept = Format.of(param, group["state_dtype"])
    names = (*MOMENTS, MAX_EXP_AVG_SQ) if group["amsgrad"] else MOMENTS
    return {"step": new_step(param, group), **{name: kept.zeros(param) for name in names}}


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


def max_exp_avg_sq(state: dict[str, Tensor], made: Made | None) -> Tensor:
    """The running maximum; made late where amsgrad is switched on in the middle of a run."""
    if MAX_EXP_AVG_SQ not in state:
        put(state, MAX_EXP_AVG_SQ, torch.zeros_like(state["exp_avg_sq"]), made)
    return state[MAX_EXP_AVG_SQ]


class Made(list[tuple[Any, Any]]):
    """What a step has put into the state, as (mapping, key); a step that raises takes it out."""

    def __enter__(self) -> Made:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        for mapping, key in self if kind is not None else ():
            step_t = mapping.get(key, {}).get("step") if isinstance(key, Tensor) else None
            # A count above 0 says that the exception came behind the step.
            if type(step_t) is not Tensor or not step_t.is_cpu or step_t == 0:
                mapping.pop(key, None)


def made_or_undone() -> AbstractContextManager[Made | None]:
    """What :func:`put` is to be told, for a ``with``; while torch.compile traces, nothing."""
    return nullcontext() if torch.compiler.is_compiling() else Made()


def put(mapping: Any, key: Any, value: Any, made: Made | None) -> None:
    """Put what is complete into the state, and note it first."""
    if made is not None:
        made.append((mapping, key))
    mapping[key] = value
