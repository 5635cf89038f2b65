"""What compact asks of its arguments, each in one sentence."""

from __future__ import annotations

import torch
from torch import nn
from torch.distributed.tensor import DTensor


def check_arguments(model: object, multiple_of: object) -> nn.Module:
    """The model, if compact can begin with it.

    Raises:
        TypeError: no module, or a ``multiple_of`` that is no int.
        ValueError: a wrapped, sharded, scripted or uninitialised model; ``multiple_of`` below 1.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected an nn.Module, got {type(model).__name__}")
    if not isinstance(multiple_of, int) or isinstance(multiple_of, bool):
        raise TypeError(f"Invalid multiple_of: {multiple_of!r}, expected an int")
    if multiple_of < 1:
        raise ValueError(f"Invalid multiple_of: {multiple_of}, expected ≥ 1")
    reason = _why_not(model)
    if reason:
        raise ValueError(f"compact cannot take this {type(model).__name__}: {reason}.")
    return model


def _why_not(model: nn.Module) -> str | None:
    for module in model.modules():
        kind = type(module).__name__
        if isinstance(module, torch.jit.ScriptModule):
            return "TorchScript cannot be cut, pass the module that was scripted"
        if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            return f"pass the module inside {kind}"
        if kind == "OptimizedModule":
            return "pass the module that was given to torch.compile (its _orig_mod)"
        if kind == "FullyShardedDataParallel":
            return "it is sharded, gather its parameters into a whole module first"
    for tensor in model.parameters():
        if isinstance(tensor, DTensor):
            return "its parameters are DTensors, gather them into a whole module first"
        if tensor.is_meta or torch.nn.parameter.is_lazy(tensor):
            return "its parameters have no values yet"
    return None
