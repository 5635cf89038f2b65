"""Rows of parameters, as l21 takes them: looked at whole, also where shards cut them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .._step.dtensor import row_cut
from .._step.stored import Rows
from .reading import Pieces, Place, chunk_numel, local_part, reduce_each


def matrix_rows(param: Tensor) -> Rows | None:
    """The rows of which this process has some, or parts; None where there are none.

    Every process of a DTensor that is cut across its rows has parts of the same ones.
    """
    return Rows.of(local_part(param), row_cut(param))


def row_count(param: Tensor) -> int:
    """How many rows the whole of a parameter has; 0 below two dimensions."""
    return param.shape[0] if param.ndim > 1 and param.numel() else 0


def row_pieces(rows: Rows) -> Pieces:
    """What stands for :func:`chunks` where whole rows are looked at: matrices of some of them.

    Processes that have parts of the same rows get pieces of the same rows.
    """

    def pieces(tensor: Tensor) -> Sequence[Tensor]:
        count = max(chunk_numel(tensor) // rows.numel, 1)
        split: Sequence[Tensor] = local_part(tensor).flatten(1).split(count)
        return split

    return pieces


def said_once(values: Tensor, rows: Rows) -> Tensor:
    """What one of the processes knows that have parts of the same rows; of the others nothing."""
    first = all(torch.distributed.get_rank(ranks) == 0 for ranks in rows.ranks)
    return values if first else values[:0]


@torch.no_grad()
def count_dead_rows(params: Sequence[Tensor]) -> list[Place]:
    """How many rows of each parameter are zero throughout, over all shards; a collective."""
    return reduce_each(params, [_dead_rows(param) for param in params])


def _dead_rows(param: Tensor) -> Tensor:
    rows = matrix_rows(param)
    if rows is None:
        return torch.zeros((), dtype=torch.int64, device=param.device)
    alive = torch.cat([_alive(piece) for piece in row_pieces(rows)(param)])
    return (said_once(rows.add_up(alive), rows) == 0).sum()


def _alive(matrix: Tensor) -> Tensor:
    if not matrix.numel():  # amax() has no answer
        return torch.zeros(matrix.shape[0], dtype=torch.int32, device=matrix.device)
    return (matrix.abs().amax(1) != 0).int()
