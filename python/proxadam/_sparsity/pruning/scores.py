"""What it costs the loss to do without a weight, as the step sees it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..._step.state import moment
from ..reading import Pieces, Sharding, chunks, number_if_on_cpu, sharding_of

# d is multiplied by it before its root is taken, so that no weight's score underflows; the largest
# d, of the largest second moment, does not overflow.
_SCALE = 2.0**60
# d of a weight without gradients where eps = 0: below that of the smallest second moment.
_LEAST_DENOM = 2.0**-75


@dataclass(frozen=True)
class Scored:
    """A parameter whose weights are compared with those of others.

    Attributes:
        param: real, of any dtype; a DTensor is looked at by its local part.
        group: its group in the optimizer.
        state: its state, that has stepped; None to score by magnitude.
        lr_ratio: a common learning rate over that of its group.
        first: the number of its first weight, or row, among all that are compared.
    """

    param: Tensor
    group: dict[str, Any]
    state: dict[str, Any] | None
    lr_ratio: Any
    first: int

    @cached_property  # codes are decoded once an update
    def moment(self) -> Tensor | None:
        """The second moment that d is made of; None where the score needs none."""
        if self.state is None or self.group.get("metric") == "euclidean":
            return None
        return moment(self.state, "max_exp_avg_sq" if self.group["amsgrad"] else "exp_avg_sq")

    @property
    def sharding(self) -> Sharding:
        """How the parameter is spread over processes."""
        return sharding_of(self.param)


def lr_ratio(common: float | Tensor, own: float | Tensor) -> Any:
    """One learning rate over another; asks no device."""
    common, own = number_if_on_cpu(common), number_if_on_cpu(own)
    return 1.0 if own is common else common / own


def terms(one: Scored) -> tuple[Any, Any]:
    r"""The factor f and the offset o of a score |w| · √(f · √v + o), or of |w| · f without moments.

    That is |w| · √(d / lr), up to a factor common to all parameters. To drop a weight costs
    d w² / (2 lr) in the quadratic model of the loss whose minimum Adam's step is, and the score is
    the root of that. d is the denominator of the last step, or 1 in the euclidean metric. Without
    a state the score is |w|.
    """
    if one.moment is None:
        return (1.0 if one.state is None else one.lr_ratio**0.5), 0.0
    assert one.state is not None
    beta2, step = map(number_if_on_cpu, (one.group["betas"][1], one.state["step"]))
    eps = number_if_on_cpu(one.group["eps"])
    eps = eps.clamp_min(_LEAST_DENOM) if isinstance(eps, Tensor) else max(eps, _LEAST_DENOM)
    scale = _SCALE * one.lr_ratio
    return scale / (1 - beta2**step) ** 0.5, scale * eps


def scores(
    one: Scored,
    pieces: Pieces = chunks,
    weights: Sequence[Tensor] | None = None,
    dtype: torch.dtype | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield weights and their scores, see :func:`terms`.

    Args:
        one: the parameter.
        pieces: of its local part and of its moments.
        weights: the pieces of the parameter, if they are there already. (default: asked for)
        dtype: of the scores; float64 or float32. (default: the one that the step computes in)

    Yields:
        Flat tensors: the weights, and the scores. A score is 0 where the weight is, and NaN where
        the weight or d is.
    """
    weights = pieces(one.param) if weights is None else weights
    own = torch.promote_types(one.param.dtype, torch.float32)
    factor, offset = terms(one)
    if one.moment is None:
        for w in weights:
            yield w, (w.to(own).abs() * factor).to(dtype)
        return
    for w, v in zip(weights, pieces(one.moment), strict=True):
        yield w, v.to(own).sqrt().mul_(factor).add_(offset).sqrt_().mul_(w).abs_().to(dtype)
