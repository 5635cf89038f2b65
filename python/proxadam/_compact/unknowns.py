"""Arithmetic on values of which some are unknown, and NaN stands for what is not known.

IEEE 754 does most of it: what is computed from a NaN is NaN. The mode below adds what it does not
say: that zero times anything is zero, and that a choice made by an unknown value is unknown.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
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
# Operators by more than one element that give numbers where there was a NaN, or move them.
_HIDE_NAN = {
    "aten::nansum", "aten::nanmedian", "aten::median", "aten::mode",
    "aten::sort", "aten::topk", "aten::kthvalue",
}  # fmt: skip
# Elementwise, though torch does not tag them so.
_POINTWISE = {"aten::_to_copy", "aten::masked_fill", "aten::masked_fill_"}
_READS_VALUES = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)


class UnknownChoice(Exception):
    """The model's Python code asked for a value that is unknown."""


class Unknowns(TorchDispatchMode):
    """Within it NaN is an unknown number, of which only is known that it is finite.

    Integers and bools have no NaN: beside those that are unknown stands a mask. A floating result
    that is chosen by them is NaN: element by element where the operator works so, else throughout.
    What is drawn at random is unknown too.

    Args:
        known: tensors of which all is known, as their views: parameters. (default: none)
        zero_hides: zero times an unknown number is zero, and not unknown. (default: True)

    Raises:
        UnknownChoice: where an unknown value is read (``.item()``, ``if``) or decides a shape.
    """

    def __init__(self, known: Iterable[Tensor] = (), zero_hides: bool = True) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._known = {one.untyped_storage().data_ptr() for one in known if one.numel()}
        self._zero_hides = zero_hides
        # Tensor and mask by the tensor's id, which no other has as long as it is kept here.
        self._masks: dict[int, tuple[Tensor, Tensor]] = {}

    def hidden(self, tensor: Tensor) -> Tensor:
        """A tensor like this one of which nothing is known."""
        if tensor.is_floating_point() or tensor.is_complex():
            return torch.full_like(tensor, math.nan)
        hidden = tensor.clone()
        self._mark(hidden, torch.ones_like(tensor, dtype=torch.bool))
        return hidden

    def is_unknown(self, tensor: Tensor) -> bool:
        """Whether anything in a tensor is unknown."""
        if tensor.untyped_storage().data_ptr() in self._known:  # to read all weights takes long
            return False
        mask = self._mask(tensor)
        return mask is not None and bool(mask.any())

    def _mask(self, tensor: Tensor) -> Tensor | None:
        if tensor.is_floating_point() or tensor.is_complex():
            return tensor.isnan()
        return self._masks[id(tensor)][1] if id(tensor) in self._masks else None

    def _mark(self, tensor: Tensor, mask: Tensor) -> None:
        """Make elements of a tensor unknown."""
        if tensor.is_floating_point() or tensor.is_complex():
            tensor.masked_fill_(mask, math.nan)
        else:
            self._masks[id(tensor)] = (tensor, mask.expand(tensor.shape))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        del types
        kwargs = kwargs or {}
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        unknown = [one for one in given if self.is_unknown(one)]
        if torch.Tag.nondeterministic_seeded in func.tags:
            return self._throughout(func(*args, **kwargs))
        if not unknown:
            return func(*args, **kwargs)
        if any(tag in func.tags for tag in _READS_VALUES):
            raise UnknownChoice
        if self._zero_hides:
            product = _bilinear(func, args, kwargs)
            if product is not None:
                return product
        pointwise = torch.Tag.pointwise in func.tags or func._schema.name in _POINTWISE
        masks = [mask for mask in map(self._mask, unknown) if mask is not None]
        out = func(*args, **kwargs)
        if pointwise:
            self._mark(out, functools.reduce(torch.logical_or, masks))
        elif func.is_view and not unknown[0].is_floating_point():
            moved = func(masks[0], *args[1:], **kwargs)
            for one, mask in zip(_tensors(out), _tensors(moved), strict=True):
                self._mark(one, mask)
        elif func._schema.name in _HIDE_NAN or not all(one.is_floating_point() for one in unknown):
            self._throughout(out)
        else:
            self._throughout([one for one in _tensors(out) if not one.is_floating_point()])
        return out

    def _throughout(self, out: Any) -> Any:
        for one in _tensors(out):
            self._mark(one, torch.ones_like(one, dtype=torch.bool))
        return out


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


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
