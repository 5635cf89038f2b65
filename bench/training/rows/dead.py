"""Which weights have rows that may die, and which rows are dead."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..models import Transformer, prunable


def row_weights(model: nn.Module) -> list[nn.Parameter]:
    """The weights whose rows are hidden units; of a perceptron all but the classes.

    Of a transformer they are those inside its blocks' layers, and where there are convolutions
    these alone: they take most of the time, and the few units behind them little.
    """
    if isinstance(model, Transformer):
        return [block.wide.weight for block in model.blocks]
    convolutions = [layer.weight for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    return convolutions or prunable(model)[:-1]


@torch.no_grad()
def dead_rows(weight: Tensor) -> Tensor:
    """Which rows are zero throughout."""
    return (weight == 0).flatten(1).all(1)
