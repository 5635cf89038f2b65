"""What it costs the loss to do without a weight, as the step sees it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .reading import Pieces, Sharding, chunks, denominators, number_if_on_cpu, sharding_of

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

    @property
    def sharding(self) -> Sharding:
        """How the parameter is spread over processes."""
        return sharding_of(self.param)


def lr_ratio(common: float | Tensor, own: float | Tensor) -> Any:
    """One learning rate over another; asks no device."""
    common, own = number_if_on_cpu(common), number_if_on_cpu(own)
    return 1.0 if own is common else common / own


def scores(
    one: Scored, pieces: Pieces = chunks, weights: Sequence[Tensor] | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    r"""Yield weights and their scores |w| · √(d / lr), up to a factor common to all.

    To drop a weight costs d w² / (2 lr) in the quadratic model of the loss whose minimum is Adam's
    step, and the score is the root of that. d is the denominator of the last step, or 1 in the
    euclidean metric. Without a state the score is |w|.

    Args:
        one: the parameter.
        pieces: of its local part and of its moments.
        weights: the pieces of the parameter, if they are there already. (default: asked for)

    Yields:
        Flat tensors: the weights; and the scores in float32, or float64 of a float64 parameter.
        A score is 0 where the weight is, and NaN where the weight or d is.
    """
    weights = pieces(one.param) if weights is None else weights
    dtype = torch.promote_types(one.param.dtype, torch.float32)
    if one.state is None or one.group.get("metric") == "euclidean":
        factor = 1.0 if one.state is None else one.lr_ratio**0.5
        for w in weights:
            yield w, w.to(dtype).abs() * factor
        return
    eps = one.group["eps"]
    eps = eps.clamp_min(_LEAST_DENOM) if isinstance(eps, Tensor) else max(eps, _LEAST_DENOM)
    scaled = denominators({**one.group, "eps": eps}, one.state, pieces, _SCALE * one.lr_ratio)
    for w, d in zip(weights, scaled, strict=True):
        yield w, d.to(dtype).sqrt_().mul_(w).abs_()


def bits_of(score: Tensor) -> Tensor:
    """Scores as int64, in their order; NaN comes last."""
    as_int = torch.int64 if score.dtype == torch.float64 else torch.int32
    return score.abs().view(as_int).long()  # the sign of a NaN says nothing


def score_of(bits: Tensor, dtype: torch.dtype) -> Tensor:
    """The inverse of :func:`bits_of`."""
    as_int = torch.int64 if dtype == torch.float64 else torch.int32
    return bits.to(as_int).view(dtype)
