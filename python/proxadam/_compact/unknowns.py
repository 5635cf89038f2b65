"""Arithmetic on values of which some are unknown, and NaN stands for what is not known.

IEEE 754 does most of it: what is computed from a NaN is NaN. The mode below adds what it does not
say: that zero times anything is zero, and that a choice made by an unknown value is unknown.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_aten = torch.ops.aten

# Operators linear in two arguments: where these stand, and what is added to the product.
_FACTORS: dict[Any, tuple[int, int, int | None]] = {
    _aten.mul.Tensor: (0, 1, None),
    _aten.mm.default: (0, 1, None),
    _aten.bmm.default: (0, 1, None),
    _aten.addmm.default: (1, 2, 0),
    _aten.baddbmm.default: (1, 2, 0),
    _aten.convolution.default: (0, 1, 2),
}
_IN_PLACE = {_aten.mul_.Tensor: _aten.mul.Tensor}
# Operators that may give a number where there was a NaN, or put numbers into other places.
_HIDE_NAN = {
    "aten::nan_to_num", "aten::nan_to_num_", "aten::nansum", "aten::nanmedian",
    "aten::fmax", "aten::fmin", "aten::hardsigmoid", "aten::hardsigmoid_",
    "aten::sort", "aten::topk", "aten::kthvalue", "aten::median", "aten::mode",
}  # fmt: skip
_READS_VALUES = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)


class UnknownChoice(Exception):
    """The model's Python code asked for a value that is unknown."""


class Unknowns(TorchDispatchMode):
    """Within it NaN is an unknown number, of which only is known that it is finite.

    Integers and bools have no NaN: those that are unknown, as a whole, are kept in a list, and a
    floating result that is chosen by them is NaN throughout. So is what is drawn at random.

    Args:
        zero_hides: zero times an unknown number is zero, and not unknown. (default: True)

    Raises:
        UnknownChoice: where an unknown value is read (``.item()``, ``if``) or decides a shape.
    """

    def __init__(self, zero_hides: bool = True) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._zero_hides = zero_hides
        self._unknown: dict[int, Tensor] = {}  # kept alive, so that no other gets its id

    def hidden(self, tensor: Tensor) -> Tensor:
        """A tensor like this one of which nothing is known."""
        if tensor.is_floating_point() or tensor.is_complex():
            return torch.full_like(tensor, math.nan)
        return self._mark(tensor.clone())

    def is_unknown(self, tensor: Tensor) -> bool:
        """Whether anything in a tensor is unknown."""
        return id(tensor) in self._unknown or bool(tensor.isnan().any())

    def _mark(self, tensor: Tensor) -> Tensor:
        self._unknown[id(tensor)] = tensor
        return tensor

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        del types
        kwargs = kwargs or {}
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        chosen = any(id(one) in self._unknown for one in given)
        unknown = chosen or any(one.is_floating_point() and self.is_unknown(one) for one in given)
        if unknown and any(tag in func.tags for tag in _READS_VALUES):
            raise UnknownChoice
        out = _bilinear(func, args, kwargs) if unknown and self._zero_hides else None
        if out is None:
            out = func(*args, **kwargs)
        drawn = torch.Tag.nondeterministic_seeded in func.tags
        hides = unknown and func._schema.name in _HIDE_NAN
        for one in tree_leaves(out):
            if not isinstance(one, Tensor):
                continue
            if not one.is_floating_point():
                if unknown or drawn:
                    self._mark(one)
            elif chosen or drawn or hides:
                one.fill_(math.nan)
        return out


def _bilinear(func: Any, args: tuple[Any, ...], kwargs: Any) -> Tensor | None:
    """The product, NaN where an unknown meets what is not zero; None for other operators."""
    if func in _IN_PLACE:
        result = _bilinear(_IN_PLACE[func], args, kwargs)
        return None if result is None else args[0].copy_(result)
    if func not in _FACTORS:
        return None
    left, right, term = _FACTORS[func]
    a, b = args[left], args[right]
    if not all(isinstance(one, Tensor) and one.is_floating_point() for one in (a, b)):
        return None

    def product(a: Tensor, b: Tensor, added: Any, options: Any) -> Tensor:
        changed = list(args)
        changed[left], changed[right] = a, b
        if term is not None:
            changed[term] = added
        result: Tensor = func(*changed, **options)
        return result

    def touches(a: Tensor, b: Tensor) -> Tensor:
        """Where the two are true together, counted in floats, which some algorithms round."""
        return product(a.to(factor.dtype), b.to(factor.dtype), none, {}) > 0.5

    factor, added = a, None if term is None else args[term]
    none = torch.zeros_like(added) if isinstance(added, Tensor) else None
    touched = touches(a.isnan(), b != 0) | touches(a != 0, b.isnan())
    a, b = (one.masked_fill(one.isnan(), 0.0) for one in (a, b))
    return product(a, b, added, kwargs).masked_fill_(touched, math.nan)
