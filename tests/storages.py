"""How a parameter, its gradient and its moments are stored, and how close a result must come.

A storage is data: a row of ``STORAGES``. The fixture ``storage`` runs a test over all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

NAMES = {
    torch.float32: "fp32",
    torch.float64: "fp64",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
}

# The step has about ten roundings; in float64 the goal is looser than that by choice.
OPMATH = {torch.float64: 1e-12, torch.float32: 8 * 2.0**-23}

# 16-bit tensors are computed in float32 and rounded once: half a unit in the last place more.
ROUNDING = {
    torch.float64: 0.0,
    torch.float32: 0.0,
    torch.bfloat16: 2.0**-8,
    torch.float16: 2.0**-11,
}

# Below its smallest normal number a format has absolute, not relative, precision.
SMALLEST = {
    torch.float64: 0.0,
    torch.float32: 2.0**-149,
    torch.bfloat16: 2.0**-133,
    torch.float16: 2.0**-25,
}


@dataclass(frozen=True)
class Storage:
    """The dtypes of a parameter, of its gradient and of its moments.

    ``by_chance`` rounds 16-bit moments and parameters so.
    """

    param: torch.dtype
    grad: torch.dtype
    state: torch.dtype
    by_chance: bool = False

    @property
    def name(self) -> str:
        """Such as "fp32", or "bf16-grad32-state32"."""
        parts = [NAMES[self.param]]
        parts += ["grad32"] if self.grad != self.param else []
        parts += ["state" + NAMES[self.state].lstrip("fp")] if self.state != self.param else []
        parts += ["chance"] if self.by_chance else []
        return "-".join(parts)

    @property
    def opmath(self) -> torch.dtype:
        """What a step is computed in."""
        return torch.float64 if self.param == torch.float64 else torch.float32

    @property
    def options(self) -> dict[str, Any]:
        """What the optimizer must be told."""
        own = self.state == self.param and not self.by_chance
        return {} if own else {"state_dtype": self.state}

    @property
    def is_exact(self) -> bool:
        """Whether nothing is rounded when it is stored."""
        return self.param == self.opmath and not self.by_chance

    def parameter(self, values: Tensor) -> Parameter:
        """A parameter with these values, which takes gradients in the storage's dtype."""
        param = Parameter(values.to(self.param))
        param.grad_dtype = self.grad
        return param

    def weights(self, *shapes: tuple[int, ...]) -> list[Parameter]:
        """Random parameters with random gradients."""
        params = [self.parameter(torch.randn(shape, dtype=self.param)) for shape in shapes]
        for param in params:
            param.grad = self.gradient(torch.randn_like(param))
        return params

    def gradient(self, values: Tensor) -> Tensor:
        """A gradient with the values that a parameter of this storage would see."""
        return values.to(self.grad)


OWN = [Storage(dtype, dtype, dtype) for dtype in NAMES]
WIDE = [
    Storage(dtype, grad, state)
    for dtype in (torch.bfloat16, torch.float16)
    for grad in (dtype, torch.float32)
    for state in (dtype, torch.float32)
    if (grad, state) != (dtype, dtype)
]
BY_CHANCE = [
    Storage(torch.float32, torch.float32, torch.bfloat16, by_chance=True),
    Storage(torch.bfloat16, torch.bfloat16, torch.bfloat16, by_chance=True),
    Storage(torch.float16, torch.float32, torch.bfloat16, by_chance=True),
]
STORAGES = OWN + WIDE + BY_CHANCE
FP32, FP64 = OWN[:2]

# For tests of what does not depend on how gradients and moments are stored beside the parameter.
each_dtype = pytest.mark.parametrize("dtype", NAMES)
each_storage = pytest.mark.parametrize("storage", STORAGES, ids=lambda storage: storage.name)


def assert_close(actual: Tensor, expected, scale, storage: Storage, what: str = "") -> None:
    """``actual`` is ``expected`` but for the storage's arithmetic and its own rounding.

    An error of a parameter is measured on the oracle's scale (see ``oracle_step``), an error of a
    moment against the moment and the gradient that went into it.
    """
    like = {"dtype": torch.float64, "device": actual.device}
    expected = torch.as_tensor(expected, **like)
    allowed = torch.as_tensor(scale, **like) * OPMATH[storage.opmath]
    units = 2 if storage.by_chance else 1  # a whole unit in the last place, not half
    allowed = allowed + units * (ROUNDING[actual.dtype] * expected.abs() + SMALLEST[actual.dtype])
    excess = (actual.detach().double() - expected).abs() - allowed
    worst = excess.argmax() if excess.numel() else None
    assert worst is None or excess.flatten()[worst] <= 0, (
        f"{what}[{worst}]: {actual.flatten()[worst].item():.9g}, expected"
        f" {expected.flatten()[worst].item():.9g} ± {allowed.flatten()[worst].item():.2g}"
    )
