"""A first guess for l1, from the gradients that a running optimizer has seen."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from .reading import (
    Pieces,
    Sharding,
    chunks,
    corrected_moments,
    gather_shards,
    has_stepped,
    local_part,
    pieces_at,
    sample,
    shard_index,
    sharding_of,
)

__all__ = ["suggest_l1"]

# Numbers ≥ 0 from the local parts of parameters that are spread alike, on one device.
Found = dict[tuple[Sharding, torch.device], list[Tensor]]

# Of up to so many weights all are looked at; of more, so many at most and about half at least.
_MOST = 1 << 21


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
        The guess; 0 if that many gradients are zero already. It is exact in float32 for up to 2²¹
        weights. Of more, n are sampled, about 2²⁰ or more, and the share for which it holds misses
        ``sparsity`` by a standard error of √(sparsity · (1 − sparsity) / n), below 0.0005. The
        sample depends on the number, the order and the sharding of the parameters alone, and
        leaves torch's random numbers as they are. Over DTensors it is the guess for the whole
        tensors, the same in all processes, which must call this together.

    Raises:
        ValueError: ``sparsity`` out of range; no group with moments, or groups of different
            metrics; gradients that are not finite where the guess would lie.
        IndexError: no such group.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(4))
        >>> optimizer = ProxAdamW([weight])
        >>> weight.grad = torch.tensor([1.0, 2.0, 3.0, 4.0])
        >>> optimizer.step()
        >>> round(suggest_l1(optimizer, 0.5), 3)
        2.0
    """
    check_share("sparsity", sparsity)
    stepped = with_moments(optimizer, groups, "l1")
    stride = math.ceil(sum(param.numel() for _, param in stepped) / _MOST)
    found: Found = {}
    for i, (group, param) in enumerate(stepped):
        sharding = sharding_of(param)
        pieces: Pieces = chunks
        if stride > 1:
            seed = shard_index(sharding) << 20 | i
            pieces = pieces_at(sample(local_part(param).numel(), stride, seed))
        for m, d in corrected_moments(group, optimizer.state[param], pieces):
            needed = (m / d if group.get("metric") == "euclidean" else m).abs().float()
            found.setdefault((sharding, needed.device), []).append(needed)
    return quantile(found, sparsity)


def check_share(name: str, value: float) -> None:
    """Raise ValueError for a share that is not between 0 and 1."""
    if not 0 < value < 1:
        raise ValueError(f"Invalid {name}: {value}, expected above 0 and below 1")


def with_moments(
    optimizer: Optimizer,
    groups: Iterable[int] | None,
    option: str,
    size: Callable[[Tensor], int] = Tensor.numel,
) -> list[tuple[dict[str, Any], Tensor]]:
    """The parameters that a guess is to be made from, each with its group.

    Args:
        optimizer: theirs.
        groups: indices; None for the groups whose option is not 0, or all if there is none.
        option: what is guessed.
        size: tells how much there is to look at in a parameter; without any it is left out.

    Raises:
        ValueError: nothing to look at; groups of different metrics.
        IndexError: no such group.
    """
    every = optimizer.param_groups
    if groups is not None:
        chosen = [every[i] for i in groups]
    else:
        chosen = [group for group in every if float(group.get(option, 0.0)) != 0] or every
    if len({group.get("metric", "adaptive") for group in chosen}) > 1:
        raise ValueError(
            f"expected groups of one metric, got adaptive and euclidean ones, whose {option} differ"
            " in units; ask for each with groups=[i]."
        )
    stepped = [
        (group, param)
        for group in chosen
        for param in group["params"]
        if size(param) and has_stepped(optimizer.state.get(param, {}))
    ]
    if not stepped:
        raise ValueError(
            "expected an optimizer that has taken some steps, got one without moments in the"
            f" groups asked for; call suggest_{option} later."
        )
    return stepped


def quantile(found: Found, share: float) -> float:
    """The smallest of the numbers that so large a share of them does not exceed; a collective.

    Raises:
        ValueError: it is not finite.
    """
    values = torch.cat([gather_shards(torch.cat(parts), key[0]) for key, parts in found.items()])
    guess: float = values.kthvalue(math.ceil(share * len(values))).values.item()
    if not math.isfinite(guess):
        raise ValueError(
            f"more than {1 - share:.3g} of the first moments are inf or NaN; the training has"
            " diverged, or the step was taken on overflown gradients."
        )
    return guess
