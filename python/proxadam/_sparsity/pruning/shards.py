"""Where the local part of a DTensor lies in the whole."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..reading import local_part, sharding_of


def offsets(tensor: Tensor) -> list[int]:
    """The position of the local part's first element, in each dimension."""
    starts, shape = [0] * tensor.ndim, list(tensor.shape)
    sharding = sharding_of(tensor)
    if sharding is not None:
        mesh, placements = sharding
        for size, i, placement in zip(mesh.shape, mesh.get_coordinate(), placements, strict=True):
            if placement.is_shard():  # cut as torch.chunk does
                dim = placement.dim
                start = min(math.ceil(shape[dim] / size) * i, shape[dim])
                shape[dim] = min(math.ceil(shape[dim] / size), shape[dim] - start)
                starts[dim] += start
    return starts


def global_positions(tensor: Tensor, positions: Tensor) -> Tensor:
    """Flat positions in the whole tensor, from those in the local part; int64."""
    if sharding_of(tensor) is None or not positions.numel():
        return positions
    whole, left, stride = torch.zeros_like(positions), positions, 1
    dims = zip(tensor.shape, local_part(tensor).shape, offsets(tensor), strict=True)
    for size, own, start in reversed([*dims]):
        whole = whole + (left % own + start) * stride
        left, stride = left // own, stride * size
    return whole
