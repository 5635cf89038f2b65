"""Schedulers of l1, and of other penalties, in the shape of ``torch.optim.lr_scheduler``."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from .arguments import check_optimizer, check_option, check_range

__all__ = ["CubicL1", "L1Scheduler", "LinearL1", "PenaltyScheduler", "RampL1", "WarmupL1"]


class PenaltyScheduler:
    """What all have in common: it multiplies an option of each group by one common factor.

    The base values are what the groups have when the scheduler is built, so a group at 0 stays at
    0, and an optimizer takes one of these at a time for an option. Call :meth:`step` after each
    ``optimizer.step()``. A value that is a tensor is filled in place, as torch's schedulers do with
    a tensor lr: a captured CUDA graph and a compiled step see the new value.

    A subclass says what ``option`` and :meth:`factor` are.

    Args:
        optimizer: one whose groups have the option; what they have is that of step 0 from now on.

    Attributes:
        option: the name of what is multiplied, such as "l1".
        base_values: what the groups had when the scheduler was built; floats.
        last_epoch: how often :meth:`step` was called; torch's name.

    Raises:
        TypeError: not an optimizer.
        ValueError: groups without the option; an argument out of range, named with its value.
    """

    option: ClassVar[str]

    def __init__(self, optimizer: Optimizer) -> None:
        check_optimizer(optimizer)
        check_option(optimizer, optimizer.param_groups, self.option)
        self.optimizer = optimizer
        self.base_values = [float(group[self.option]) for group in optimizer.param_groups]
        self.last_epoch = 0
        self._write_values()

    def factor(self) -> float:
        """What the base values are multiplied by after ``last_epoch`` steps."""
        raise NotImplementedError

    def step(self) -> None:
        """Count a step and write the groups' values for the next one."""
        self.last_epoch += 1
        self._write_values()

    def get_last_values(self) -> list[float]:
        """What was last written, by group; floats, also where a group holds a tensor."""
        return list(self._last_values)

    def state_dict(self) -> dict[str, Any]:
        """All but the optimizer; numbers and lists of numbers, the options included."""
        return {name: value for name, value in vars(self).items() if name != "optimizer"}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a state, and write its values into the groups of the optimizer.

        Before or after the optimizer's own ``load_state_dict``, the result is the same.

        Raises:
            ValueError: the state is of another number of groups.
        """
        count = len(state_dict["base_values"])
        if count != len(self.optimizer.param_groups):
            raise ValueError(
                f"expected the state of {len(self.optimizer.param_groups)} parameter groups, got"
                f" one of {count}; build the optimizer as it was when the state was saved."
            )
        vars(self).update(state_dict)
        self._write_values()

    @torch.no_grad()
    def _write_values(self) -> None:
        groups = self.optimizer.param_groups
        if len(groups) != len(self.base_values):
            raise ValueError(
                f"expected the {len(self.base_values)} parameter groups that the scheduler was"
                f" built for, got {len(groups)}; build it after the last add_param_group."
            )
        factor = self.factor()
        self._last_values = [base * factor for base in self.base_values]
        for group, value in zip(groups, self._last_values, strict=True):
            if isinstance(group[self.option], Tensor):
                group[self.option].fill_(value)
            else:
                group[self.option] = value


class L1Scheduler(PenaltyScheduler):
    """A :class:`PenaltyScheduler` of l1. A subclass says what :meth:`factor` is."""

    option = "l1"

    def get_last_l1(self) -> list[float]:
        """The l1 last written, by group; floats, also where a group holds a tensor."""
        return self.get_last_values()


class RampL1(L1Scheduler):
    """Go from one multiple of the base l1 to another, in a straight line or along a power.

    The factor at step t is end_factor + (start_factor − end_factor) · (1 − x) ** power, where
    x = (t − delay) / total_iters, held between 0 and 1. A power above 1 is fast at first and
    gentle at the end.

    Args:
        optimizer: as in :class:`L1Scheduler`.
        total_iters: how many steps the way takes, ≥ 1.
        start_factor: multiple of the base l1 at its begin, finite and ≥ 0. (default: 0)
        end_factor: multiple of the base l1 at its end, finite and ≥ 0. (default: 1)
        delay: how many steps to stay at the start, ≥ 0. (default: 0)
        power: finite and above 0. (default: 1, a straight line)

    Raises:
        ValueError: an argument out of range, named with its value.

    Example:
        >>> param = torch.nn.Parameter(torch.ones(3))
        >>> ramp = RampL1(ProxAdamW([param], l1=0.5), total_iters=4, delay=1)
        >>> for _ in range(3):
        ...     ramp.step()
        >>> ramp.get_last_l1()
        [0.25]
    """

    def __init__(
        self,
        optimizer: Optimizer,
        total_iters: int,
        start_factor: float = 0.0,
        end_factor: float = 1.0,
        delay: int = 0,
        *,
        power: float = 1.0,
    ) -> None:
        check_range("total_iters", total_iters, 1)
        check_range("start_factor", start_factor, 0)
        check_range("end_factor", end_factor, 0)
        check_range("delay", delay, 0)
        if not 0 < power < math.inf:
            raise ValueError(f"Invalid power: {power}, expected finite and above 0")
        self.total_iters = total_iters
        self.start_factor = start_factor
        self.end_factor = end_factor
        self.delay = delay
        self.power = power
        super().__init__(optimizer)

    def factor(self) -> float:
        """The formula of the class."""
        done = min(max((self.last_epoch - self.delay) / self.total_iters, 0.0), 1.0)
        left: float = (1 - done) ** self.power
        return (1 - left) * self.end_factor + left * self.start_factor


LinearL1 = RampL1


class WarmupL1(RampL1):
    """:class:`RampL1` from 0 to the base l1 in a straight line, with ``delay`` in third place.

    Example:
        >>> param = torch.nn.Parameter(torch.ones(3))
        >>> warmup = WarmupL1(ProxAdamW([param], l1=0.5), total_iters=100)
        >>> warmup.get_last_l1()
        [0.0]
        >>> for _ in range(50):
        ...     warmup.step()
        >>> warmup.get_last_l1()
        [0.25]
    """

    def __init__(self, optimizer: Optimizer, total_iters: int, delay: int = 0) -> None:
        super().__init__(optimizer, total_iters, delay=delay)


class CubicL1(RampL1):
    """:class:`RampL1` with a power of 3, unless another is given.

    It is the curve along which Zhu and Gupta, *To prune, or not to prune* (2017), raise the
    sparsity.

    Example:
        >>> param = torch.nn.Parameter(torch.ones(3))
        >>> cubic = CubicL1(ProxAdamW([param], l1=1.0), total_iters=2)
        >>> cubic.step()
        >>> cubic.get_last_l1()
        [0.875]
    """

    def __init__(
        self,
        optimizer: Optimizer,
        total_iters: int,
        start_factor: float = 0.0,
        end_factor: float = 1.0,
        delay: int = 0,
        *,
        power: float = 3.0,
    ) -> None:
        super().__init__(optimizer, total_iters, start_factor, end_factor, delay, power=power)
