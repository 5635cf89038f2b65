"""Which weights have rows that may die, and which rows are dead."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..models import Transformer, prunable


def row_weights(model: nn.Module) -> list[nn.Parameter]:
    """The weights whose rows are hidden units: of a transformer, those inside its blocks' layers.

    The rows of a head are the classes: they stay.
    """
    if isinstance(model, Transformer):
        return [block.wide.weight for block in model.blocks]
    return prunable(model)[:-1]


@torch.no_grad()
def dead_rows(weight: Tensor) -> Tensor:
    """Which rows are zero throughout."""
    return (weight == 0).flatten(1).all(1)
