"""One parameter group on its way through a step: parallel lists of tensors and the options."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

METRICS = ("adaptive", "euclidean")
_NUMBERS = ("lr", "beta1", "beta2", "eps", "weight_decay", "l1", "l2", "max_shrink")
LISTS = (
    "params", "grads", "exp_avgs", "exp_avg_sqs", "max_exp_avg_sqs", "state_steps",
)  # fmt: skip


@dataclass(slots=True)
class Group:
    """The arguments of one :func:`proxadam.prox_adam` call.

    ``max_exp_avg_sqs`` is empty unless ``amsgrad``; the other lists have one entry a parameter.
    The native module reads these attributes by name.
    """

    params: list[Tensor]
    grads: list[Tensor]
    exp_avgs: list[Tensor]
    exp_avg_sqs: list[Tensor]
    max_exp_avg_sqs: list[Tensor]
    state_steps: list[Tensor]
    lr: float | Tensor
    beta1: float | Tensor
    beta2: float | Tensor
    eps: float
    weight_decay: float
    l1: float | Tensor
    l2: float | Tensor
    metric: str
    max_shrink: float
    amsgrad: bool
    maximize: bool
    decoupled_weight_decay: bool
    foreach: bool | None
    capturable: bool
    differentiable: bool
    fused: bool | None

    @property
    def options(self) -> Group:
        """What the native module reads the options of."""
        return self

    @property
    def euclidean(self) -> bool:
        """The metric, as the native module reads it."""
        return self.metric == "euclidean"

    @property
    def has_prox(self) -> bool:
        """Whether there is anything to do after Adam; a strength off the host may be nonzero."""
        return any(on_device(value) or value != 0 for value in (self.l1, self.l2))

    @property
    def allows_kernel(self) -> bool:
        """Whether the options leave the step to a kernel, or demand one."""
        if self.differentiable:
            return False
        return bool(self.fused) or (self.fused is None and self.foreach is None)

    def name(self, index: int) -> str:
        """What messages call a parameter, such as "parameter 0 of shape (2, 3)"."""
        return f"parameter {index} of shape {tuple(self.params[index].shape)}"

    def tensor_lists(self) -> tuple[list[Tensor], ...]:
        """The lists of parameter-shaped tensors, in the order of the fields."""
        return (self.params, self.grads, self.exp_avgs, self.exp_avg_sqs, self.max_exp_avg_sqs)

    def take(self, indices: Sequence[int]) -> Group:
        """The same options over some of the parameters."""
        lists = {name: getattr(self, name) for name in LISTS}
        taken: dict[str, Any] = {
            name: [xs[i] for i in indices] if xs else [] for name, xs in lists.items()
        }
        return replace(self, **taken)


def check_step_options(group: Group) -> None:
    """Raise where an option, or the length of a list, would lead the step astray.

    Numbers of other makers, numpy's or fractions, become floats.

    Raises:
        TypeError: an option that is no number.
        ValueError: one out of range, or a tensor of several elements; lists that differ in length.
    """
    for tensors in (*group.tensor_lists()[1:4], group.state_steps):
        if len(tensors) != len(group.params):
            raise ValueError(
                f"expected a gradient, moments and a step for each of {len(group.params)} params,"
                f" got a list of {len(tensors)}"
            )
    for name in _NUMBERS:
        value = getattr(group, name)
        number = _number(name, value)
        if number is not value:
            setattr(group, name, number)
    check_prox_options(group.l1, group.l2, group.metric, group.max_shrink)
    for i, beta in enumerate((group.beta1, group.beta2)):
        if not on_device(beta) and not beta < 1:
            raise ValueError(f"Invalid beta parameter at index {i}: {beta}")


def check_prox_options(
    l1: float | Tensor, l2: float | Tensor, metric: str, max_shrink: float
) -> None:
    """Raise ValueError, naming the option and its value, where one is out of range."""
    for name, value in (("l1", l1), ("l2", l2), ("max_shrink", max_shrink)):
        _number(name, value)
        if on_device(value):
            continue
        if name == "max_shrink":
            if not value >= 1:
                raise ValueError(f"Invalid max_shrink value: {value}, expected ≥ 1 (inf allowed)")
        elif not 0 <= value < math.inf:
            raise ValueError(f"Invalid {name} value: {value}, expected finite and ≥ 0")
    if metric not in METRICS:
        raise ValueError(f"Invalid metric: {metric!r}, expected one of {METRICS}")


def _number(name: str, value: Any) -> float | Tensor:
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise ValueError(f"Tensor {name} must be 1-element, got shape {tuple(value.shape)}")
        return value
    if isinstance(value, (float, int)):
        return value
    try:
        return float(0.0 + value)  # float() alone would read a string
    except TypeError:
        raise TypeError(
            f"{name} is {value!r}, expected a number or a one-element tensor."
        ) from None


def on_device(value: float | Tensor) -> bool:
    """Whether reading the value would make the host wait for a device, or break a graph."""
    return isinstance(value, Tensor) and (not value.is_cpu or torch.compiler.is_compiling())
