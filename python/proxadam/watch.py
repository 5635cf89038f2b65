"""How sparse the weights are, and how far from the optimum: reports that wait only when read."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ._state import (
    chunks,
    combine,
    corrected,
    count_nonzeros,
    has_stepped,
    named_params,
    on_host,
    read,
)

__all__ = ["Residual", "Sparsity", "sparsity", "stationarity"]


@dataclass(frozen=True)
class _Entry:
    """What is known of one parameter; the value stays on its device."""

    name: str
    group: int
    numel: int
    place: tuple[Tensor, int]


class _Report:
    """A number for each parameter, each group and all together, on the host once it is read."""

    def __init__(self, entries: Sequence[_Entry], group_count: int) -> None:
        self._entries = entries
        self._group_count = group_count

    @cached_property
    def _values(self) -> list[float]:
        return read([entry.place for entry in self._entries])

    def _over(self, value: float, numel: int) -> float:
        raise NotImplementedError

    def _pool(self, group: int | None = None) -> float:
        pairs = zip(self._entries, self._values, strict=True)
        chosen = [(e.numel, v) for e, v in pairs if group in (None, e.group)]
        numel = sum(numel for numel, _ in chosen)
        return self._over(sum(value for _, value in chosen), numel) if numel else math.nan

    @property
    def params(self) -> dict[str, float]:
        """By name of the parameter; "group.position" where the optimizer was given no names."""
        pairs = zip(self._entries, self._values, strict=True)
        return {e.name: self._over(v, e.numel) for e, v in pairs if e.numel}

    @property
    def groups(self) -> list[float]:
        """By group of the optimizer; NaN for a group with nothing to measure."""
        return [self._pool(i) for i in range(self._group_count)]

    @property
    def total(self) -> float:
        """Over all parameters; NaN if there are none."""
        return self._pool()

    def __float__(self) -> float:
        return self.total

    def __repr__(self) -> str:  # reads nothing: a debugger must not make the host wait
        return f"<{type(self).__name__} of {len(self._entries)} parameters>"


class Sparsity(_Report):
    """The share of weights that are exactly zero, from 0 to 1."""

    def _over(self, value: float, numel: int) -> float:
        return 1 - value / numel  # nonzeros are counted


class Residual(_Report):
    """The root mean square of the residual, and its maximum."""

    def __init__(
        self,
        entries: Sequence[_Entry],
        group_count: int,
        maxima: Sequence[tuple[Tensor, int]],
    ) -> None:
        super().__init__(entries, group_count)
        self._maxima = maxima

    def _over(self, value: float, numel: int) -> float:
        return math.sqrt(value / numel)

    @cached_property
    def max(self) -> float:
        """The largest residual of a single weight; NaN if there are none."""
        values = read(self._maxima)
        if not values or any(map(math.isnan, values)):
            return math.nan
        return max(values)


def sparsity(source: Optimizer | nn.Module) -> Sparsity:
    """Count exact zeros, queued on the devices; the host waits when the report is first read.

    Args:
        source: an optimizer, or a model; a model's report has names and no groups.

    Returns:
        A report with ``params``, ``groups`` and ``total``; ``float(report)`` is the total. It
        is a snapshot: later steps do not change it.

    Of DTensors (FSDP2, tensor parallelism) every process counts its shards, and the counts are
    added up over the mesh: call it on all processes, and all get the numbers of the whole model.

    Raises:
        TypeError: ``source`` is neither.
    """
    if isinstance(source, Optimizer):
        named = named_params(source)
        groups = len(source.param_groups)
    elif isinstance(source, nn.Module):
        named = [(0, name, param) for name, param in source.named_parameters()]
        groups = 0
    else:
        raise TypeError(f"expected an optimizer or a model, got {type(source).__name__}")
    places = count_nonzeros([param for _, _, param in named])
    entries = [
        _Entry(name, group, param.numel(), place)
        for (group, name, param), place in zip(named, places, strict=True)
    ]
    return Sparsity(entries, groups)


@torch.no_grad()
def stationarity(optimizer: Optimizer, *, gradient: str = "exp_avg") -> Residual:
    r"""Measure how far each group is from the optimum of loss + l1 · Σ|w| + (l2 / 2) · Σ w².

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
    it the residual ends near weight_decay · d · |w| and not at zero.

    Args:
        optimizer: of this package, or torch's Adam or AdamW (l1 and l2 count as 0 there).
        gradient: what stands for g: "exp_avg", the bias-corrected first moment, which costs
            nothing and averages the last 1 / (1 − β1) batches; or "grad", the ``.grad`` of the
            parameters, unscaled, for those who have put that of the whole data set there.
            (default: "exp_avg")

    Returns:
        A report with ``params``, ``groups`` and ``total``, root mean squares over the weights,
        and ``max``. Parameters without moments, or without the gradient, are left out. Over
        DTensors it is collective, as :func:`sparsity` is.

    Raises:
        ValueError: a ``gradient`` that is neither; a complex parameter.

    Source: the composite gradient mapping of Nesterov, *Gradient methods for minimizing composite
    functions* (2013), in a diagonal metric.
    """
    if gradient not in ("exp_avg", "grad"):
        raise ValueError(f"Invalid gradient: {gradient!r}, expected 'exp_avg' or 'grad'")
    measured = []
    for i, name, param in named_params(optimizer):
        state = optimizer.state.get(param, {})
        if not has_stepped(state) or (gradient == "grad" and param.grad is None):
            continue
        group = optimizer.param_groups[i]
        norms = [
            torch.stack([residual.square().sum(), residual.abs().amax()])
            for residual in _residuals(group, param, state, gradient)
            if residual.numel()
        ]
        sums, maxima = torch.stack(norms or [torch.zeros(2, device=param.device)]).unbind(1)
        measured.append((i, name, param, sums.sum(), maxima.amax()))
    params = [m[2] for m in measured]
    squares = combine(params, [m[3] for m in measured])
    largest = combine(params, [m[4] for m in measured], "max")
    entries = [
        _Entry(name, i, param.numel(), place)
        for (i, name, param, _, _), place in zip(measured, squares, strict=True)
    ]
    return Residual(entries, len(optimizer.param_groups), largest)


def _residuals(
    group: dict[str, Any], param: Tensor, state: dict[str, Any], gradient: str
) -> Iterator[Tensor]:
    """The residual of each weight of the local part of a parameter, in chunks."""
    l1, l2, lr = (on_host(group.get(name, 0.0)) for name in ("l1", "l2", "lr"))
    grads = chunks(param.grad if gradient == "grad" and param.grad is not None else param)
    for w, grad, (g, d) in zip(chunks(param), grads, corrected(group, state), strict=True):
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
        yield (g + l2 * w + (pull - g).clamp(-l1, l1)) / (1 + lr * l2 / d)
