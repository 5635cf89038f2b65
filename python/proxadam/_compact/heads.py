"""Attention heads: their rows go only all together, and the module must be told how many are left.

torch-pruning leaves head counts to the caller.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from .probes import Leak

# Where modules keep how many heads there are, and how wide all of them are together.
_COUNTS = ("num_heads", "n_heads", "n_head", "nhead", "heads", "num_attention_heads")
_COUNTS_OF_KEYS = ("num_key_value_heads", "num_kv_heads", "n_kv_heads")
_WIDTHS = ("all_head_size", "inner_dim", "attn_dim", "embed_dim", "hidden_size", "d_model")


def head_width(leak: Leak, count: int) -> int | None:
    """The width of a head, where one row has reached the columns of just one head.

    Args:
        leak: of one row.
        count: how many columns there are.
    """
    found, size = leak.columns, len(leak.columns)
    if size < 2 or count % size or found[0] % size:
        return None
    return size if list(found) == list(range(found[0], found[0] + size)) else None


def whole_heads(rows: Sequence[int], size: int) -> list[int]:
    """Those of the rows whose head is among them throughout."""
    given = set(rows)
    return [i for i in rows if given.issuperset(range(i - i % size, i - i % size + size))]


def tell(model: nn.Module, layers: Sequence[str], size: int, before: int, after: int) -> None:
    """Set the counts and the widths in the module that these layers have in common.

    Args:
        model: whose layers are cut.
        layers: names of the projections to queries, keys and values.
        size: of a head.
        before: the width of all heads as it was.
        after: the width of all heads as it is.
    """
    owner = [  # the innermost comes last
        module
        for prefix, module in model.named_modules()
        if all(name.startswith(f"{prefix}." if prefix else "") for name in layers)
    ][-1]
    new = dict.fromkeys((*_COUNTS, *_COUNTS_OF_KEYS), (before // size, after // size))
    new |= dict.fromkeys(_WIDTHS, (before, after))
    for name, (old, value) in new.items():
        if vars(owner).get(name) == old:
            setattr(owner, name, value)


def dead_heads(model: nn.Module) -> dict[str, list[int]]:
    """The heads of each nn.MultiheadAttention that put out nothing but zeros."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention):
            columns = module.out_proj.weight.detach().view(-1, module.num_heads, module.head_dim)
            dead = (columns == 0).all(2).all(0) | _zero_values(module)
            if dead.any():
                found[name] = dead.nonzero()[:, 0].tolist()
    return found


def _zero_values(module: nn.MultiheadAttention) -> torch.Tensor:
    """Which heads have values that are zero throughout."""
    if module.in_proj_weight is None:
        weight, bias = module.v_proj_weight, module.in_proj_bias
    else:
        weight, bias = module.in_proj_weight[2 * module.embed_dim :], module.in_proj_bias
    zero = (weight.detach() == 0).all(1)
    if bias is not None:
        zero = zero & (bias.detach()[2 * module.embed_dim :] == 0)
    return zero.view(module.num_heads, module.head_dim).all(1)
