"""The state of a parameter: its names, its formats, how it is made and undone.

The names are those of torch.optim.Adam. Moments in codes have names of their own: torch would cast
codes to floats, and train on them.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from itertools import compress
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import _get_scalar_dtype

from . import dtensor, rounding_ops
from .allocated import check_allocated
from .options import EIGHT_BITS, SMALL, check_small_state
from .rounding_ops import BLOCK

MOMENTS = ("exp_avg", "exp_avg_sq")
MAX_EXP_AVG_SQ = "max_exp_avg_sq"  # with amsgrad alone
CODES = ("exp_avg_code", "exp_avg_sq_code")  # in the place of the moments, in 8 bits
EXPONENTS = ("exp_avg_exponent", "exp_avg_sq_exponent")  # of their blocks
# What tells a parameter's random bits from another's, where there are some: its place among all
# parameters of the optimizer when this was asked for first.
NUMBER = "number"
FORMATS = (*MOMENTS, MAX_EXP_AVG_SQ, *CODES, *EXPONENTS)  # what depends on the format

# Tensors with fewer elements, or with one dimension, are not worth codes, and suffer most by them.
CODED_NUMEL = 4096

NARROW = (torch.bfloat16, torch.float16)
DTYPES = (torch.float32, torch.float64, *NARROW, torch.complex64, torch.complex128)
_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)  # that torch adds to


def goes_with(param: torch.dtype, other: torch.dtype) -> bool:
    """Whether a gradient or a moment of this dtype may go with such a parameter."""
    return other == param or (param in NARROW and other == torch.float32)


def takes_small_state(dtype: torch.dtype) -> bool:
    """Whether moments of such a parameter may be kept in bfloat16 or 8 bits."""
    return dtype == torch.float32 or dtype in NARROW


@dataclass(frozen=True, slots=True)
class Format:
    """How the moments of a parameter are kept.

    Attributes:
        dtype: of the moments; uint8 is that of codes.
    """

    dtype: torch.dtype

    @classmethod
    def of(cls, param: Tensor, state_dtype: torch.dtype | str | None) -> Format:
        """What a parameter takes where ``state_dtype`` is asked for, the same on every rank.

        Its own dtype, unless it is wider than that; and of 8 bits what is large enough for them.

        Raises:
            ValueError: 8 bits for a parameter in float64 or a complex dtype.
        """
        if state_dtype == EIGHT_BITS:
            check_takes_codes(param)
            if param.numel() < CODED_NUMEL or param.ndim < 2:
                return cls(torch.float32)
            fits = _lies_in_order(param) and dtensor.has_whole_blocks(param)
            return cls(torch.uint8 if fits else torch.bfloat16)
        small = state_dtype == torch.bfloat16 and takes_small_state(param.dtype)
        wide = isinstance(state_dtype, torch.dtype) and goes_with(param.dtype, state_dtype)
        return cls(state_dtype if small or wide else param.dtype)  # type: ignore[arg-type]

    @property
    def coded(self) -> bool:
        """Whether the moments are codes."""
        return self.dtype == torch.uint8

    def zeros(self, param: Tensor) -> Tensor:
        """A moment of a parameter that has not been stepped yet."""
        return torch.zeros_like(param, dtype=self.dtype, memory_format=torch.preserve_format)


def check_format(group: Mapping[str, Any]) -> None:
    """Hold the parameters of a new group to its ``state_dtype``, and tell which do not fit it.

    Raises:
        ValueError: 8 bits for a parameter in float64 or a complex dtype.
    """
    if group["state_dtype"] != EIGHT_BITS:
        return
    formats = [Format.of(param, EIGHT_BITS) for param in group["params"]]
    wide = [i for i, found in enumerate(formats) if found.dtype == torch.bfloat16]
    if wide and not torch.compiler.is_compiling():
        first = group["params"][wide[0]]
        why = "not in the order of its dimensions in memory, which no file of codes would tell"
        if _lies_in_order(first):
            why = f"placed as {first.placements}, where ranks would have parts of blocks of {BLOCK}"
        warnings.warn(
            f"state_dtype={EIGHT_BITS!r} is torch.bfloat16 for {len(wide)} of {len(formats)}"
            f" parameters, such as {wide[0]} of shape {tuple(first.shape)}, {why}.",
            stacklevel=2,
        )


def _lies_in_order(param: Tensor) -> bool:
    """Whether blocks of a moment's memory are blocks in the order of the dimensions.

    Only then do codes and exponents go together in every file: torch.distributed.checkpoint, for
    one, copies codes into the strides of whoever loads them, and exponents as they are.
    """
    if param.layout is not torch.strided or param.is_nested:
        return False
    if dtensor.is_dtensor(param):
        return param.is_contiguous()
    made = torch.empty_like(param, dtype=torch.uint8, device="meta")  # takes over no gaps
    return made.is_contiguous()


def check_takes_codes(param: Tensor) -> None:
    """Raise ValueError for a parameter whose moments cannot be kept in 8 bits."""
    if not takes_small_state(param.dtype):
        raise ValueError(
            f"state_dtype={EIGHT_BITS!r} takes parameters in float32, bfloat16 and float16, got one"
            f" in {param.dtype}; put it into a group with state_dtype=None."
        )


def new_state(param: Tensor, group: Mapping[str, Any]) -> dict[str, Any]:
    """The state of a parameter before its first step, in torch's order."""
    kept = Format.of(param, group["state_dtype"])
    step_t = new_step(param, group)
    if kept.coded:
        codes = {name: kept.zeros(param) for name in CODES}
        exponents = {name: dtensor.zero_exponents(param) for name in EXPONENTS}
        return {"step": step_t, **codes, **exponents}
    names = (*MOMENTS, MAX_EXP_AVG_SQ) if group["amsgrad"] else MOMENTS
    return {"step": step_t, **{name: kept.zeros(param) for name in names}}


