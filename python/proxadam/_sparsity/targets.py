"""Schedulers that steer a penalty to a wanted share of zeros."""

from __future__ import annotations

import math
import warnings
from typing import Any, ClassVar

from torch import Tensor
from torch.optim import Optimizer

from .arguments import check_optimizer, check_option, check_range
from .matrix_rows import count_dead_rows, row_count
from .reading import count_nonzeros, read_numbers
from .schedulers import L1Scheduler, PenaltyScheduler

# How far below the wanted share one is steered that is kept in the end, in log odds.
_BELOW = 0.2

__all__ = ["TargetRowSparsity", "TargetSparsityL1"]


class _Target(PenaltyScheduler):
    """The law of control, and what comes of ``until``; see :class:`TargetSparsityL1`.

    A subclass says what :meth:`share` counts.
    """

    _counted: ClassVar[str]

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
        if not any(self.base_values):
            raise ValueError(
                f"expected a group whose {self.option} is not 0, got none to steer;"
                f" suggest_{self.option} gives a first guess."
            )

    def factor(self) -> float:
        """What the last update made of it; 0 once ``until`` is past and the share is reached."""
        return 0.0 if self._reached else math.exp(self._log_factor)

    def share(self) -> float:
        """The share that is steered, as it is now; the host waits for the device."""
        raise NotImplementedError

    def step(self) -> None:
        """Count a step; at every ``every``-th, count what is zero and correct the option."""
        keeps = self.until is not None and self.last_epoch + 1 >= self.until
        updates = (self.last_epoch + 1) % self.every == 0
        if not self._reached and (keeps or updates):
            share = self.share()
            self._reached = keeps and share >= self.sparsity
            if updates and not self._reached:
                self._correct(share, self.sparsity if keeps else self._aim())
        super().step()
        if keeps:
            self._keep_zeros()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As :meth:`PenaltyScheduler.load_state_dict`."""
        super().load_state_dict(state_dict)
        if self.until is not None and self.last_epoch >= self.until:
            self._keep_zeros()

    def _keep_zeros(self) -> None:
        groups = zip(self.optimizer.param_groups, self.base_values, strict=True)
        steered = [group for group, base in groups if base]
        for group in steered:
            group["keep_zeros"] = True
        if self._reached or self._has_warned or any(float(group["lr"]) for group in steered):
            return
        self._has_warned = True
        warnings.warn(
            f"the learning rate is 0 and the share of {self._counted} has not reached"
            f" {self.sparsity}; {self.option} stays as it is. Let `until` be earlier, or"
            " start_factor higher.",
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

    def _steered(self) -> list[Tensor]:
        groups = zip(self.optimizer.param_groups, self.base_values, strict=True)
        return [param for group, base in groups if base for param in group["params"]]


class TargetSparsityL1(_Target, L1Scheduler):
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

    Example:
        >>> model = torch.nn.Linear(8, 8)
        >>> optimizer = ProxAdamW(param_groups(model, l1=1e-3))
        >>> scheduler = TargetSparsityL1(optimizer, 0.9, every=10)
        >>> for _ in range(20):
        ...     _ = model(torch.randn(4, 8)).square().sum().backward()
        ...     optimizer.step()
        ...     scheduler.step()
        >>> 1e-4 < scheduler.get_last_l1()[0] < 1e-3
        True
    """

    _counted = "zeros"

    def share(self) -> float:
        """The share of zeros as it is now; the host waits for the device."""
        params = self._steered()
        weights: int = sum(param.numel() for param in params)
        return 1 - sum(read_numbers(count_nonzeros(params))) / max(weights, 1)


class TargetRowSparsity(_Target):
    """Steer l21 to a share of rows that are zero throughout, in the groups whose l21 is not 0.

    Counted are the rows of parameters of two dimensions and more. The law, the arguments and the
    errors are those of :class:`TargetSparsityL1`, with l21 in the place of l1 and rows in that of
    weights, and so is what is said of shards; :func:`proxadam.suggest_l21` gives a base l21.

    With ``until``, ``keep_zeros`` holds the rows that are dead, and in the others those zeros that
    l1 has made; as soon as the share of rows is reached, l21 is 0, and l1 stays as it is.

    Example:
        >>> model = torch.nn.Linear(8, 8)
        >>> optimizer = ProxAdamW(param_groups(model, l1=0, l21=1e-3))
        >>> scheduler = TargetRowSparsity(optimizer, 0.5, every=10)
        >>> for _ in range(20):
        ...     _ = model(torch.randn(4, 8)).square().sum().backward()
        ...     optimizer.step()
        ...     scheduler.step()
        >>> 1e-4 < scheduler.get_last_values()[0] < 1e-3
        True
    """

    option = "l21"
    _counted = "dead rows"

    def share(self) -> float:
        """The share of dead rows as it is now; the host waits for the device."""
        params = self._steered()
        return sum(read_numbers(count_dead_rows(params))) / max(sum(map(row_count, params)), 1)


def _logit(share: float) -> float:
    return math.log(share / (1 - share))
