"""How sparse the weights are: a report that makes the host wait only when it is read."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from torch.optim import Optimizer

from .matrix_rows import count_dead_rows, row_count
from .reading import Named, Report, count_nonzeros, named_params

__all__ = ["Zeros", "sparsity"]


class Zeros(Report):
    """The share of the weights that are zero.

    Args:
        named: the parameters.
        group_count: how many groups there are, from index 0.

    Attributes:
        rows: the share of the rows that are zero throughout, a report like this one over the
            parameters of two dimensions and more. A row is what has one index in the first.
    """

    def __init__(self, named: Sequence[Named], group_count: int) -> None:
        params = [param for _, _, param in named]
        super().__init__(named, group_count, count_nonzeros(params), _share_of_zeros)
        dead = count_dead_rows(params)
        self.rows = Report(named, group_count, dead, float, size=row_count)


def sparsity(source: Optimizer | nn.Module) -> Zeros:
    """Count exact zeros, queued on the devices; the host waits when the report is first read.

    Args:
        source: an optimizer, or a model; a model's report has names and no groups.

    Returns:
        A report with ``params``, ``groups`` and ``total``, shares from 0 to 1;
        ``float(report)`` is the total. ``report.rows`` has the same of rows that are zero
        throughout. It is a snapshot: later steps do not change it.

    Of DTensors (FSDP2, tensor parallelism) every process counts its shards, and the counts are
    added up over the mesh: call it on all processes, and all get the numbers of the whole model.
    FSDP1's flat parameters have no rows.

    Raises:
        TypeError: ``source`` is neither.

    Example:
        >>> model = torch.nn.Linear(3, 2)
        >>> model.weight.data = torch.tensor([[1.0, 0.0, 0.0], [0.0, 2.0, 3.0]])
        >>> report = sparsity(model)
        >>> report.params["weight"]
        0.5
    """
    if isinstance(source, Optimizer):
        return Zeros(named_params(source), len(source.param_groups))
    if isinstance(source, nn.Module):
        return Zeros([(0, *pair) for pair in source.named_parameters()], 0)
    raise TypeError(f"expected an optimizer or a model, got {type(source).__name__}")


def _share_of_zeros(share_of_nonzeros: float) -> float:
    return 1 - share_of_nonzeros
