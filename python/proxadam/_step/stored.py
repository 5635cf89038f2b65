"""The tensors of a step on torch ops: how they are read, and rounded as they are written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .group import EXPONENT_LISTS, Group, RowCut
from .options import Options
from .rounding_ops import (
    FIRST,
    SECOND,
    TO_NEAREST,
    Draws,
    InMemory,
    decode,
    encode,
    tensor_key,
    to_16_bits,
)


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of a parameter: what its first index tells apart.

    Attributes:
        numel: how many elements a row has.
        ranks: process groups that have parts of each row; none where it is here as a whole.
    """

    numel: int
    ranks: tuple[Any, ...] = ()

    @classmethod
    def of(cls, param: Tensor, cut: RowCut | None = None) -> Rows | None:
        """Those of a parameter of two dimensions and more."""
        if cut is not None:
            return cls(cut.numel, cut.ranks)
        return cls(param.numel() // param.shape[0]) if param.ndim > 1 and param.numel() else None

    def by_rows(self, tensor: Tensor) -> Tensor:
        """A tensor of the parameter as it is; a flat stretch of whole rows as their matrix."""
        return tensor if tensor.ndim > 1 else tensor.view(-1, self.numel)

    def add_up(self, sums: Tensor) -> Tensor:
        """Sums over the whole rows from those over their parts here, in place."""
        for ranks in self.ranks if sums.numel() else ():
            torch.distributed.all_reduce(sums, group=ranks)
        return sums


@dataclass(slots=True)
class Entry:
    """A parameter, or a stretch of one, with all that belongs to it."""

    tensors: tuple[Tensor, ...]  # param, grad, exp_avg, exp_avg_sq, with amsgrad its maximum
    exponents: tuple[Tensor, ...]  # of the two moments, where these are codes
    step: Tensor
    number: int
    offset: int
    rows: Rows | None = None  # where l21 takes them as one

    @property
    def numel(self) -> int:
        """How many elements."""
        return self.tensors[0].numel()


def entries_of(group: Group) -> list[Entry]:
    """An entry for each parameter."""
    lists = group.lists()
    exponents = [lists.pop(name) for name in EXPONENT_LISTS if name in lists]
    steps = lists.pop("state_steps")
    zeros = [0] * len(steps)
    rows: list[Rows | None] = [None] * len(steps)
    if group.options.has_rows:
        cuts = group.row_cuts or [None] * len(steps)
        rows = [Rows.of(param, cut) for param, cut in zip(group.params, cuts, strict=True)]
    columns = (
        zip(*lists.values(), strict=True),
        zip(*exponents, strict=True) if exponents else [()] * len(steps),
        steps,
        group.numbers or zeros,
        group.offsets or zeros,
        rows,
    )
    return [Entry(*entry) for entry in zip(*columns, strict=True)]


def decoded(entry: Entry) -> list[Tensor]:
    """The moments of an entry, which are codes, in float32."""
    codes = entry.tensors[2:]
    in_memory = InMemory(codes[0])
    return [
        in_memory.shaped(decode(moment, in_memory.flat(tensor), exponents), tensor)
        for moment, tensor, exponents in zip((FIRST, SECOND), codes, entry.exponents, strict=True)
    ]


class Chance:
    """How the tensors of an entry are rounded as they are written.

    Args:
        options: of its group.
        entry: the tensors.
        step: the number of the step, one element.
    """

    def __init__(self, options: Options, entry: Entry, step: Tensor) -> None:
        param, _, exp_avg = entry.tensors[:3]
        self._entry = entry
        self.rounds_state = options.stochastic_state and exp_avg.dtype in (
            torch.bfloat16,
            torch.uint8,
        )
        self._rounds_param = options.stochastic_params and param.dtype.itemsize == 2
        if self.rounds_state or self._rounds_param or entry.exponents:
            self._in_memory = InMemory(exp_avg)
        if self.rounds_state or self._rounds_param:
            self._draws = _draws(options.seed, entry, step)

    def write_state(self, values: list[Tensor]) -> None:
        """Write moments, given in float32, and the maximum of the second: to the nearest."""
        tensors = self._entry.tensors[2:]
        chances: list[Tensor | int] = [TO_NEAREST, TO_NEAREST]
        if self.rounds_state:
            drawn = self._draws.of_state()
            chances = [drawn & 0xFFFF, drawn >> 16]
        if self._entry.exponents:
            for i, moment in enumerate((FIRST, SECOND)):
                codes, exponents = encode(moment, self._in_memory.flat(values[i]), chances[i])
                tensors[i].copy_(self._in_memory.shaped(codes, tensors[i]))
                self._entry.exponents[i].copy_(exponents)
            return
        for tensor, value, chance in zip(tensors, values, chances, strict=False):
            tensor.copy_(self._rounded(value, tensor.dtype, chance))  # type: ignore[arg-type]
        for tensor, value in zip(tensors[2:], values[2:], strict=True):
            tensor.copy_(value.to(tensor.dtype))

    def param(self, values: Tensor) -> Tensor:
        """The parameter, given in float32, as it is to be kept."""
        dtype = self._entry.tensors[0].dtype
        if not self._rounds_param:
            return values.to(dtype)
        return self._rounded(values, dtype, self._draws.of_param())

    def _rounded(self, values: Tensor, dtype: torch.dtype, draws: Tensor) -> Tensor:
        flat = to_16_bits(self._in_memory.flat(values), dtype, draws)
        return self._in_memory.shaped(flat, values)


def _draws(seed: int, entry: Entry, step: Tensor) -> Draws:
    counted: int | Tensor = step
    if not torch.compiler.is_compiling() and step.is_cpu:
        counted = int(step.item())
    key = tensor_key(seed, entry.number)
    return Draws(key, counted, entry.offset, entry.numel, entry.tensors[0].device)
