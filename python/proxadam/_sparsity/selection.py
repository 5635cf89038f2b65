"""The k-th smallest of many integers, on their devices and over shards, without sorting them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .reading import Sharding, reduce_shards

_DIGIT = 11  # bits looked at together: counts of so many values are what shards exchange

# Integers of the local parts of tensors that are spread alike, ≥ 0, and which of them count.
Part = tuple[Sharding, Tensor, Tensor]


def kth_smallest(parts: Sequence[Part], k: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Find the k-th smallest integer, digit by digit from the highest; asks no device.

    Each round counts how often each value of a digit occurs among the integers that agree in the
    digits before it, over all shards: a collective for each sharding.

    Args:
        parts: flat int64 integers below 2 ** ``bits``, and booleans of the same shape; together
            at least one counts.
        k: which one, from 1; an int64 tensor of shape (). Beyond the last it is the last one.
        bits: of the largest integer.

    Returns:
        The integer, and which one it is among those that equal it, from 1; as ``k``.
    """
    found = torch.zeros_like(k)
    for shift in reversed(range(0, bits, _DIGIT)):
        by_sharding: dict[Sharding, Tensor] = {}
        for sharding, integers, counts in parts:
            above, device = integers >> shift, integers.device
            alike = counts & (above >> _DIGIT == found.to(device))
            digits = above & (1 << _DIGIT) - 1
            seen = torch.zeros(1 << _DIGIT, dtype=torch.int64, device=device)
            seen.scatter_add_(0, digits, alike.long())
            before = by_sharding.get(sharding)
            by_sharding[sharding] = seen if before is None else before + seen.to(before.device)
        every = [reduce_shards(seen, sharding) for sharding, seen in by_sharding.items()]
        seen = sum(part.to(k.device) for part in every[1:]) + every[0].to(k.device)
        until = seen.cumsum(0)
        k = torch.minimum(k, until[-1])
        digit = torch.searchsorted(until, k)
        k = k - until[digit] + seen[digit]
        found = found << _DIGIT | digit
    return found, k
