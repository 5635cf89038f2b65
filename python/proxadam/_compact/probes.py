"""Two questions that a run on unknown values answers: what is constant, and what a unit reaches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .calls import call, map_tensors, module_by_module, output_tensors
from .layers import Layer, channel_dim
from .unknowns import Unknowns

# What a column of a layer receives: a constant, or NaN where it is none.
Arrivals = dict[str, Tensor]


@dataclass(frozen=True)
class Leak:
    """The first place where a unit arrives though it should not, or does not though it should.

    Attributes:
        layer: its name; None for the model's output.
        columns: of this layer, where the unit arrives.
    """

    layer: str | None
    columns: tuple[int, ...] = ()


@torch.no_grad()
def constants(model: nn.Module, layers: Mapping[str, Layer], inputs: Any) -> Arrivals:
    """What arrives at each column of each layer whatever the inputs are.

    A column is constant where every value in it, over samples and positions and calls, depends on
    nothing but parameters and buffers, and is the same up to rounding.

    Returns:
        For each layer that is called, float64 of shape (columns,) on the CPU; NaN is no constant.

    Raises:
        UnknownChoice: the model's Python code asks for values that depend on the inputs.
    """
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {}

    def look(name: str, layer: Layer, x: Tensor) -> None:
        flat = _by_channel(layer, x)
        seen.setdefault(name, []).append((flat.amin(1), flat.amax(1)))

    mode = Unknowns(model.parameters())
    unknown = map_tensors(mode.hidden, inputs)
    with _before(layers, look), module_by_module(), mode:
        call(model, unknown)
    return {name: _constant(bounds) for name, bounds in seen.items()}


def _constant(bounds: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """The middle of the bounds where they are equal up to rounding, else NaN."""
    eps = torch.finfo(bounds[0][0].dtype).eps
    low = torch.stack([low for low, _ in bounds]).double().cpu().amin(0)
    high = torch.stack([high for _, high in bounds]).double().cpu().amax(0)
    rounding = 32 * eps * torch.maximum(low.abs(), high.abs())  # of a mean of equal numbers
    return torch.where(high - low <= rounding, (low + high) / 2, math.nan)


@torch.no_grad()
def leak(
    model: nn.Module,
    layers: Mapping[str, Layer],
    inputs: Any,
    rows: Mapping[str, Sequence[int]],
    columns: Mapping[str, Mapping[int, float]],
    zero_hides: bool = True,
) -> Leak | None:
    """Whether what these rows put out reaches anything but these columns; None if it does not.

    Args:
        model: in eval mode.
        layers: of the model, by name.
        inputs: see :func:`.calls.call`.
        rows: of which layers; what they put out is unknown in this run.
        columns: of which layers, each with what stands for it inside the layer; NaN lets
            the unknown in.
        zero_hides: see :class:`.unknowns.Unknowns`. (default: True)

    Raises:
        UnknownChoice: the model's Python code asks for values that depend on these rows.
    """
    arrived: list[tuple[str, Tensor]] = []

    def look(name: str, layer: Layer, x: Tensor) -> Tensor | None:
        arrived.append((name, _by_channel(layer, x).amax(1)))
        known = {i: c for i, c in columns.get(name, {}).items() if not math.isnan(c)}
        return _filled(x, channel_dim(layer), known) if known else None

    with ExitStack() as hooks:
        for name, own in rows.items():
            hooks.enter_context(_unknown_rows(layers[name], own))
        hooks.enter_context(_before(layers, look))
        hooks.enter_context(module_by_module())
        with Unknowns(model.parameters(), zero_hides) as mode:
            output = call(model, inputs)
    for name, high in arrived:
        reached = high.isnan().nonzero()[:, 0].tolist()
        if set(reached) != columns.get(name, {}).keys():
            return Leak(name, tuple(reached))
    return Leak(None) if any(map(mode.is_unknown, output_tensors(output))) else None


def _filled(x: Tensor, dim: int, known: Mapping[int, float]) -> Tensor:
    """The tensor with these numbers at these places of a dimension."""
    values = torch.tensor(list(known.values()), device=x.device).to(x.dtype)
    at = torch.tensor(list(known), device=x.device)
    sizes = list(x.shape)
    sizes[dim] = len(known)
    return x.index_copy(dim, at, values.view(-1, *[1] * (-dim - 1)).expand(sizes))


def _by_channel(layer: Layer, x: Tensor) -> Tensor:
    return x.movedim(channel_dim(layer), 0).reshape(x.shape[channel_dim(layer)], -1)


@contextmanager
def _before(
    layers: Mapping[str, Layer], look: Callable[[str, Layer, Tensor], Tensor | None]
) -> Iterator[None]:
    """Show each layer's input to a function, which may return another."""

    def hook(name: str) -> Callable[..., Any]:
        def show(layer: Layer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            x = args[0] if args else kwargs["input"]
            other = look(name, layer, x)
            return None if other is None else ((other,), {})

        return show

    handles = [
        layer.register_forward_pre_hook(hook(name), with_kwargs=True)
        for name, layer in layers.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _unknown_rows(layer: Layer, rows: Sequence[int]) -> Iterator[None]:
    at = torch.tensor(rows, device=layer.weight.device)

    def hide(layer: Layer, args: Any, output: Tensor) -> Tensor:
        del args
        return output.index_fill(channel_dim(layer), at, math.nan)

    handle = layer.register_forward_hook(hide)
    try:
        yield
    finally:
        handle.remove()
