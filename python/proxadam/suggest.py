"""A first guess for l1, from the gradients that a running optimizer has seen."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ._state import Sharding, corrected, has_stepped, over_shards, sharding_of

__all__ = ["suggest_l1"]

_HALF = 16  # bits; a float32 that is not negative sorts as its 31 bits do


@torch.no_grad()
def suggest_l1(
    optimizer: Optimizer, sparsity: float = 0.9, *, groups: Iterable[int] | None = None
) -> float:
    """Guess the l1 that makes a share of the weights zero: a quantile of the gradients.

    A weight rests at zero exactly while |m̂| ≤ l1 (adaptive metric), or |m̂| / (√v̂ + eps) ≤ l1
    (euclidean), with m̂ the bias-corrected first moment. The guess is the smallest l1 for which
    this holds for the wanted share of the weights as they are now: it would be the answer if
    the gradients stayed what they are. They do not: ask once the loss has fallen from its first
    heights, begin with the guess, and let :class:`proxadam.TargetSparsityL1` do the rest.

    Args:
        optimizer: of this package, or torch's Adam or AdamW; its moments are read, nothing is
            changed.
        sparsity: the wanted share of exact zeros, above 0 and below 1. (default: 0.9)
        groups: indices of the parameter groups to look at. None takes those whose l1 is not 0,
            or all if there is none. (default: None)

    Returns:
        The guess, exact in float32 whatever the number of weights (the selection goes by bits,
        nothing is sorted or sampled). Over DTensors it is that of the whole tensors, and the call
        is collective. 0 if that many gradients are zero already.

    Raises:
        ValueError: ``sparsity`` out of range; no group with moments, or groups of different
            metrics; gradients that are not finite where the guess would lie.
        IndexError: no such group.
    """
    if not 0 < sparsity < 1:
        raise ValueError(f"Invalid sparsity: {sparsity}, expected above 0 and below 1")
    chosen = _groups(optimizer, groups)
    count = sum(
        p.numel() for g in chosen for p in g["params"] if has_stepped(optimizer.state.get(p, {}))
    )
    if not count:
        raise ValueError(
            "expected an optimizer that has taken some steps, got one without moments in the"
            " groups asked for; call suggest_l1 later."
        )
    rank = math.ceil(sparsity * count)
    high, before = _select(_histogram(optimizer, chosen, None), rank)
    low, _ = _select(_histogram(optimizer, chosen, high), rank - before)
    bits = torch.tensor(high << _HALF | low, dtype=torch.int32)
    guess: float = bits.view(torch.float32).item()
    if not math.isfinite(guess):
        raise ValueError(
            f"more than {1 - sparsity:.3g} of the first moments are inf or NaN; the training has"
            " diverged, or the step was taken on overflown gradients."
        )
    return guess


def _groups(optimizer: Optimizer, indices: Iterable[int] | None) -> list[dict[str, Any]]:
    every = optimizer.param_groups
    if indices is not None:
        chosen = [every[i] for i in indices]
    else:
        chosen = [group for group in every if float(group.get("l1", 0.0)) != 0] or every
    if len({group.get("metric", "adaptive") for group in chosen}) > 1:
        raise ValueError(
            "expected groups of one metric, got adaptive and euclidean ones, whose l1 differ in"
            " units; ask for each with groups=[i]."
        )
    return chosen


def _thresholds(
    optimizer: Optimizer, groups: list[dict[str, Any]]
) -> Iterator[tuple[Sharding, Tensor]]:
    """For each weight, in chunks, the smallest l1 that lets it rest at zero; float32, flat."""
    for group in groups:
        for param in group["params"]:
            state = optimizer.state.get(param, {})
            if not has_stepped(state):
                continue
            for m, d in corrected(group, state):
                ratio = m / d if group.get("metric") == "euclidean" else m
                yield sharding_of(param), ratio.abs().float()


def _histogram(optimizer: Optimizer, groups: list[dict[str, Any]], high: int | None) -> Tensor:
    """Count the thresholds by their upper bits, or those with upper bits ``high`` by the lower.

    Returns:
        Counts over the whole of all tensors, int64 of shape (65536,), on the host.
    """
    counts: dict[tuple[Sharding, torch.device], Tensor] = {}
    for sharding, values in _thresholds(optimizer, groups):
        bits = values.view(torch.int32)
        keys = bits >> _HALF
        if high is not None:
            keys = bits[keys == high] & ((1 << _HALF) - 1)
        found = keys.bincount(minlength=1 << _HALF)
        place = (sharding, values.device)
        counts[place] = counts[place] + found if place in counts else found
    whole = torch.zeros(1 << _HALF, dtype=torch.int64)
    for (sharding, _), found in counts.items():
        whole += over_shards(found, sharding).cpu()
    return whole


def _select(counts: Tensor, rank: int) -> tuple[int, int]:
    """The bin that holds the element of this rank, from 1, and how many lie before it."""
    cumulative = counts.cumsum(0)
    found = int(torch.searchsorted(cumulative, rank))
    return found, int(cumulative[found] - counts[found])