def rounds_by_chance(group: Mapping[str, Any]) -> bool:
    """Whether anything of a group is rounded so, and needs a number."""
    return group["state_dtype"] in SMALL or bool(group["stochastic_rounding"])


def decoded(codes: Tensor, exponents: Tensor, name: str) -> Tensor:
    """A moment in float32 from its codes, placed as they are.

    Args:
        codes: uint8, of the parameter's shape; a DTensor where that is one.
        exponents: uint8, a byte for each 256 elements; likewise.
        name: the moment's, one of :data:`MOMENTS`.
    """
    moment = rounding_ops.FIRST if name == MOMENTS[0] else rounding_ops.SECOND
    local, local_exponents = dtensor.shard(codes), dtensor.shard(exponents)
    for tensor in (local, local_exponents):
        check_allocated(tensor, f"the codes of an {name}")
    in_memory = rounding_ops.InMemory(local)
    flat = rounding_ops.decode(moment, in_memory.flat(local), local_exponents)
    return dtensor.like(in_memory.shaped(flat, local), codes)


def encoded(values: Tensor, name: str, like: Tensor, exponents: Tensor) -> tuple[Tensor, Tensor]:
    """Codes, to the nearest, of a moment in floats; placed as ``like`` and ``exponents`` are."""
    moment = rounding_ops.FIRST if name == MOMENTS[0] else rounding_ops.SECOND
    local = dtensor.shard(like)
    in_memory = rounding_ops.InMemory(local)
    flat = in_memory.flat(dtensor.shard(values).to(torch.float32))
    codes, its_exponents = rounding_ops.encode(moment, flat)
    shaped = in_memory.shaped(codes, local)
    return dtensor.like(shaped, like), dtensor.like(its_exponents, exponents)


def moment(state: Mapping[str, Any], name: str) -> Tensor:
    """A moment of a parameter's state, by torch's name: as it is kept, or decoded to float32."""
    if name in state:
        return state[name]  # type: ignore[no-any-return]
    place = MOMENTS.index(name)
    return decoded(state[CODES[place]], state[EXPONENTS[place]], name)


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
        if CODES[0] in state:
            check_small_state(EIGHT_BITS, amsgrad=True, differentiable=False)
        put(state, MAX_EXP_AVG_SQ, torch.zeros_like(state["exp_avg_sq"]), made)
    return state[MAX_EXP_AVG_SQ]


def moments_of(
    states: Sequence[Mapping[str, Any]],
) -> tuple[list[Any], list[Any], list[Any], list[Any]]:
    """First and second moments, or codes in their place, and of the codes the exponents."""
    try:
        return [own["exp_avg"] for own in states], [own["exp_avg_sq"] for own in states], [], []
    except KeyError:
        pass
    coded = [CODES[0] in own and not own.keys() >= set(MOMENTS) for own in states]
    names = [CODES if is_coded else MOMENTS for is_coded in coded]
    exp_avgs, exp_avg_sqs = (
        [own[name[k]] for own, name in zip(states, names, strict=True)] for k in range(2)
    )
    with_codes = list(compress(states, coded))
    exponents, sq_exponents = ([own[name] for own in with_codes] for name in EXPONENTS)
    return exp_avgs, exp_avg_sqs, exponents, sq_exponents


class Numbers:
    """Gives parameters their numbers.

    Args:
        groups: all of the optimizer.
    """

    def __init__(self, groups: Iterable[Mapping[str, Any]]) -> None:
        self._groups = groups

    @cached_property
    def _places(self) -> dict[Tensor, int]:
        params = (param for group in self._groups for param in group["params"])
        return {param: i for i, param in enumerate(params)}

    def of(self, param: Tensor, state: dict[str, Any], made: Made | None) -> int:
        """A parameter's number, which from now on is in its state."""
        if NUMBER not in state:
            put(state, NUMBER, self._places[param], made)
        return check_number(state[NUMBER], f"the {NUMBER} in a parameter's state")


def check_number(number: Any, what: str) -> int:
    """The same number, or ValueError where nothing can be drawn with it."""
    if type(number) is not int or not 0 <= number < 1 << 31:
        raise ValueError(f"{what} is {number!r}, expected a place among the parameters")
    return number


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
