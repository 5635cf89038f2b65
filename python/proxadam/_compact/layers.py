"""What a Linear or a convolution is to compact: rows, columns, and what its bias can take."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

Layer = nn.Linear | _ConvNd
_PLAIN = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
_FORWARDS = {kind.forward for kind in _PLAIN}


def layers_of(model: nn.Module) -> dict[str, Layer]:
    """The Linear and convolutional layers of a model, by name."""
    return {n: m for n, m in model.named_modules() if isinstance(m, (nn.Linear, _ConvNd))}


def row_dim(layer: Layer) -> int:
    """The dimension of the weight that counts the outputs."""
    return 1 if isinstance(layer, _ConvTransposeNd) else 0


def channel_dim(layer: Layer) -> int:
    """The dimension of the layer's input and output that counts features or channels."""
    return -1 if isinstance(layer, nn.Linear) else -1 - len(layer.kernel_size)


def is_depthwise(layer: nn.Module) -> bool:
    """Whether each channel of a convolution is a channel of its input, filtered."""
    return (
        isinstance(layer, _ConvNd) and 1 < layer.groups == layer.in_channels == layer.out_channels
    )


def width(layer: Layer) -> int:
    """How many rows a layer has."""
    return layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels


def zero_rows(layer: Layer) -> list[int]:
    """The rows whose weights are all zero, whatever their bias."""
    weight = layer.weight.detach()
    if isinstance(layer, _ConvTransposeNd):  # (in, out / groups, ...)
        weight = weight.unflatten(0, (layer.groups, -1)).transpose(1, 2).flatten(0, 1)
    zeros: list[int] = (weight.flatten(1) == 0).all(1).nonzero()[:, 0].tolist()
    return zeros


def zero_columns(layer: Layer) -> list[bool]:
    """Which columns of a layer are zero; of a convolution in groups, of one group."""
    weight = layer.weight.detach().movedim(1 - row_dim(layer), 0)
    zeros: list[bool] = (weight.flatten(1) == 0).all(1).tolist()
    return zeros


def why_not(layer: nn.Module) -> str | None:
    """Why a layer can be cut neither in its rows nor in its columns; None if it can."""
    if isinstance(layer, _ConvNd) and layer.groups > 1 and not is_depthwise(layer):
        return f"convolves in {layer.groups} groups, which must stay of one size"
    if type(layer).forward not in _FORWARDS:
        return f"is a {type(layer).__name__}, whose forward is its own"
    if not {"weight", "bias"} <= layer._parameters.keys():
        return "has a weight that is computed from others (a parametrization or a pruning mask)"
    return None


def has_borders(layer: Layer) -> bool:
    """Whether a convolution of a constant differs at the borders."""
    if isinstance(layer, nn.Linear):
        return False
    if isinstance(layer, _ConvTransposeNd):
        return True
    if layer.padding_mode != "zeros" or layer.padding == "valid":
        return False
    if layer.padding == "same":
        return any(size > 1 for size in layer.kernel_size)
    return any(layer.padding)


@torch.no_grad()
def fold(layer: Layer, fills: Mapping[int, float]) -> None:
    """Add to the bias what some columns contribute for a constant input, in float64.

    Makes a bias where there is none and the contribution is not zero.

    Args:
        layer: without borders, unless the constants are zero.
        fills: what arrives at each of the columns.
    """
    columns = layer.weight.detach().cpu().double().movedim(1 - row_dim(layer), 0)[list(fills)]
    constants = torch.tensor(list(fills.values()), dtype=torch.float64)
    added = constants @ columns.reshape(*columns.shape[:2], -1).sum(2)
    if not added.any():
        return
    if layer.bias is None:
        layer.bias = nn.Parameter(layer.weight.new_zeros(width(layer)))
    layer.bias.copy_(layer.bias.cpu().double() + added)
