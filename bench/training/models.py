"""The networks, and which of their weights are pruned."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, linear, scaled_dot_product_attention


def make_perceptron(widths: Sequence[int]) -> nn.Sequential:
    """Build a multilayer perceptron with ReLU between its layers."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def make_convnet(channels: Sequence[int], widths: Sequence[int]) -> nn.Sequential:
    """Build convolutions that halve a square image, and a perceptron behind them.

    They have no padding, and kernels that fit: 4 where a side is even, 3 where it is odd. The first
    of the widths is that of the image.
    """
    side = math.isqrt(widths[0])
    layers: list[nn.Module] = [nn.Unflatten(1, (1, side, side))]
    for inputs, outputs in pairwise((1, *channels)):
        kernel = 3 + (side % 2 == 0)
        layers += [nn.Conv2d(inputs, outputs, kernel, stride=2), nn.ReLU()]
        side = (side - kernel) // 2 + 1
    perceptron = make_perceptron((channels[-1] * side * side, *widths[1:]))
    return nn.Sequential(*layers, nn.Flatten(), *perceptron)


class Block(nn.Module):
    """Attention to what came before, and a layer with GELU."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        heads = self.qkv(self.norms[0](x)).unflatten(-1, (3, self.heads, -1))
        attended = scaled_dot_product_attention(*heads.permute(2, 0, 3, 1, 4), is_causal=True)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.narrow(gelu(self.wide(self.norms[1](x))))


class Transformer(nn.Module):
    """Characters in, the logits of the next ones out; the head is the embedding."""

    def __init__(self, characters: int, context: int, width: int, heads: int, layers: int) -> None:
        super().__init__()
        self.character, self.place = nn.Embedding(characters, width), nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        nn.init.normal_(self.character.weight, std=width**-0.5)  # as a head it wants small weights
        nn.init.normal_(self.place.weight, std=width**-0.5)

    def forward(self, tokens: Tensor) -> Tensor:  # noqa: D102
        x = self.character(tokens) + self.place.weight[: tokens.shape[-1]]
        return linear(self.norm(self.blocks(x)), self.character.weight)


def prunable(model: nn.Module) -> list[nn.Parameter]:
    """Return the weights of linear layers and convolutions: no bias, no norm and no embedding."""
    kinds = (nn.Linear, nn.Conv2d)
    return [module.weight for module in model.modules() if isinstance(module, kinds)]


def param_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Return the prunable weights with the decay, and all others without."""
    pruned = prunable(model)
    known = {id(weight) for weight in pruned}
    others = [p for p in model.parameters() if id(p) not in known]
    return [
        {"params": pruned, "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]


def zero_share(weights: Sequence[Tensor]) -> float:
    """Return the share of elements that are exactly zero, in percent."""
    nonzeros = sum(int(torch.count_nonzero(w)) for w in weights)
    return 100.0 - 100.0 * nonzeros / sum(w.numel() for w in weights)
