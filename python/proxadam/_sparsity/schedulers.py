"""Schedulers of l1 in the shape of ``torch.optim.lr_scheduler``."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from .arguments import check_optimizer, check_option, check_range
from .reading import count_nonzeros, read_numbers

# How far below the wanted share one is steered that is kept in the end, in log odds.
_BELOW = 0.2

__all__ = ["CubicL1", "L1Scheduler", "LinearL1", "RampL1", "TargetSparsityL1", "WarmupL1"]


class L1Scheduler:
    """What all have in common: it multiplies the l1 of each group by one common factor.

    The base values are the groups' l1 when the scheduler is built, so a group at 0 stays at 0, and
    an optimizer takes one of these at a time. Call :meth:`step` after each ``optimizer.step()``.
    An l1 that is a tensor is filled in place, as torch's schedulers do with a tensor lr: a
    captured CUDA graph and a compiled step see the new value.

    A subclass says what :meth:`factor` is.

    Args:
        optimizer: one whose groups have l1; its l1 are those of step 0 from now on.

    Attributes:
        base_l1s: the groups' l1 when the scheduler was built; floats.
        last_epoch: how often :meth:`step` was called; torch's name.

    Raises:
        TypeError: not an optimizer.
        ValueError: groups without l1; an option out of range, named with its value.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        check_optimizer(optimizer)
        check_option(optimizer, optimizer.param_groups, "l1")
        self.optimizer = optimizer
        self.base_l1s = [float(group["l1"]) for group in optimizer.param_groups]
        self.last_epoch = 0
        self._write_l1s()

    def factor(self) -> float:
        """What the base values are multiplied by after ``last_epoch`` steps."""
        raise NotImplementedError

    def step(self) -> None:
        """Count a step and write the groups' l1 for the next one."""
        self.last_epoch += 1
        self._write_l1s()

    def get_last_l1(self) -> list[float]:
        """The l1 last written, by group; floats, also where a group holds a tensor."""
        return list(self._last_l1s)

    def state_dict(self) -> dict[str, Any]:
        """All but the optimizer; numbers and lists of numbers, the options included."""
        return {name: value for name, value in vars(self).items() if name != "optimizer"}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a state, and write its l1 into the groups of the optimizer.

        Before or after the optimizer's own ``load_state_dict``, the result is the same.

        Raises:
            ValueError: the state is of another number of groups.
        """
        count = len(state_dict["base_l1s"])
        if count != len(self.optimizer.param_groups):
            raise ValueError(
                f"expected the state of {len(self.optimizer.param_groups)} parameter groups, got"
                f" one of {count}; build the optimizer as it was when the state was saved."
            )
        vars(self).update(state_dict)
        self._write_l1s()

    @torch.no_grad()
    def _write_l1s(self) -> None:
        groups = self.optimizer.param_groups
        if len(groups) != len(self.base_l1s):
            raise ValueError(
                f"expected the {len(self.base_l1s)} parameter groups that the scheduler was built"
                f" for, got {len(groups)}; build it after the last add_param_group."
            )
        factor = self.factor()
        self._last_l1s = [base * factor for base in self.base_l1s]
        for group, value in zip(groups, self._last_l1s, strict=True):
            if isinstance(group["l1"], Tensor):
                group["l1"].fill_(value)
            else:
                group["l1"] = value


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
    """:class:`RampL1` from 0 to the base l1 in a straight line, with ``delay`` in third place."""

    def __init__(self, optimizer: Optimizer, total_iters: int, delay: int = 0) -> None:
        super().__init__(optimizer, total_iters, delay=delay)


class CubicL1(RampL1):
    """:class:`RampL1` with a power of 3, unless another is given.

    It is the curve along which Zhu and Gupta, *To prune, or not to prune* (2017), raise the
    sparsity.
    """

    def __init__(self, *args: Any, power: float = 3.0, **kwargs: Any) -> None:
        super().__init__(*args, power=power, **kwargs)


class TargetSparsityL1(L1Scheduler):
    """Steer to a share of exact zeros, counted over the groups whose l1 is not 0.

    All of these groups' l1 are multiplied by one factor, which begins at ``start_factor``. Every
    ``every`` steps the zeros are counted, which is the one time that the host waits for the
    device, and with s their share and the error e = logit(sparsity) − logit(s)

        log factor += gain · e + damping · (e − e before),

    by no more than log ``max_change``, and held between 1 / ``max_factor`` and ``max_factor``.
    Where zeros or nonzeros are less than a tenth of what is wanted, a tenth is put for them.

    This is a PI controller in its velocity form. It works on log l1 and log odds, for these follow
    one another at a slope of about 1, whatever the sparsity. ``gain`` is how much of the error is
    made up in an update. ``damping`` takes back what is on its way already, for weights need time
    to reach zero; where log odds are steeper in log l1 than 1 / damping, it begins to oscillate.
    Nothing is summed up but the factor, and that within its bounds, so that nothing winds up:
    where the target cannot be reached, l1 rests at a bound, and leaves it at the first update
    whose error has the other sign.

    The approach from below is the safe one, for a network that is zero throughout has no gradient
    to come back with. It takes 50 to 100 updates: let ``every`` be a two-hundredth of the training,
    or less, and the target be reached before the learning rate has decayed, for then weights move
    no more. A base l1 that is wrong by a factor of ten costs some of them.

    The pull on the weights that are left costs accuracy. With ``until`` it goes: up to that step
    the share is steered to a little below the wanted one (0.2 less in log odds); from then on
    ``keep_zeros`` is on in these groups and the zeros are counted at every step; and as soon as
    the share is reached, l1 is 0. Without ``until``, do not set ``keep_zeros`` by hand: zeros
    that come and go are what the steering holds in balance, and kept ones overshoot.

    Args:
        optimizer: as in :class:`L1Scheduler`; :func:`proxadam.suggest_l1` gives a base l1.
        sparsity: the wanted share of exact zeros, above 0 and below 1.
        every: steps between two updates, ≥ 1. (default: 100)
        gain: part of the error that moves l1 at each update, above 0 and ≤ 1. (default: 0.05)
        damping: part of the change of the error that does, ≥ 0. (default: 0.3)
        max_change: the largest factor of an update, above 1. (default: 1.5)
        start_factor: multiple of the base l1 to begin with, within the bounds. (default: 0.1)
        max_factor: l1 stays within this factor of its base, above 1. (default: 100)
        until: the step from which zeros are kept, ≥ 1, best at a third of the training; None
            steers to the end. (default: None)

    Raises:
        ValueError: also if every l1 is 0: there is nothing to multiply.

    Warns:
        UserWarning: with ``until``, where the learning rates of these groups have come to 0 and
            the share has not been reached: l1 then stays as it is.

    DTensors are counted as by :func:`proxadam.sparsity`: all processes take the same steps, and
    must call :meth:`step` together. Resumed from its ``state_dict``, it goes on to the same bits.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        sparsity: float,
        every: int = 100,
        *,
        gain: float = 0.05,
        damping: float = 0.3,
        max_change: float = 1.5,
        start_factor: float = 0.1,
        max_factor: float = 100.0,
        until: int | None = None,
    ) -> None:
        if not 0 < sparsity < 1:
            raise ValueError(f"Invalid sparsity: {sparsity}, expected above 0 and below 1")
        check_range("every", every, 1)
        if not 0 < gain <= 1:
            raise ValueError(f"Invalid gain: {gain}, expected above 0 and ≤ 1")
        check_range("damping", damping, 0)
        for name, value in (("max_change", max_change), ("max_factor", max_factor)):
            if not 1 < value < math.inf:
                raise ValueError(f"Invalid {name}: {value}, expected finite and above 1")
        if not 1 / max_factor <= start_factor <= max_factor:
            raise ValueError(
                f"Invalid start_factor: {start_factor}, expected from 1 / max_factor to max_factor"
            )
        if until is not None:
            check_range("until", until, 1)
            check_optimizer(optimizer)
            check_option(optimizer, optimizer.param_groups, "keep_zeros")
        self.sparsity = sparsity
        self.every = every
        self.until = until
        self.gain = gain
        self.damping = damping
        self.max_change = max_change
        self.max_factor = max_factor
        self._log_factor = math.log(start_factor)
        self._error: float | None = None
        self._reached = self._has_warned = False
        super().__init__(optimizer)
        if not any(self.base_l1s):
            raise ValueError(
                "expected a group whose l1 is not 0, got none to steer; suggest_l1 gives a first"
                " guess."
            )

    def factor(self) -> float:
        """What the last update made of it; 0 once ``until`` is past and the share is reached."""
        return 0.0 if self._reached else math.exp(self._log_factor)

    def step(self) -> None:
        """Count a step; at every ``every``-th, count the zeros and correct l1."""
        keeps = self.until is not None and self.last_epoch + 1 >= self.until
        updates = (self.last_epoch + 1) % self.every == 0
        if not self._reached and (keeps or updates):
            share = self._share_of_zeros()
            self._reached = keeps and share >= self.sparsity
            if updates and not self._reached:
                self._correct(share, self.sparsity if keeps else self._aim())
        super().step()
        if keeps:
            self._keep_zeros()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As :meth:`L1Scheduler.load_state_dict`."""
        super().load_state_dict(state_dict)
        if self.until is not None and self.last_epoch >= self.until:
            self._keep_zeros()

    def _keep_zeros(self) -> None:
        groups = zip(self.optimizer.param_groups, self.base_l1s, strict=True)
        steered = [group for group, base in groups if base]
        for group in steered:
            group["keep_zeros"] = True
        if self._reached or self._has_warned or any(float(group["lr"]) for group in steered):
            return
        self._has_warned = True
        warnings.warn(
            f"the learning rate is 0 and the share of zeros has not reached {self.sparsity}; l1"
            " stays as it is. Let `until` be earlier, or start_factor higher.",
            stacklevel=3,
        )

    def _aim(self) -> float:
        """What is steered to before zeros are kept: from then on their number only grows."""
        if self.until is None:
            return self.sparsity
        return 1 / (1 + math.exp(_BELOW - _logit(self.sparsity)))

    def _correct(self, share: float, aim: float) -> None:
        share = min(max(share, aim / 10), 1 - (1 - aim) / 10)
        error = _logit(aim) - _logit(share)
        change = self.gain * error
        if self._error is not None:
            change += self.damping * (error - self._error)
        self._error = error
        most, bound = math.log(self.max_change), math.log(self.max_factor)
        self._log_factor += min(max(change, -most), most)
        self._log_factor = min(max(self._log_factor, -bound), bound)

    def _share_of_zeros(self) -> float:
        groups = zip(self.optimizer.param_groups, self.base_l1s, strict=True)
        params = [param for group, base in groups if base for param in group["params"]]
        weights: int = sum(param.numel() for param in params)
        return 1 - sum(read_numbers(count_nonzeros(params))) / max(weights, 1)


def _logit(share: float) -> float:
    return math.log(share / (1 - share))
