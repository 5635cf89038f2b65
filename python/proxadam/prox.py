"""Proximal operators on tensors. The docstring of each is the problem it solves."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["prox_elastic_net", "prox_log_elastic_net", "soft_threshold"]


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


def prox_log_elastic_net(
    x: Tensor,
    weight: Tensor,
    l1: float | Tensor,
    l1_knee: float | Tensor,
    l2: float | Tensor,
    step_size: float | Tensor = 1.0,
) -> Tensor:
    r"""argmin_y l1 · slope · |y| + (l2 / 2) · y² + (1 / (2 · step_size)) · (y − x)², elementwise.

    Here slope is 1 / (1 + |weight| / l1_knee). But for a constant the first term is tangent at
    ``weight`` to l1 · l1_knee · log(1 + |y| / l1_knee), and nowhere below it: steps of this kind,
    each from the last one's result, come to the stationary points of that penalty (Candès, Wakin
    and Boyd, *Enhancing sparsity by reweighted l1 minimization*, 2008).

    Args:
        x: tensor of any shape, floating point or complex.
        weight: the weight that ``x`` is a step from, of the shape of ``x``.
        l1: slope of the penalty at 0, ≥ 0.
        l1_knee: where the slope has halved, > 0; inf makes it :func:`prox_elastic_net`.
        l2: weight of ½ y², ≥ 0.
        step_size: > 0, a number or a real tensor that broadcasts against ``x``.

    Returns:
        A new tensor of the shape and dtype of ``x``.
    """
    return prox_elastic_net(x, l1 * log_slope(weight, l1_knee), l2, step_size)


def log_slope(weight: Tensor, knee: float | Tensor) -> Tensor:
    """The slope of knee · log(1 + |weight| / knee): 1 at 0, and ½ at the knee.

    The knee is taken as no smaller than the smallest normal number, that 0 over it is 0.
    """
    tiny = torch.finfo(weight.dtype).tiny
    least = knee.clamp_min(tiny) if isinstance(knee, Tensor) else max(knee, tiny)
    return (1 + weight.abs() / least).reciprocal_()
