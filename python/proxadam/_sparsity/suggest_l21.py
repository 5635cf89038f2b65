"""A first guess for l21, from the gradients that a running optimizer has seen."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..prox import soft_threshold
from .matrix_rows import matrix_rows, row_count, row_pieces, said_once
from .reading import corrected_moments, number_if_on_cpu, sharding_of
from .suggest_l1 import Found, check_share, quantile, with_moments

__all__ = ["suggest_l21"]


@torch.no_grad()
def suggest_l21(
    optimizer: Optimizer, row_sparsity: float = 0.5, *, groups: Iterable[int] | None = None
) -> float:
    """Guess the l21 that makes a share of the rows zero: a quantile of the gradients of rows.

    A row of n weights rests at zero exactly while ‖S(m̂, l1)‖ ≤ l21 · √n (adaptive metric), or
    ‖S(m̂ / (√v̂ + eps), l1)‖ ≤ l21 · √n (euclidean), with m̂ the bias-corrected first moment, S the
    soft threshold and l1 the group's. The guess is the smallest l21 for which this holds for the
    wanted share of the rows as they are now. Weights that ``keep_zeros`` holds at zero take no
    part. Rows shrink only as far as their gradients push less than l21 pulls, so ask once the loss
    has fallen from its first heights, begin with the guess, and let
    :class:`proxadam.TargetRowSparsity` do the rest.

    Args:
        optimizer: of this package, or torch's Adam or AdamW; its moments are read, nothing is
            changed.
        row_sparsity: the wanted share of rows that are zero throughout, above 0 and below 1; of
            all rows of parameters of two dimensions and more. (default: 0.5)
        groups: indices of the parameter groups to look at. None takes those whose l21 is not 0,
            or all if there is none. (default: None)

    Returns:
        The guess, in the units of l1; 0 if that many rows rest already. It is exact in float32.
        Over DTensors it is the guess for the whole tensors, the same in all processes, which must
        call this together.

    Raises:
        ValueError: ``row_sparsity`` out of range; no group with moments of such parameters, or
            groups of different metrics; a complex parameter; gradients that are not finite where
            the guess would lie.
        IndexError: no such group.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(4, 9))
        >>> optimizer = ProxAdamW([weight])
        >>> weight.grad = torch.tensor([1.0, 2.0, 3.0, 4.0]).unsqueeze(1).expand(4, 9).clone()
        >>> optimizer.step()
        >>> round(suggest_l21(optimizer, 0.5), 3)
        2.0
    """
    check_share("row_sparsity", row_sparsity)
    found: Found = {}
    for group, param in with_moments(optimizer, groups, "l21", row_count):
        needed = torch.cat([*_needed(group, param, optimizer.state[param])])
        found.setdefault((sharding_of(param), needed.device), []).append(needed)
    return quantile(found, row_sparsity)


def _needed(group: dict[str, Any], param: Tensor, state: dict[str, Any]) -> Iterator[Tensor]:
    """The l21 at which each row that is known here begins to rest; flat, in pieces."""
    rows = matrix_rows(param)
    if rows is None:  # an empty shard
        yield torch.zeros(0, device=param.device)
        return
    l1 = number_if_on_cpu(group.get("l1", 0.0))
    pieces = row_pieces(rows)
    for w, (m, d) in zip(pieces(param), corrected_moments(group, state, pieces), strict=True):
        left = soft_threshold(m / d if group.get("metric") == "euclidean" else m, l1)
        if group.get("keep_zeros"):
            left = left.masked_fill(w == 0, 0.0)
        squares = rows.add_up(left.double().square().sum(1))
        yield said_once((squares / rows.numel).sqrt().float(), rows)
