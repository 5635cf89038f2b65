"""Where the local part of a DTensor lies in the whole."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..reading import local_part, sharding_of


def offsets(tensor: Tensor) -> list[int]:
    """The position of the local part's first element, in each dimension."""
    starts, shape = [0] * tensor.ndim, list(tensor.shape)
    sharding = sharding_of(tensor)
    if sharding is not None:
        for size, i, placement in _in_order(*sharding):  # cut as torch.chunk does
            dim = placement.dim
            start = min(math.ceil(shape[dim] / size) * i, shape[dim])
            shape[dim] = min(math.ceil(shape[dim] / size), shape[dim] - start)
            starts[dim] += start
    return starts


def _in_order(mesh: Any, placements: Sequence[Any]) -> list[tuple[int, int, Any]]:
    """(ranks, this one, placement) of each cut, the first one first.

    That is from left to right, but for what FSDP2 has cut after tensor parallelism to its right.
    """
    every = zip(mesh.shape, mesh.get_coordinate(), placements, strict=True)
    cuts = [cut for cut in every if not cut[2].is_replicate()]
    late = [cut for cut in cuts if type(cut[2]).__name__ == "_StridedShard"]
    return [cut for cut in cuts if cut not in late] + late[::-1]


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
