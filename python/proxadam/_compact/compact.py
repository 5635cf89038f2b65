"""A smaller model with equal outputs: dead rows cut out, constants folded forward."""

from __future__ import annotations

from typing import Any

from torch import nn

from .checks import check_arguments
from .dependencies import torch_pruning
from .report import CompactReport
from .rounds import compacted

__all__ = ["compact", "compact_report"]


def compact(model: nn.Module, example_inputs: Any, *, multiple_of: int = 1) -> nn.Module:
    """A copy of a model, in eval mode, without what is dead in it.

    A row of a Linear or of a convolution goes, with all that belongs to it, where every layer that
    reads it has a column of zeros for it, or receives a constant: for a row of zeros that is
    act(bias), which is folded into the reader's bias. That is decided by the weights, not by the
    data. It is repeated until nothing is left to cut, and the last row of a layer always stays.
    Attention heads go whole, where queries, keys and values are three Linears and the forward takes
    the number of heads from their width or from an attribute with a common name (``num_heads``).
    torch-pruning traces the model and cuts it (``pip install 'proxadam[compact]'``).

    Args:
        model: an nn.Module on any device, whole and not compiled. It stays as it is.
        example_inputs: a tensor; a tuple or list of the arguments of ``model``; or a dict of its
            keywords. Shapes, and the integers in it, should be typical.
        multiple_of: dead rows stay until the number of rows of a layer is divisible by it; 8 suits
            tensor cores and vector units. (default: 1)

    Returns:
        The copy, whose parameters require grad as the model's do; a bias that folding has made as
        its weight does. Its outputs are the model's in eval mode, on the example and on three
        random inputs of its shape: the largest difference is at most 1e-5 of the output's largest
        magnitude in float32, 1e-12 in float64, and four roundings in 16 bits.

    Raises:
        ImportError: torch-pruning is not installed.
        TypeError: ``model`` is no module, or ``multiple_of`` no int.
        ValueError: the model is wrapped, sharded or scripted; its Python code chooses by values
            that depend on the inputs; torch-pruning cannot trace it; or its outputs would differ,
            because it computes with a width that changes.

    What stays though it is dead, :func:`compact_report` lists with the reason: outputs of the
    model; rows in front of LayerNorm or GroupNorm, whose statistics would change; constants in
    front of zero padding; rows that are added to others that live; grouped convolutions; shared
    parameters; heads of nn.MultiheadAttention, and heads that share keys. Inputs are taken to be
    finite: a zero weight hides a NaN or an infinity, until it is cut.

    Example:
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Linear(8, 6), torch.nn.ReLU(), torch.nn.Linear(6, 2)
        ... )
        >>> _ = torch.nn.init.zeros_(model[0].weight[:4])
        >>> compact(model, torch.randn(1, 8))[0]
        Linear(in_features=8, out_features=2, bias=True)
    """
    return _compacted(model, example_inputs, multiple_of)[0]


def compact_report(model: nn.Module, example_inputs: Any, *, multiple_of: int = 1) -> CompactReport:
    """What :func:`compact` does to a model, which stays as it is.

    Args:
        model: as for :func:`compact`.
        example_inputs: as for :func:`compact`.
        multiple_of: as for :func:`compact`. (default: 1)

    Returns:
        The rows that go, by layer; parameters and multiply-adds before and after; and what is dead
        and stays, with the reason. ``print`` shows a table.

    Raises:
        ImportError: as :func:`compact` does, whose work it does on a copy.
        TypeError: likewise.
        ValueError: likewise.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 6), torch.nn.Linear(6, 2))
        >>> _ = torch.nn.init.zeros_(model[0].weight[:4])
        >>> report = compact_report(model, torch.randn(1, 8))
        >>> report.parameters
        (68, 24)
    """
    return _compacted(model, example_inputs, multiple_of)[1]


def _compacted(
    model: nn.Module, example_inputs: Any, multiple_of: int
) -> tuple[nn.Module, CompactReport]:
    torch_pruning()
    return compacted(check_arguments(model, multiple_of), example_inputs, multiple_of)
