"""The formats that a parameter and its moments are kept in, for what must hold in each of them.

A format is data: a row of ``FORMATS``. Its first shape in ``SHAPES`` takes codes where the format
has some, the others keep float32 there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

import tools
from proxadam._step.rounding_ops import BLOCK, InMemory

# Everything that moves or shrinks a weight and goes with every format.
LIVELY = {name: value for name, value in tools.BUSY.items() if name != "amsgrad"}
SHAPES = [(70, 61), (9, 3), (7,)]  # 17 blocks, of which the last is not full


def _exact(values: Tensor, _: Tensor) -> Tensor:
    return torch.zeros_like(values)


def _bfloat16(values: Tensor, _: Tensor) -> Tensor:
    return values.abs() * 2.0**-8


def _code(values: Tensor, largest: Tensor) -> Tensor:
    # A first moment below 2⁻¹⁴ of the largest is 0, and a second one below 2⁻³⁰ the least code.
    return (values.abs() * 2.0**-4).maximum(largest * 2.0**-13.9)


@dataclass(frozen=True)
class Kept:
    """How a parameter and its moments are kept.

    Attributes:
        name: the id of a test.
        options: of the optimizer.
        dtype: of the parameters.
        moments: of the parameters that the format fits; None for their own.
        error: of moments that are rounded to the nearest, given them and their block's largest.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32
    moments: torch.dtype | None = None
    error: Callable[[Tensor, Tensor], Tensor] = _exact

    def weights(self, *shapes: tuple[int, ...]) -> list[Parameter]:
        """Random parameters with random gradients."""
        return tools.weights(*(shapes or SHAPES), dtype=self.dtype)

    def allowed(self, values: Tensor, largest: Tensor) -> Tensor:
        """The largest error of moments that are encoded."""
        fits = values.numel() >= 4096 or self.moments is not torch.uint8
        return self.error(values, largest) if fits else torch.zeros_like(values)


EIGHT = {"state_dtype": "8bit"}
FP32 = Kept("fp32")
BF16 = Kept("bf16", {"state_dtype": torch.bfloat16}, moments=torch.bfloat16, error=_bfloat16)
CODED = Kept("8bit", EIGHT, moments=torch.uint8, error=_code)
SMALL = [BF16, CODED]
NARROW = [
    Kept("bf16-weights-state32", {"state_dtype": torch.float32, "stochastic_rounding": True},
         torch.bfloat16, torch.float32),
    Kept("bf16-weights", {"state_dtype": torch.bfloat16}, torch.bfloat16, torch.bfloat16,
         _bfloat16),
    Kept("bf16-weights-8bit", EIGHT, torch.bfloat16, torch.uint8, _code),
    Kept("fp16-weights-8bit", EIGHT, torch.float16, torch.uint8, _code),
]  # fmt: skip
FORMATS = [FP32, *SMALL, *NARROW]


def each_format(formats: list[Kept] = FORMATS, name: str = "kept") -> Any:
    """The test gets each of the formats in turn."""
    return pytest.mark.parametrize(name, formats, ids=lambda kept: kept.name)


def block_maxima(values: Tensor) -> Tensor:
    """Of each element, the largest magnitude in its block of codes."""
    in_memory = InMemory(values)
    flat = in_memory.flat(values.abs())
    blocks = torch.nn.functional.pad(flat, (0, -flat.numel() % BLOCK)).view(-1, BLOCK)
    maxima = blocks.amax(1).repeat_interleave(BLOCK)[: flat.numel()]
    return in_memory.shaped(maxima, values)
