"""Rounding by chance and codes of 8 bits on torch ops: csrc/rounding.h and csrc/codes.h on tensors.

Both give the same bits from the same numbers. What is a 32-bit integer there is an int64 here.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

BLOCK = 256  # elements that share an exponent
TO_NEAREST = 0x8000  # of 16 bits of chance

_MASK = 0xFFFFFFFF
_GOLDEN = 0x9E3779B9
_PARAM_DRAWS = 0x85EBCA6B
_INFINITY = 0x7F800000

_Word = Any  # an int, or an int64 tensor


class Moment(NamedTuple):
    """How one of the two moments is coded: its largest code, and the least exponent of a block."""

    top: int
    lowest: int


FIRST = Moment(top=0x7F, lowest=15)  # and a sign
SECOND = Moment(top=0xFF, lowest=31)


def _times(x: _Word, factor: int) -> _Word:
    # Less than 2^63, as a product with a factor of 32 bits without a sign would not be.
    return (x * (factor - (1 << 32) if factor >> 31 else factor)) & _MASK


def hash32(x: _Word) -> _Word:
    """Hash a word of 32 bits."""
    x = _times(x ^ (x >> 16), 0x7FEB352D)
    x = _times(x ^ (x >> 15), 0x846CA68B)
    return x ^ (x >> 16)


def _mix(key: _Word, word: _Word) -> _Word:
    return hash32(((key ^ word) + _GOLDEN) & _MASK)


def tensor_key(seed: int, number: int) -> int:
    """The part of a key that does not depend on the step."""
    key = 0
    for word in (seed & _MASK, seed >> 32, number & _MASK, number >> 32):
        key = _mix(key, word)
    return key


class Draws:
    """What the elements of a stretch of a tensor draw at one step, 32 bits each.

    Args:
        tensor_key: of the tensor.
        step: its number, counted from 1; an int, or a one-element tensor.
        offset: index of the first element in the tensor.
        numel: how many elements.
        device: where they are.
    """

    def __init__(
        self, tensor_key: int, step: int | Tensor, offset: int, numel: int, device: torch.device
    ) -> None:
        if isinstance(step, Tensor):
            step = step.to(device, torch.int64).squeeze() & _MASK
        index = torch.arange(offset, offset + numel, device=device)
        last = offset + max(numel, 1) - 1
        upper = offset >> 32 if offset >> 32 == last >> 32 else index >> 32
        self._key = _mix(_mix(tensor_key, step), upper)
        self._scattered = _times(index & _MASK, _GOLDEN)

    def of_state(self) -> Tensor:
        """The draws of the moments: the lower half is the first one's, the upper the second's."""
        drawn: Tensor = hash32((self._scattered + self._key) & _MASK)
        return drawn

    def of_param(self) -> Tensor:
        """The draws of the parameter."""
        drawn: Tensor = hash32((self._scattered + self._key + _PARAM_DRAWS) & _MASK)
        return drawn


def to_16_bits(values: Tensor, dtype: torch.dtype, draws: Tensor) -> Tensor:
    """Round float32 to bfloat16 or float16 by chance, given 32 random bits for each element."""
    bits = values.view(torch.int32)
    if dtype == torch.bfloat16:
        raised = bits + (draws & 0xFFFF).to(torch.int32)
        raised = torch.where(values.isnan(), bits | 0x400000, raised)
        return (raised >> 16).to(torch.int16).view(torch.bfloat16)
    magnitude = bits & 0x7FFFFFFF
    small = magnitude < 113 << 23  # below 2^-14, in units of 2^-24
    units = torch.where(small, values.abs(), 0.0) * 2.0**24
    whole = units.floor()
    up = units - whole > (draws >> 8).to(torch.float32) * 2.0**-24
    normal = (magnitude - (112 << 23) + (draws & 0x1FFF).to(torch.int32)) >> 13
    found = torch.where(small, whole.to(torch.int32) + up, normal.clamp_max(0x7BFF))
    found = found.masked_fill(magnitude >= 143 << 23, 0x7C00)
    found = found.masked_fill(values.isnan(), 0x7E00).to(torch.int16)
    return torch.where(bits < 0, found | -0x8000, found).view(torch.float16)


def decode(moment: Moment, codes: Tensor, exponents: Tensor) -> Tensor:
    """The numbers in float32, exactly, that codes in flat order stand for.

    Args:
        moment: which one it is.
        codes: uint8, of shape (numel,).
        exponents: uint8, of shape (ceil(numel / 256),).
    """
    base = 8 * (exponents.to(torch.int32) - (moment.lowest - 1))
    base = base.repeat_interleave(BLOCK)[: codes.numel()]
    magnitude = codes.to(torch.int32) & moment.top
    values = ((magnitude + base) << 20).view(torch.float32)
    values = torch.where(codes > moment.top, -values, values)
    return torch.where(magnitude == 0, 0.0, values)


def encode(
    moment: Moment, values: Tensor, chances: Tensor | int = TO_NEAREST
) -> tuple[Tensor, Tensor]:
    """Codes and exponents of numbers in flat order.

    Args:
        moment: which one it is.
        values: float32, of shape (numel,).
        chances: 16 random bits for each, or the half to round to the nearest.

    Returns:
        As :func:`decode` takes them.
    """
    numel = values.numel()
    bits = values.view(torch.int32)
    magnitude = bits & 0x7FFFFFFF
    finite = torch.where(magnitude < _INFINITY, magnitude, 0)
    blocks = torch.nn.functional.pad(finite, (0, -numel % BLOCK)).view(-1, BLOCK)
    exponents = (blocks.amax(1) >> 23).clamp(moment.lowest, 253)
    base = (8 * (exponents - (moment.lowest - 1))).repeat_interleave(BLOCK)[:numel]
    rounded = ((magnitude.to(torch.int64) + (chances << 4)) >> 20) - base
    if moment is FIRST:
        codes = rounded.clamp(0, moment.top)
        negative = (bits < 0) & (codes != 0) & (magnitude <= _INFINITY)  # a NaN has no sign
        codes = torch.where(negative, codes | 0x80, codes)
    else:
        codes = torch.where(magnitude != 0, rounded.clamp(1, moment.top), 0)
    return codes.to(torch.uint8), exponents.to(torch.uint8)


class InMemory:
    """A dense tensor's elements in the order in which they lie, as codes are numbered."""

    def __init__(self, like: Tensor) -> None:
        dims = range(like.ndim)
        self._order = sorted(dims, key=lambda d: (like.stride(d), like.shape[d]), reverse=True)
        self._plain = self._order == list(dims)

    def flat(self, tensor: Tensor) -> Tensor:
        """The elements, in one dimension; a view where the tensor lies as ``like`` does."""
        return (tensor if self._plain else tensor.permute(self._order)).reshape(-1)

    def shaped(self, flat: Tensor, like: Tensor) -> Tensor:
        """A view of flat elements in the shape of ``like``."""
        if self._plain:
            return flat.view(like.shape)
        inverse = [self._order.index(d) for d in range(like.ndim)]
        return flat.view([like.shape[d] for d in self._order]).permute(inverse)
