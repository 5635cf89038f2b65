"""How much memory an optimizer's state takes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Optimizer

from .._step.dtensor import shard

__all__ = ["state_bytes"]


@dataclass(frozen=True)
class StateBytes:
    """Bytes of state in this process.

    Attributes:
        groups: by group of the optimizer.
        of_fp32_adam: what two moments in float32 of the same parameters would take, a moment in
            float64 or complex as wide as its parameter; and the counts of steps as they are.
    """

    groups: list[int]
    of_fp32_adam: int

    @property
    def total(self) -> int:
        """Of all groups together."""
        return sum(self.groups)

    @property
    def ratio(self) -> float:
        """``total / of_fp32_adam``; 1.0 where there is no state yet."""
        return self.total / self.of_fp32_adam if self.of_fp32_adam else 1.0

    def __int__(self) -> int:
        return self.total


def state_bytes(optimizer: Optimizer) -> StateBytes:
    """Count the bytes of an Adam optimizer's state, of ours or of torch's; waits for no device.

    Shared memory is counted as often as it is used, and of a DTensor this process's shard.

    Args:
        optimizer: its parameters are counted once they have been stepped.

    Returns:
        ``groups``, ``total``, ``of_fp32_adam`` and ``ratio``.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(64, 64))
        >>> optimizer = ProxAdamW([weight], state_dtype=torch.bfloat16)
        >>> weight.grad = torch.ones(64, 64)
        >>> optimizer.step()
        >>> float(state_bytes(optimizer).ratio)  # of what float32 takes
        0.5...
    """
    groups = [0] * len(optimizer.param_groups)
    of_fp32_adam = 0
    for i, group in enumerate(optimizer.param_groups):
        for param in group["params"]:
            own = optimizer.state.get(param)
            if not own:
                continue
            tensors = {name: shard(t) for name, t in own.items() if isinstance(t, Tensor)}
            groups[i] += sum(tensor.nbytes for tensor in tensors.values())
            wide = torch.promote_types(param.dtype, torch.float32).itemsize
            step_t = tensors.get("step")
            of_fp32_adam += 2 * wide * shard(param).numel()
            of_fp32_adam += 0 if step_t is None else step_t.nbytes
    return StateBytes(groups, of_fp32_adam)
