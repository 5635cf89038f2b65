"""Which k of many numbers are the smallest, exactly, on their devices and over shards."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..reading import Sharding, reduce_shards

_DIGIT = 11  # bits looked at together: counts of so many values are what shards exchange


def kth_smallest(
    values: Sequence[Tensor], shardings: Sequence[Sharding], k: int | Tensor
) -> tuple[Tensor, Tensor]:
    """Find the k-th smallest number; asks no device. Collective for what is sharded.

    Args:
        values: flat tensors of one dtype, floating point and ≥ 0, or NaN, which comes last.
        shardings: how the tensors are spread that each of them is of.
        k: which one, from 1 to their number; if any is sharded, an int64 tensor of shape ().

    Returns:
        The number, and which one it is among those that equal it, from 1.
    """
    if not isinstance(k, Tensor):
        every = torch.cat([value.to(values[0].device) for value in values])
        border = every.kthvalue(k).values
        return border, k - (every < border).sum()
    bits = 63 if values[0].dtype == torch.float64 else 31
    every_bits = [_bits_of(value) for value in values]
    counts = [torch.ones_like(bits_of, dtype=torch.bool) for bits_of in every_bits]
    parts = _joined(shardings, every_bits, counts)
    border, nth = _kth_integer(parts, k, bits)
    return border.to(_integer(values[0])).view(values[0].dtype), nth


def lowest(
    values: Sequence[Tensor],
    shardings: Sequence[Sharding],
    numbers: Callable[[], Sequence[Tensor]],
    k: int,
) -> list[Tensor]:
    """Tell which k of the values are the smallest; of equal ones those with the lower numbers.

    Args:
        values: as for :func:`kth_smallest`.
        shardings: likewise.
        numbers: gives distinct int64 numbers ≥ 0 for all values, if any is sharded; where none is,
            they are numbered as they come.
        k: from 1 to the count of the values.

    Returns:
        Booleans of the shapes of the values.
    """
    home = values[0].device
    is_sharded = any(sharding is not None for sharding in shardings)
    among = torch.tensor(k, device=home) if is_sharded else k
    border, nth = kth_smallest(values, shardings, among)
    below = [value < border.to(value.device) for value in values]
    ties = [value == border.to(value.device) for value in values]
    if is_sharded:
        numbered = numbers()
        last, _ = _kth_integer(_joined(shardings, numbered, ties), nth, 63)
        firsts = [number <= last.to(number.device) for number in numbered]
    else:
        counted = torch.cat([tied.to(home) for tied in ties]).cumsum(0, dtype=torch.int32) <= nth
        parts = counted.split([*map(len, values)])
        firsts = [part.to(value.device) for part, value in zip(parts, values, strict=True)]
    return [under | tied & first for under, tied, first in zip(below, ties, firsts, strict=True)]


# Integers of the local parts of tensors that are spread alike, ≥ 0, and which of them count.
_Part = tuple[Sharding, Tensor, Tensor]


def _kth_integer(parts: Sequence[_Part], k: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """As :func:`kth_smallest` of integers with so many bits, digit by digit from the highest.

    Each round counts how often each value of a digit occurs among the integers that agree in the
    digits before it, over all shards: a collective for each sharding.
    """
    found = torch.zeros_like(k)
    for shift in reversed(range(0, bits, _DIGIT)):
        every = []
        for sharding, integers, counts in parts:
            above, device = integers >> shift, integers.device
            alike = counts & (above >> _DIGIT == found.to(device))
            seen = torch.zeros(1 << _DIGIT, dtype=torch.int64, device=device)
            seen.scatter_add_(0, above & (1 << _DIGIT) - 1, alike.long())
            every.append(reduce_shards(seen, sharding).to(k.device))
        seen = torch.stack(every).sum(0)
        until = seen.cumsum(0)
        k = torch.minimum(k, until[-1])
        digit = torch.searchsorted(until, k)
        k = k - until[digit] + seen[digit]
        found = found << _DIGIT | digit
    return found, k


def _joined(
    shardings: Sequence[Sharding], integers: Sequence[Tensor], counts: Sequence[Tensor]
) -> list[_Part]:
    """One part for the tensors that are spread alike over the same device."""
    alike: dict[tuple[Sharding, torch.device], list[int]] = {}
    for i, (sharding, tensor) in enumerate(zip(shardings, integers, strict=True)):
        alike.setdefault((sharding, tensor.device), []).append(i)
    return [
        (key[0], torch.cat([integers[i] for i in own]), torch.cat([counts[i] for i in own]))
        for key, own in alike.items()
    ]


def _integer(value: Tensor) -> torch.dtype:
    return torch.int64 if value.dtype == torch.float64 else torch.int32


def _bits_of(value: Tensor) -> Tensor:
    return value.abs().view(_integer(value)).long()  # the sign of a NaN says nothing
