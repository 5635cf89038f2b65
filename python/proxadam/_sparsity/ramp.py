"""A wanted share of zeros as a constraint, approached in the course of training."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from .arguments import check_optimizer, check_option, check_range
from .pruning.rows import RowPruner, rows_of
from .pruning.scores import Scored, lr_ratio
from .pruning.weights import WeightPruner
from .reading import has_stepped, number_if_on_cpu

__all__ = ["SparsityRamp"]

_CHOICES = {
    "score": ("metric", "magnitude"),
    "scope": ("global", "tensor"),
    "unit": ("weight", "row"),
}


class SparsityRamp:
    r"""Raise the share of zeros to a wanted one, by zeroing the weights that cost the least.

    At every ``every``-th step from ``begin`` to ``end``, and at ``end``, the share is

    .. math::
        sparsity \cdot (1 - (1 - x)^3), \qquad x = (t - begin) / (end - begin),

    and the weights with the lowest scores become +0.0, until exactly that share of them is zero,
    or as many as there were already. To drop weight i costs d_i w_i² / (2 lr) in the quadratic
    model of the loss whose minimum Adam's step is, with d the step's denominator. So keeping
    those with the largest scores d w² / lr is the projection of the weights onto the given count
    of nonzeros in Adam's metric. Ties go by group, parameter and position, lower ones first.

    From ``begin`` on the groups have ``keep_zeros`` on, so that a zero stays, also one that a
    weight began with. Between the updates nothing is computed. Call :meth:`step` after each
    ``optimizer.step()``. Let ``end`` be at 50 to 80 % of the training, before the learning rate
    has decayed, for the rest makes up for what was lost; and let there be 100 updates or more.

    Args:
        optimizer: ProxAdam or ProxAdamW.
        sparsity: the share of zeros at the end, ≥ 0 and below 1.
        begin: the step of the ramp's begin, ≥ 0.
        end: the step at which the share is reached, above ``begin``.
        every: steps between two updates, ≥ 1. (default: 1)
        groups: indices of the groups to prune. None takes those whose l1 or weight_decay is not
            0 when the ramp is built, as :func:`proxadam.param_groups` makes them. (default: None)
        score: "metric", as above, with d = 1 in groups of the euclidean metric; or "magnitude",
            |w| alone, which over all rows of a model can zero a whole layer. (default: "metric")
        scope: "global" compares all weights of the groups with one another; "tensor" gives each
            parameter the same share. (default: "global")
        unit: "weight"; or "row", which is zeroed throughout or not at all, and is what has one
            index in the first dimension. Its score is the sum of its weights', and the share is
            one of rows. (default: "weight")

    Attributes:
        last_sparsity: the share of zeros, or of rows that are zero, behind the last update; 0.0
            before the first. A float.
        last_epoch: how often :meth:`step` was called; torch's name.

    Raises:
        TypeError: not an optimizer.
        ValueError: groups without keep_zeros, or none to prune; groups of different metrics with
            the metric's score; an option out of range, named with its value. In :meth:`step`, at
            an update: a group whose learning rate is 0, or that has not stepped yet; a complex
            parameter. Nothing is changed then.

    The host waits for the device once an update, and one time in some hundred, where a sample
    misjudged the border, twice. DTensors are pruned as the whole tensors, with all-reduces of a few
    kilobytes: all processes take the same steps, and must call :meth:`step` together. FSDP1's
    shards are plain tensors, of which each process prunes its own share. A parameter that has not
    stepped is left out, and so is one without elements. A captured CUDA graph has the
    ``keep_zeros`` of its capture: let ``begin`` be 0, or capture again. Source of the curve: Zhu
    and Gupta, *To prune, or not to prune* (2017), formula (1).

    Example:
        >>> model = torch.nn.Linear(10, 10)
        >>> optimizer = ProxAdamW(param_groups(model, l1=0))
        >>> ramp = SparsityRamp(optimizer, 0.9, begin=2, end=10)
        >>> for _ in range(10):
        ...     _ = model(torch.randn(4, 10)).square().sum().backward()
        ...     optimizer.step()
        ...     ramp.step()
        >>> int((model.weight == 0).sum())
        90
    """

    def __init__(
        self,
        optimizer: Optimizer,
        sparsity: float,
        begin: int,
        end: int,
        every: int = 1,
        *,
        groups: Iterable[int] | None = None,
        score: str = "metric",
        scope: str = "global",
        unit: str = "weight",
    ) -> None:
        check_optimizer(optimizer)
        if not 0 <= sparsity < 1:
            raise ValueError(f"Invalid sparsity: {sparsity}, expected ≥ 0 and below 1")
        check_range("begin", begin, 0)
        if not begin < end < math.inf:
            raise ValueError(f"Invalid end: {end}, expected finite and above begin, {begin}")
        check_range("every", every, 1)
        for name, value in (("score", score), ("scope", scope), ("unit", unit)):
            if value not in _CHOICES[name]:
                raise ValueError(f"Invalid {name}: {value!r}, expected one of {_CHOICES[name]}")
        self.optimizer = optimizer
        self.sparsity = sparsity
        self.begin = begin
        self.end = end
        self.every = every
        self.score = score
        self.scope = scope
        self.unit = unit
        self.groups = _chosen(optimizer, groups)
        self.last_epoch = 0
        self.last_sparsity = 0.0
        self._check_groups()
        self._keep_zeros()

    def share(self) -> float:
        """The share that is wanted after ``last_epoch`` steps."""
        done = min(max((self.last_epoch - self.begin) / (self.end - self.begin), 0.0), 1.0)
        return self.sparsity * (1 - (1 - done) ** 3)

    @torch.no_grad()
    def step(self) -> None:
        """Count a step; at an update, zero the weights with the lowest scores."""
        self.last_epoch += 1
        since = self.last_epoch - self.begin
        due = since >= 0 and (since % self.every == 0 or self.last_epoch == self.end)
        try:
            if due and self.last_epoch <= self.end:
                self._check_groups()
                self.last_sparsity = self._update(self.share())
        except Exception:
            self.last_epoch -= 1
            raise
        self._keep_zeros()

    def state_dict(self) -> dict[str, Any]:
        """All but the optimizer; numbers, strings and a list of numbers."""
        return {name: value for name, value in vars(self).items() if name != "optimizer"}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a state, to the same bits.

        Before or after the optimizer's own ``load_state_dict``, the result is the same.

        Raises:
            ValueError: the state is of groups that the optimizer does not have.
        """
        count = len(self.optimizer.param_groups)
        if max(state_dict["groups"]) >= count:
            raise ValueError(
                f"expected the state of {count} parameter groups, got one of groups"
                f" {state_dict['groups']}; build the optimizer as it was when the state was saved."
            )
        vars(self).update(state_dict)
        self._keep_zeros()

    def _keep_zeros(self) -> None:
        if self.last_epoch >= self.begin:
            for i in self.groups:
                self.optimizer.param_groups[i]["keep_zeros"] = True

    def _check_groups(self) -> None:
        chosen = [self.optimizer.param_groups[i] for i in self.groups]
        metrics = {group["metric"] for group in chosen}
        if self.score == "metric" and len(metrics) > 1:
            raise ValueError(
                "expected groups of one metric, got adaptive and euclidean ones, whose scores"
                " cannot be compared; take one ramp for each, with groups=[i], or"
                " score='magnitude'."
            )

    def _update(self, share: float) -> float:
        """Zero so many weights, and return the share that is zero then."""
        for lr in self._lrs():
            if not isinstance(lr, Tensor):
                _check_lr(lr)
        every = self._scored()
        problems = [[one] for one in every] if self.scope == "tensor" else [every]
        pruners: list[RowPruner | WeightPruner] = [
            RowPruner(problem, share)
            if self.unit == "row"
            else WeightPruner(problem, share, self.last_sparsity)
            for problem in problems
        ]
        rates = [lr for lr in self._lrs() if isinstance(lr, Tensor)]
        looking = pruners
        while looking:
            looked = [one.look() for one in looking]
            numbers = _read([*rates, *(tensor for tensors in looked for tensor in tensors)])
            for (rate,) in numbers[: len(rates)]:
                _check_lr(rate)
            counts = iter(numbers[len(rates) :])
            looking = [
                one
                for one, tensors in zip(looking, looked, strict=True)
                if not one.settle([next(counts) for _ in tensors])
            ]
        for one in pruners:
            one.zero()
        return sum(one.then for one in pruners) / sum(one.count for one in pruners)

    def _lrs(self) -> list[Any]:
        """The groups' learning rates: numbers, and tensors on a device."""
        return [number_if_on_cpu(self.optimizer.param_groups[i]["lr"]) for i in self.groups]

    def _scored(self) -> list[Scored]:
        scored, first = [], 0
        common = self.optimizer.param_groups[self.groups[0]]["lr"]
        for i in self.groups:
            group = self.optimizer.param_groups[i]
            states = [(param, self.optimizer.state.get(param, {})) for param in group["params"]]
            stepped = [(p, own) for p, own in states if has_stepped(own) and p.numel()]
            if not stepped:
                raise ValueError(
                    f"expected groups that have taken a step, got group {i} without; call step()"
                    " after optimizer.step(), or leave the group out of groups=."
                )
            ratio = lr_ratio(common, group["lr"])
            for param, own in stepped:
                if param.is_complex():
                    raise ValueError(
                        f"expected real parameters, got a complex one of shape"
                        f" {tuple(param.shape)} in group {i}."
                    )
                state = own if self.score == "metric" else None
                # By tensor, each parameter is compared with itself alone.
                start = first if self.scope == "global" else 0
                scored.append(Scored(param, group, state, ratio, start))
                first += rows_of(param) if self.unit == "row" else param.numel()
        return scored


