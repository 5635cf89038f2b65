"""The ways to store weights and state, each with the optimizer that does so."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from proxadam import ProxAdamW, state_bytes

Groups = list[dict[str, Any]]

FP32 = "fp32 weights, fp32 state"
OTHER_BATCHES = "fp32 weights and state, other batches"
FP32_BF16 = "fp32 weights, bf16 state"
FP32_8BIT = "fp32 weights, 8-bit state"
BF16_FP32 = "bf16 weights by chance, fp32 state"
BF16_BF16 = "bf16 weights by chance, bf16 state"
BF16_8BIT = "bf16 weights by chance, 8-bit state"
NEAREST_FP32 = "bf16 weights to nearest, fp32 state"
NEAREST = "bf16 weights and state to nearest"

TORCH_FP32 = "torch's AdamW, fp32"
TORCH_BF16 = "torch's AdamW, all bf16"
TORCHAO = "torchao's AdamW8bit"
BITSANDBYTES = "bitsandbytes' AdamW8bit"


@dataclass(frozen=True)
class Way:
    """A way to store weights and state.

    Attributes:
        make: builds the optimizer from groups and lr.
        weights: what the network is cast to.
        sound: that it rounds by chance where it rounds to few bits.
        reshuffled: that its batches come in another order, as a measure of what chance does.
    """

    make: Callable[[Groups, float], Optimizer]
    weights: torch.dtype = torch.float32
    sound: bool = True
    reshuffled: bool = False


def ours(**options: Any) -> Callable[[Groups, float], Optimizer]:
    """ProxAdamW with these options."""
    return partial(ProxAdamW, **options)


def torchs(groups: Groups, lr: float) -> Optimizer:
    """Torch's fastest on the CPU."""
    return AdamW(groups, lr, fused=True)


def torchaos(groups: Groups, lr: float) -> Optimizer:
    """Torchao's; it compiles its step when it first takes it."""
    logging.disable(logging.WARNING)  # it tells of binaries that it does not find
    try:
        from torchao.optim import AdamW8bit
    finally:
        logging.disable(logging.NOTSET)
    return AdamW8bit(groups, lr)


def bitsandbytes(groups: Groups, lr: float) -> Optimizer:
    """That of bitsandbytes."""
    logging.disable(logging.WARNING)  # it tells of kernels for other uses that it does not find
    try:
        from bitsandbytes.optim import AdamW8bit
    finally:
        logging.disable(logging.NOTSET)
    return AdamW8bit(groups, lr)


bf16 = torch.bfloat16
WAYS: dict[str, Way] = {
    FP32: Way(ours(state_dtype=torch.float32)),
    OTHER_BATCHES: Way(ours(state_dtype=torch.float32), reshuffled=True),
    FP32_BF16: Way(ours(state_dtype=bf16)),
    FP32_8BIT: Way(ours(state_dtype="8bit")),
    BF16_FP32: Way(ours(state_dtype=torch.float32, stochastic_rounding=True), bf16),
    BF16_BF16: Way(ours(state_dtype=bf16), bf16),
    BF16_8BIT: Way(ours(state_dtype="8bit"), bf16),
    NEAREST_FP32: Way(ours(state_dtype=torch.float32, stochastic_rounding=False), bf16, False),
    NEAREST: Way(ours(), bf16, False),
    TORCH_FP32: Way(torchs),
    TORCH_BF16: Way(torchs, bf16, False),
    TORCHAO: Way(torchaos),
    BITSANDBYTES: Way(bitsandbytes),
}

WITH_L1 = (
    FP32,
    OTHER_BATCHES,
    FP32_BF16,
    FP32_8BIT,
    BF16_FP32,
    BF16_BF16,
    BF16_8BIT,
    NEAREST_FP32,
    NEAREST,
)
WITHOUT_L1 = (
    TORCH_FP32,
    FP32,
    FP32_BF16,
    FP32_8BIT,
    TORCHAO,
    BITSANDBYTES,
    BF16_8BIT,
    TORCH_BF16,
)


def reference(l1: float) -> str:
    """The way that all others are compared with."""
    return FP32 if l1 else TORCH_FP32


def missing(wanted: list[str]) -> dict[str, str]:
    """Of the wanted ways those that cannot run here, each with the reason in a sentence."""
    reasons = {}
    for name, package in ((TORCHAO, "torchao"), (BITSANDBYTES, "bitsandbytes")):
        if name not in wanted:
            continue
        if not find_spec(package):  # looked at before it is imported: that takes seconds
            reasons[name] = f"{package} is not installed."
        elif error := _fault(WAYS[name]):
            reasons[name] = f"It takes no step on this machine: {error}"
    return reasons


def _fault(way: Way) -> str:
    param = nn.Parameter(torch.ones(64, 64))
    param.grad = torch.ones_like(param)
    try:
        way.make([{"params": [param]}], 1e-3).step()
    except Exception as error:  # whatever it is: a compiler or a library that it lacks
        return (str(error).strip() or repr(error)).splitlines()[0]
    return ""


def bytes_of_state(optimizer: Optimizer) -> tuple[int, float]:
    """Bytes of state, and their ratio to that of Adam in float32."""
    counted = state_bytes(optimizer)
    if isinstance(optimizer, ProxAdamW | AdamW):
        return counted.total, counted.ratio
    parts = {
        part.untyped_storage().data_ptr(): part.untyped_storage().nbytes()  # tables are shared
        for own in optimizer.state.values()
        for value in own.values()
        if isinstance(value, Tensor)
        for part in _parts(value)
    }
    total = sum(parts.values())
    return total, total / counted.of_fp32_adam


def _parts(tensor: Tensor) -> Iterator[Tensor]:
    """The tensors that a subclass is made of, which says itself to be as large as what it codes."""
    if type(tensor) is Tensor:
        yield tensor
        return
    names, _ = tensor.__tensor_flatten__()
    for name in names:
        yield from _parts(getattr(tensor, name))
