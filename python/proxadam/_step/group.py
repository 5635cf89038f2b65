"""One parameter group on its way through a step: parallel lists of tensors, and the options."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from .options import Options

# What messages call an entry of each list: "the gradient of parameter 0 of shape (2, 3)".
LISTS = {
    "params": "data",
    "grads": "gradient",
    "exp_avgs": "exp_avg",
    "exp_avg_sqs": "exp_avg_sq",
    "max_exp_avg_sqs": "max_exp_avg_sq",
    "exp_avg_exponents": "exp_avg_exponent",
    "exp_avg_sq_exponents": "exp_avg_sq_exponent",
    "state_steps": "step",
}
EXPONENT_LISTS = ("exp_avg_exponents", "exp_avg_sq_exponents")


@dataclass(frozen=True, slots=True)
class RowCut:
    """That other processes have parts of each row of a parameter.

    Attributes:
        numel: elements of a whole row.
        ranks: process groups, over each of which in turn sums over rows are added up.
    """

    numel: int
    ranks: tuple[Any, ...]


@dataclass(slots=True)
class Group:
    """The arguments of one :func:`proxadam.prox_adam` call.

    ``max_exp_avg_sqs`` is empty unless ``amsgrad``, and the exponents are unless the moments are
    codes; the other lists of tensors have one entry a parameter. ``numbers`` and ``offsets`` say
    what the elements draw that are rounded by chance (:mod:`proxadam._step.rounding_ops`): 0
    where they are empty. ``row_cuts`` has what l21 must know of DTensors. The native modules read
    these attributes by name.
    """

    params: list[Tensor]
    grads: list[Tensor]
    exp_avgs: list[Tensor]
    exp_avg_sqs: list[Tensor]
    max_exp_avg_sqs: list[Tensor]
    state_steps: list[Tensor]
    options: Options
    exp_avg_exponents: list[Tensor] = field(default_factory=list)
    exp_avg_sq_exponents: list[Tensor] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    row_cuts: list[RowCut | None] = field(default_factory=list)

    @classmethod
    def empty(cls, options: Options) -> Group:
        """A group without parameters, for :meth:`all_lists` to be filled."""
        return cls([], [], [], [], [], [], options)

    def all_lists(self) -> tuple[Any, ...]:
        """Every list of tensors, torch's before ours, and the numbers."""
        moments = self.exp_avgs, self.exp_avg_sqs, self.max_exp_avg_sqs
        exponents = self.exp_avg_exponents, self.exp_avg_sq_exponents
        return self.params, self.grads, *moments, self.state_steps, *exponents, self.numbers

    def state_lists(self) -> tuple[list[Tensor], ...]:
        """The lists of state: steps and maxima, moments, and the exponents of these."""
        moments = self.exp_avgs, self.exp_avg_sqs
        exponents = self.exp_avg_exponents, self.exp_avg_sq_exponents
        return self.state_steps, self.max_exp_avg_sqs, *moments, *exponents

    def by_format(self) -> list[Group]:
        """The group in two, where the moments of some parameters are codes and others' are not.

        The exponents are those of the first kind, in order.
        """
        if not self.exp_avg_exponents:
            return [self]
        dtypes = [m.dtype if isinstance(m, Tensor) else None for m in self.exp_avgs]
        coded = [i for i, dtype in enumerate(dtypes) if dtype == torch.uint8]
        others = [i for i, dtype in enumerate(dtypes) if dtype != torch.uint8]
        exponents = self.exp_avg_exponents, self.exp_avg_sq_exponents
        self.exp_avg_exponents, self.exp_avg_sq_exponents = [], []
        found = self.take(coded) if others else self
        found.exp_avg_exponents, found.exp_avg_sq_exponents = exponents
        return [found, self.take(others)] if others else [found]

    def check(self) -> None:
        """Raise where an option is out of range, or the lists differ in length.

        Raises:
            TypeError, ValueError, RuntimeError: see :meth:`Options.check`.
        """
        count = len(self.params)
        lists = [self.grads, self.exp_avgs, self.exp_avg_sqs, self.state_steps]
        lists += [self.max_exp_avg_sqs] if self.options.amsgrad else []
        if self.exp_avg_exponents:
            lists += [self.exp_avg_exponents, self.exp_avg_sq_exponents]
        for tensors in lists:
            if len(tensors) != count:
                raise ValueError(
                    f"expected a gradient, moments and a step for each of {count}"
                    f" params, got a list of {len(tensors)}"
                )
        self.options.check()
        if self.params:
            self.options.check_listwise()

    def name(self, index: int) -> str:
        """What messages call a parameter, such as "parameter 0 of shape (2, 3)"."""
        param = self.params[index]
        shape = "" if param.is_nested else f" of shape {tuple(param.shape)}"
        return f"parameter {index}{shape}"

    def lists(self) -> dict[str, list[Tensor]]:
        """The lists of tensors by their names, without those that the group does not have."""
        lists = {name: getattr(self, name) for name in LISTS}
        if not self.options.amsgrad:
            del lists["max_exp_avg_sqs"]
        if not self.exp_avg_exponents:
            del lists["exp_avg_exponents"], lists["exp_avg_sq_exponents"]
        return lists

    def of(self, index: int) -> dict[str, Tensor]:
        """The tensors of one parameter, by the names of their lists."""
        return {name: tensors[index] for name, tensors in self.lists().items()}

    def take(self, indices: Sequence[int]) -> Group:
        """The same options over some of the parameters."""
        lists: dict[str, list[Any]] = {**self.lists(), **self._others()}
        taken: dict[str, Any] = {
            name: [entries[i] for i in indices] for name, entries in lists.items()
        }
        return replace(self, **{"max_exp_avg_sqs": [], **taken})

    def _others(self) -> dict[str, list[Any]]:
        lists = {name: getattr(self, name) for name in ("numbers", "offsets", "row_cuts")}
        return {name: entries for name, entries in lists.items() if entries}