def _check_lr(lr: float) -> None:
    if not lr > 0:
        raise ValueError(
            f"expected a learning rate above 0 at an update, got {lr}; let the ramp end before the"
            " learning rate does."
        )


def _chosen(optimizer: Optimizer, indices: Iterable[int] | None) -> list[int]:
    groups = optimizer.param_groups
    if indices is None:
        chosen = [
            i
            for i, group in enumerate(groups)
            if float(group.get("l1", 0.0)) != 0 or float(group["weight_decay"]) != 0
        ]
    else:
        chosen = [range(len(groups))[i] for i in indices]
    if not chosen:
        raise ValueError(
            "expected a group to prune, got none whose l1 or weight_decay is not 0; name them in"
            " groups=."
        )
    check_option(optimizer, (groups[i] for i in chosen), "keep_zeros")
    return chosen


def _read(tensors: Sequence[Tensor]) -> list[list[float]]:
    """Bring numbers to the host in one wait: of each tensor, all of them."""
    home = next((t.device for t in tensors if not t.is_cpu), torch.device("cpu"))
    flat = [t.reshape(-1).to(home, torch.float64, non_blocking=True) for t in tensors]
    numbers = iter(torch.cat(flat).tolist())
    return [[next(numbers) for _ in range(t.numel())] for t in tensors]
