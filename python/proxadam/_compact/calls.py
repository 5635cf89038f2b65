"""Call a model on example inputs, draw others of their shape, and compare what comes out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves, tree_map

# The largest difference of outputs, as a share of the largest magnitude among them. float32 and
# float64 as required; 16 bits round each layer's output, so there it is four roundings.
TOLERANCES = {
    torch.float64: 1e-12,
    torch.float32: 1e-5,
    torch.float16: 4 * torch.finfo(torch.float16).eps,
    torch.bfloat16: 4 * torch.finfo(torch.bfloat16).eps,
}


def call(model: nn.Module, inputs: Any) -> Any:
    """The model's output: a tuple or list is its arguments, a dict its keywords."""
    if isinstance(inputs, dict):
        return model(**inputs)
    if isinstance(inputs, (tuple, list)):
        return model(*inputs)
    return model(inputs)


@contextmanager
def module_by_module() -> Iterator[None]:
    """Call every layer as a module, and attention by its formula, in no fused kernel."""
    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)


def map_tensors(function: Callable[[Tensor], Tensor], inputs: Any) -> Any:
    """The inputs with this done to each tensor in them."""
    return tree_map(lambda leaf: function(leaf) if isinstance(leaf, Tensor) else leaf, inputs)


def random_like(inputs: Any, seed: int) -> Any:
    """Other inputs of the same shapes and dtypes.

    Floating tensors are normal with the example's mean and standard deviation, integers are drawn
    from those in the example (they may be indices), and bools stay.
    """
    generator = torch.Generator().manual_seed(seed)  # of its own: torch's goes on undisturbed

    def drawn(tensor: Tensor) -> Tensor:
        if not tensor.numel() or tensor.dtype == torch.bool or tensor.is_complex():
            return tensor
        if not tensor.is_floating_point():
            at = torch.randint(tensor.numel(), tensor.shape, generator=generator)
            return tensor.reshape(-1)[at.to(tensor.device)]
        seen = tensor.detach().double().cpu()
        std = seen.std(correction=0).nan_to_num(1.0, 1.0)
        noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        mean = seen.mean().nan_to_num(0.0, 0.0, 0.0)
        return (mean + noise * (std if std > 0 else 1.0)).to(tensor.device, tensor.dtype)

    return map_tensors(drawn, inputs)


def output_tensors(output: Any) -> list[Tensor]:
    """The tensors in what a model returns, whatever they are wrapped in."""
    tensors = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
    if tensors or output is None:
        return tensors
    return [leaf for leaf in tree_leaves(vars(output)) if isinstance(leaf, Tensor)]


def outputs_of(model: nn.Module, inputs: list[Any]) -> list[list[Tensor]]:
    """The tensors that a model returns for each of the inputs."""
    with torch.no_grad():
        return [[one.clone() for one in output_tensors(call(model, i))] for i in inputs]


def difference(expected: list[list[Tensor]], got: list[list[Tensor]]) -> str | None:
    """None where outputs are equal within the tolerance, else how they differ, in half a sentence.

    Outputs that are not finite are equal where they are alike; integers where they are the same.
    """
    for wanted, found in zip(expected, got, strict=True):
        if [one.shape for one in wanted] != [one.shape for one in found]:
            return f"shapes {_shapes(found)} instead of {_shapes(wanted)}"
        for a, b in zip(wanted, found, strict=True):
            worst, tolerance = _distance(a, b)
            if not worst <= tolerance:
                return f"a difference of {worst:.2g} of their scale, where {tolerance:.0e} may be"
    return None


def _shapes(tensors: list[Tensor]) -> str:
    return str([tuple(one.shape) for one in tensors])


def _distance(a: Tensor, b: Tensor) -> tuple[float, float]:
    """The largest difference over the largest magnitude, and what it may be."""
    tolerance = TOLERANCES.get(a.dtype)
    if tolerance is None or not a.numel():
        return (0.0 if torch.equal(a, b) else torch.inf), 0.0
    a, b = a.double(), b.double()
    finite = a.isfinite() & b.isfinite()
    if not torch.equal(a[~finite].nan_to_num(), b[~finite].nan_to_num()):
        return torch.inf, tolerance
    if not finite.any():
        return 0.0, tolerance
    worst = (a - b)[finite].abs().max().item()
    return (worst / max(a[finite].abs().max().item(), 1e-300) if worst else 0.0), tolerance
