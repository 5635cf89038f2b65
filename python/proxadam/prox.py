"""Proximal operators on tensors. The docstring of each is the problem it solves."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["prox_elastic_net", "soft_threshold"]


def soft_threshold(x: Tensor, threshold: float | Tensor) -> Tensor:
    r"""argmin_y ½ (y − x)² + threshold · |y|, elementwise.

    Zeros made by the threshold are +0.0; NaN stays NaN. For complex ``x`` the absolute value
    is the modulus, and the argument of ``x`` is kept.

    Args:
        x: tensor of any shape, floating point or complex.
        threshold: ≥ 0, a number or a real tensor that broadcasts against ``x``. It is the
            step size times the L1 strength, where ``x`` is the result of a gradient step.

    Returns:
        A new tensor of the shape and dtype of ``x``.
    """
    if x.is_complex():
        modulus = x.abs()
        return torch.where(modulus <= threshold, 0.0, x * (1 - threshold / modulus))
    # x − clamp(x) and not sign(x)·relu(|x| − t): this form gives +0.0 and carries NaN through.
    limit: Any = threshold  # torch's stubs know clamp for two numbers and for two tensors alone
    return x - x.clamp(-limit, limit)


def prox_elastic_net(
    x: Tensor, l1: float | Tensor, l2: float | Tensor, step_size: float | Tensor = 1.0
) -> Tensor:
    r"""argmin_y l1 · |y| + (l2 / 2) · y² + (1 / (2 · step_size)) · (y − x)², elementwise.

    The closed form is S(x, step_size · l1) / (1 + step_size · l2) with S the soft threshold:
    threshold first, then scale (Parikh and Boyd, *Proximal Algorithms*, 2014, §6.5.3). A tensor
    ``step_size`` makes it the prox in a diagonal metric, each coordinate with its own step.

    Args:
        x: tensor of any shape, floating point or complex.
        l1: weight of |y|, ≥ 0.
        l2: weight of ½ y², ≥ 0. The ½ is part of the penalty.
        step_size: > 0, a number or a real tensor that broadcasts against ``x``.

    Returns:
        A new tensor of the shape and dtype of ``x``.
    """
    return soft_threshold(x, step_size * l1) / (1 + step_size * l2)
