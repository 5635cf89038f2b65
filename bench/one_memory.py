"""Steps over different formats in the same memory.

Where tensors lie decides more than what is done with them: on one machine torch's fused step over
2^26 weights took 20 or 33 ms by the luck of its pages, and 126 ms where the four tensors began at
the same place of a page. So the arms of a case take turns in one memory, filled anew before each
call, in which no two tensors begin alike.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import AdamW, Optimizer

from cases import DTYPES, L1, L2, LR, STATES, Case
from harness import Arm
from proxadam import ProxAdamW

_SKEW = 65536 + 4096 + 512  # bytes between tensors, so that no two begin alike


def arms(case: Case) -> dict[str, Arm]:
    """Ours, twice, and torch's fused step in float32 and in the parameters' dtype."""
    (shape,) = case.shapes
    memory = Memory(math.prod(shape))
    ours = InMemory(memory, case, ProxAdamW, l1=L1, l2=L2, **case.options)
    found: dict[str, Arm] = {"ours": ours, "ours again": ours}
    for dtype in {"fp32": None, case.dtype: None}:
        torchs = replace(case, dtype=dtype, state="", by_chance=False)
        found[f"torch fused, {dtype}"] = InMemory(memory, torchs, AdamW, fused=True)
    return found


class Memory:
    """Room for four numbers of 32 bits a weight."""

    def __init__(self, numel: int) -> None:
        self._bytes = torch.zeros(4 * (4 * numel + _SKEW) + 4096, dtype=torch.uint8)
        self._first = -self._bytes.data_ptr() % 4096
        self._room = 4 * numel + _SKEW

    def tensor(self, place: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor at one of the four places."""
        begin = self._first + place * self._room
        return (
            self._bytes[begin : begin + math.prod(shape) * dtype.itemsize].view(dtype).view(shape)
        )


class InMemory:
    """The step of an optimizer over one parameter that lies in a memory, with all that is its."""

    def __init__(self, memory: Memory, case: Case, cls: type[Optimizer], **options: object) -> None:
        (shape,) = case.shapes
        dtype = DTYPES[case.dtype]
        self._param = Parameter(memory.tensor(0, shape, dtype))
        self._param.grad = memory.tensor(1, shape, dtype)
        self._state: dict[str, object] = {"step": torch.tensor(100.0), "number": 0}
        self._fills = {self._param.detach(): 0.5, self._param.grad: 0.01}
        kept = STATES[case.state] or dtype
        for place, (name, value, code) in enumerate(
            [("exp_avg", 0.01, 0x50), ("exp_avg_sq", 1e-4, 0x90)], start=2
        ):
            if isinstance(kept, torch.dtype):
                self._state[name] = memory.tensor(place, shape, kept)
                self._fills[self._state[name]] = value  # type: ignore[index]
                continue
            codes = memory.tensor(place, shape, torch.uint8)
            exponents = torch.empty(-(-codes.numel() // 256), dtype=torch.uint8)
            self._state |= {f"{name}_code": codes, f"{name}_exponent": exponents}
            self._fills |= {codes: code, exponents: 120}
        self._optimizer = cls([self._param], lr=LR, **options)  # type: ignore[call-arg]
        self._optimizer.state[self._param] = self._state

    def prepare(self) -> None:
        """Fill the memory with what a run may have there."""
        for tensor, value in self._fills.items():
            tensor.fill_(value)

    def __call__(self) -> None:
        """Take the step."""
        self._optimizer.step()
