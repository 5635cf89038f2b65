"""How far the weights are from the optimum: a report that waits only when it is read."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from .._step.stored import Rows
from ..prox import log_slope, norms_of_rows, soft_threshold
from .matrix_rows import matrix_rows, row_pieces
from .reading import (
    Named,
    Pieces,
    Place,
    Report,
    chunks,
    corrected_moments,
    has_stepped,
    named_params,
    number_if_on_cpu,
    read_numbers,
    reduce_each,
)

__all__ = ["Residual", "stationarity"]


class Residual(Report):
    """The root mean square of the residual, and its maximum.

    Args:
        measured: the parameters.
        group_count: how many groups there are, from index 0.
        squares: for each parameter, the sum of the squares of its residuals.
        maxima: for each parameter, the largest magnitude of its residuals.
    """

    def __init__(
        self,
        measured: Sequence[Named],
        group_count: int,
        squares: Sequence[Place],
        maxima: Sequence[Place],
    ) -> None:
        super().__init__(measured, group_count, squares, math.sqrt)
        self._maxima = maxima

    @cached_property
    def max(self) -> float:
        """The largest residual of a single weight; NaN if there are none."""
        values = read_numbers(self._maxima)
        return math.nan if not values or any(map(math.isnan, values)) else max(values)


@torch.no_grad()
def stationarity(optimizer: Optimizer, *, gradient: str = "exp_avg") -> Residual:
    r"""Measure how far each group is from the optimum of its objective.

    That is loss + l1 · Σ|w| + (l2 / 2) · Σ w², and l21 · √n · ‖row‖₂ for each row of n weights.

    The residual of a weight is the proximal gradient mapping in Adam's metric, d · (w − w⁺) / lr,
    with w⁺ the proximal step from w along g and without momentum. In closed form, which also
    holds at lr = 0, it is

    .. math::
        (g + l2 \cdot w + c) / (1 + lr \cdot l2 / d), \qquad
        c = \mathrm{clamp}(w \cdot d / lr - g,\; -l1,\; l1).

    It is zero where the weight is optimal and nowhere else, never larger than the distance of 0
    from the subdifferential g + l2 · w + l1 · ∂|w|, which is its limit at lr = 0, and continuous
    in w, as that distance is not. It has the units of the gradient: compare it with l1. In a
    group with ``metric="euclidean"`` it is that of the problem this metric solves, with g / d for
    g and 1 for d, and has no units. Decoupled weight decay is not part of the objective, so with
    it the residual ends near weight_decay · d · |w| and not at zero. With ``l1_knee`` the penalty
    is l1 · knee · Σ log(1 + |w| / knee), and l1 / (1 + |w| / knee) stands for l1 above. A weight
    that ``keep_zeros`` holds at zero has nothing left to choose, and its residual is 0.

    With ``l21`` the parenthesis has one more term, l21 · √n · q / (θ + b), where

    .. math::
        q = S(w \cdot d - k \cdot g,\; k \cdot l1) / (d + lr \cdot l2), \qquad
        b = k \cdot l21 \cdot \sqrt{n} / (d + lr \cdot l2),

    S is the soft threshold, k is lr, or 1 in a row of zeros, and θ is 0 where ‖q / b‖ ≤ 1, and else
    the root of Σ (q / (θ + b))² = 1 over the row, as in :func:`proxadam.prox_group`. So no w⁺ is
    subtracted from a w that is nearly the same. What is said above of the distance then holds for
    rows, in the norm √(Σ r² / d). A row of zeros has the residual 0 iff ‖S(g, l1)‖ ≤ l21 · √n.

    Args:
        optimizer: of this package, or torch's Adam or AdamW (l1 and l2 count as 0 there).
        gradient: what stands for g: "exp_avg", the bias-corrected first moment, which costs
            nothing and averages the last 1 / (1 − β1) batches; or "grad", the ``.grad`` of the
            parameters, unscaled, for those who have put that of the whole data set there.
            (default: "exp_avg")

    Returns:
        A report with ``params``, ``groups`` and ``total``, root mean squares over the weights,
        and ``max``. Parameters without moments, or without the gradient, are left out. Over
        DTensors it is collective, as :func:`proxadam.sparsity` is.

    Raises:
        ValueError: a ``gradient`` that is neither; a complex parameter.

    Source: the composite gradient mapping of Nesterov, *Gradient methods for minimizing composite
    functions* (2013), in a diagonal metric.

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(3))
        >>> optimizer = ProxAdamW([weight], lr=0.0, l1=1.0, weight_decay=0)
        >>> weight.grad = torch.tensor([0.5, -0.9, 3.0])  # 0 is optimal where |gradient| ≤ l1
        >>> optimizer.step()
        >>> round(stationarity(optimizer).max, 3)
        2.0
    """
    if gradient not in ("exp_avg", "grad"):
        raise ValueError(f"Invalid gradient: {gradient!r}, expected 'exp_avg' or 'grad'")
    measured, squares, maxima = [], [], []
    for i, name, param in named_params(optimizer):
        state = optimizer.state.get(param, {})
        if not has_stepped(state) or (gradient == "grad" and param.grad is None):
            continue
        norms = [
            torch.stack([residual.square().sum(), residual.abs().amax()])
            for residual in _residuals(optimizer.param_groups[i], param, state, gradient)
            if residual.numel()
        ]
        of_chunks = torch.stack(norms or [torch.zeros(2, device=param.device)])
        measured.append((i, name, param))
        squares.append(of_chunks[:, 0].sum())
        maxima.append(of_chunks[:, 1].amax())
    params = [param for _, _, param in measured]
    return Residual(
        measured,
        len(optimizer.param_groups),
        reduce_each(params, squares),
        reduce_each(params, maxima, "max"),
    )


def _residuals(
    group: dict[str, Any], param: Tensor, state: dict[str, Any], gradient: str
) -> Iterator[Tensor]:
    """The residual of each weight of the local part of a parameter, in chunks."""
    base, l2, lr, l21 = (
        number_if_on_cpu(group.get(name, 0.0)) for name in ("l1", "l2", "lr", "l21")
    )
    knee = number_if_on_cpu(group.get("l1_knee", math.inf))
    rows = matrix_rows(param) if isinstance(l21, Tensor) or l21 else None
    pieces: Pieces = chunks if rows is None else row_pieces(rows)
    grads = pieces(param.grad if gradient == "grad" and param.grad is not None else param)
    moments = corrected_moments(group, state, pieces)
    for w, grad, (g, d) in zip(pieces(param), grads, moments, strict=True):
        w = w.to(g.dtype)
        if gradient == "grad":
            g = grad.to(g.dtype)
            g = -g if group["maximize"] else g
            if not group.get("decoupled_weight_decay"):
                g = g + group["weight_decay"] * w
        if group.get("metric") == "euclidean":
            g, d = g / d, torch.ones_like(d)
        # At lr = 0 the largest number stands for infinity, which a zero weight would turn to NaN.
        pull = w * (d / lr).clamp(max=torch.finfo(d.dtype).max)
        l1 = base * log_slope(w, knee) if isinstance(knee, Tensor) or knee < math.inf else base
        slope = g + l2 * w + (pull - g).clamp(-l1, l1)
        kept = w == 0 if group.get("keep_zeros") else None
        if rows is not None:
            slope += _slope_of_rows(rows, w, g, d, lr, l1, l2, l21, kept)
        residual = slope / (1 + lr * l2 / d)
        yield residual if kept is None else residual.masked_fill_(kept, 0.0)


def _slope_of_rows(
    rows: Rows,
    w: Tensor,
    g: Tensor,
    d: Tensor,
    lr: Any,
    l1: Any,
    l2: Any,
    l21: Any,
    kept: Tensor | None,
) -> Tensor:
    """What the penalty of the rows adds to the residual, as :func:`stationarity` has it."""
    alive = rows.add_up(w.count_nonzero(1)).unsqueeze(1) > 0
    k = torch.where(alive, lr, 1.0).to(d.dtype)
    e = (d + lr * l2).clamp_min(torch.finfo(d.dtype).tiny)
    strength = l21 * math.sqrt(rows.numel)
    c = soft_threshold(w * d - k * g, k * l1) / e
    b = (k * strength / e).clamp_min(torch.finfo(d.dtype).tiny)
    if kept is not None:
        c.masked_fill_(kept, 0.0)
    norms = norms_of_rows(c, b, rows.add_up if rows.ranks else None)
    slope: Tensor = strength * c / (norms.to(d.dtype) + b)
    return slope
