"""What the schedulers ask of their arguments, each in one sentence."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from torch.optim import Optimizer


def check_optimizer(optimizer: object) -> None:
    """Raise TypeError for what is no optimizer."""
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"{type(optimizer).__name__} is not an Optimizer")


def check_option(optimizer: Optimizer, groups: Iterable[dict[str, Any]], name: str) -> None:
    """Raise ValueError where one of the groups lacks an option of ours."""
    if not all(name in group for group in groups):
        raise ValueError(
            f"expected groups with {name}, as ProxAdam's are, got those of"
            f" {type(optimizer).__name__}."
        )


def check_range(name: str, value: float, least: float) -> None:
    """Raise ValueError for a number that is not finite or below ``least``."""
    if not least <= value < math.inf:
        raise ValueError(f"Invalid {name}: {value}, expected finite and ≥ {least}")
