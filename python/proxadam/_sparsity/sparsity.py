"""How sparse the weights are: a report that makes the host wait only when it is read."""

from __future__ import annotations

from torch import nn
from torch.optim import Optimizer

from .reading import Report, count_nonzeros, named_params

__all__ = ["sparsity"]


def sparsity(source: Optimizer | nn.Module) -> Report:
    """Count exact zeros, queued on the devices; the host waits when the report is first read.

    Args:
        source: an optimizer, or a model; a model's report has names and no groups.

    Returns:
        A report with ``params``, ``groups`` and ``total``, shares from 0 to 1;
        ``float(report)`` is the total. It is a snapshot: later steps do not change it.

    Of DTensors (FSDP2, tensor parallelism) every process counts its shards, and the counts are
    added up over the mesh: call it on all processes, and all get the numbers of the whole model.

    Raises:
        TypeError: ``source`` is neither.
    """
    if isinstance(source, Optimizer):
        named, group_count = named_params(source), len(source.param_groups)
    elif isinstance(source, nn.Module):
        named, group_count = [(0, *pair) for pair in source.named_parameters()], 0
    else:
        raise TypeError(f"expected an optimizer or a model, got {type(source).__name__}")
    nonzeros = count_nonzeros([param for _, _, param in named])
    return Report(named, group_count, nonzeros, _share_of_zeros)


def _share_of_zeros(share_of_nonzeros: float) -> float:
    return 1 - share_of_nonzeros
