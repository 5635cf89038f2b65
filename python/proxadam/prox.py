"""Proximal operators on tensors. The docstring of each is the problem it solves."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["prox_elastic_net", "prox_group", "prox_log_elastic_net", "soft_threshold"]

# Steps of Newton's method for the norm of a row. Rows whose pulls differ by 10^4 take five in
# float32, and by 10^8 nine.
_NEWTON_STEPS = 10


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

    Example:
        >>> soft_threshold(torch.tensor([-2.0, -0.5, 0.25, 2.0]), 0.5)
        tensor([-1.5000,  0.0000,  0.0000,  1.5000])
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

    Example:
        >>> prox_elastic_net(torch.tensor([-0.25, 3.0]), l1=0.5, l2=0.25)
        tensor([0., 2.])
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

    Example:
        >>> weight = torch.tensor([0.0, 1.0])
        >>> prox_log_elastic_net(torch.ones(2), weight, l1=0.5, l1_knee=1.0, l2=0.0)
        tensor([0.5000, 0.7500])
    """
    return prox_elastic_net(x, l1 * log_slope(weight, l1_knee), l2, step_size)


def log_slope(weight: Tensor, knee: float | Tensor) -> Tensor:
    """The slope of knee · log(1 + |weight| / knee): 1 at 0, and ½ at the knee.

    The knee is taken as no smaller than the smallest normal number, that 0 over it is 0.
    """
    tiny = torch.finfo(weight.dtype).tiny
    least = knee.clamp_min(tiny) if isinstance(knee, Tensor) else max(knee, tiny)
    return (1 + weight.abs() / least).reciprocal_()


def prox_group(
    x: Tensor,
    l21: float | Tensor,
    step_size: float | Tensor = 1.0,
    *,
    l1: float | Tensor = 0.0,
    l2: float | Tensor = 0.0,
) -> Tensor:
    r"""argmin_y l21 √n ‖y‖₂ + l1 Σ|y| + (l2 / 2) Σ y² + Σ (y − x)² / (2 · step_size), by rows.

    A row is what belongs to one index of the first dimension: n elements. With c the elementwise
    prox of x, which comes first in any diagonal metric, and b = step_size · l21 · √n / (1 +
    step_size · l2), a row is 0 where ‖c / b‖₂ ≤ 1, and else c · θ / (θ + b), where θ is the norm
    of the solution: the root of Σ (c / (θ + b))² = 1, found by Newton's method from below. With one
    step size and l1 = l2 = 0 that is the block soft threshold of the group lasso (Yuan and Lin,
    *Model selection and estimation in regression with grouped variables*, 2006, whose √n this has),
    with l1 the sparse group lasso's (Simon, Friedman, Hastie and Tibshirani, 2013).

    Args:
        x: real floating point tensor of at least two dimensions.
        l21: weight of √n · ‖row‖₂, ≥ 0.
        step_size: > 0, a number or a real tensor that broadcasts against ``x``: Adam's is lr / d.
        l1: weight of |y|, ≥ 0.
        l2: weight of ½ y², ≥ 0.

    Returns:
        A new tensor of the shape and dtype of ``x``. Dead rows are +0.0; NaN stays in its row.

    Raises:
        ValueError: ``x`` has fewer than two dimensions, or is complex.

    Example:
        >>> prox_group(torch.tensor([[0.5, 0.5], [6.0, 8.0]]), l21=1.0, step_size=5 / 2**0.5)
        tensor([[0., 0.],
                [3., 4.]])
    """
    if x.ndim < 2 or x.is_complex():
        raise ValueError(
            f"expected a real tensor of at least two dimensions, got {x.dtype} of shape"
            f" {tuple(x.shape)}; prox_elastic_net takes those without rows."
        )
    shrunk = prox_elastic_net(x, l1, l2, step_size)
    if not x.numel():
        return shrunk
    row = x.numel() // x.shape[0]
    pull = row_pull(shrunk, l21 * math.sqrt(row), l2, step_size)
    return (shrunk * left_of_rows(shrunk, pull)).add_(0.0)


def row_pull(
    shrunk: Tensor, strength: float | Tensor, l2: float | Tensor, step_size: float | Tensor
) -> Tensor:
    """The b of :func:`prox_group`, for a strength l21 · √n; no smaller than a normal number."""
    pull = step_size * strength / (1 + step_size * l2)
    whole = torch.as_tensor(pull, dtype=shrunk.dtype, device=shrunk.device).expand_as(shrunk)
    return whole.clamp_min(torch.finfo(shrunk.dtype).tiny)


def left_of_rows(
    shrunk: Tensor, pull: Tensor, add_up: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """What l21 leaves of each element, θ / (θ + b), and 0 where the row is 0.

    Args:
        shrunk: c of :func:`prox_group`, of two dimensions and more.
        pull: b, of the same shape.
        add_up: makes sums over whole rows out of such over what of them is here; None where that
            is all.
    """
    return _left(norms_of_rows(shrunk, pull, add_up), pull)


def norms_of_rows(
    shrunk: Tensor, pull: Tensor, add_up: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """θ of :func:`prox_group` for each row, 0 where the row is 0.

    Args:
        shrunk: as for :func:`left_of_rows`.
        pull: likewise.
        add_up: likewise.

    Returns:
        A float64 tensor that broadcasts against ``shrunk``.
    """
    dims = tuple(range(1, shrunk.ndim))

    def sums(x: Tensor, weight: Tensor) -> list[Tensor]:
        squares = x.double().square()
        return [squares.sum(dims, keepdim=True), (squares * weight).sum(dims, keepdim=True)]

    def whole(parts: list[Tensor]) -> Tensor:
        together = torch.stack(parts)
        return together if add_up is None else add_up(together)

    inverse = pull.double().reciprocal()
    at_zero = sums(shrunk * inverse, inverse)
    far_squares, far, near_squares, near = whole([*sums(shrunk, pull), *at_zero])
    # Two points below the root: where the tangent at infinity meets zero, and Newton's from 0.
    from_far = far_squares.sqrt() - far / far_squares
    from_zero = (near_squares.sqrt() - 1) * near_squares / near
    # The larger, or the one that is a number; DTensors of torch 2.10 have no fmax.
    norm = torch.where(from_zero.isnan() | (from_far > from_zero), from_far, from_zero)
    for _ in range(_NEWTON_STEPS):
        left = _left(norm, pull)
        squares, weighted = whole(sums(shrunk * left, left))
        rise = (squares.sqrt() - norm) * squares / weighted
        norm = torch.where(rise > 0, norm + rise, norm)
        if add_up is None and shrunk.is_cpu and not torch.compiler.is_compiling():
            if not (rise > norm * torch.finfo(shrunk.dtype).eps ** 0.5).any():
                break
    return norm.masked_fill(near_squares <= 1, 0.0)


def _left(norm: Tensor, pull: Tensor) -> Tensor:
    narrow = norm.to(pull.dtype)
    return narrow / (narrow + pull)
