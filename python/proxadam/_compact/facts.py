"""What is known of a model's groups: who writes, who reads, what is dead, what cannot be cut."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from .dependencies import Group, Member
from .layers import has_borders, layers_of, why_not, width, zero_columns, zero_rows
from .probes import constants
from .unknowns import UnknownChoice

_NO_CONSTANT = "is no constant"
_BY_CHANNEL = (_BatchNorm, _InstanceNorm, nn.PReLU)


class Facts:
    """Of a model as it is.

    Args:
        model: in eval mode.
        inputs: see :func:`.calls.call`.

    Attributes:
        layers: its Linear and convolutional layers, by name.
        dead: for each of them, the rows whose weights are all zero.

    Raises:
        ValueError: the model's Python code reads values that depend on the inputs.
    """

    def __init__(self, model: nn.Module, inputs: Any) -> None:
        self.layers = layers_of(model)
        self.dead = {name: set(zero_rows(layer)) for name, layer in self.layers.items()}
        self._sharing = _sharing(model)
        try:
            arrivals = constants(model, self.layers, inputs)
        except UnknownChoice:
            raise ValueError(
                "compact cannot understand this model, whose Python code chooses by values that"
                " depend on the inputs: write the choice with tensors, as torch.where does, or"
                " leave out an input that it reads, as an attention mask of ones."
            ) from None
        self._fills: dict[str, list[float]] = {}
        for name, layer in self.layers.items():
            zero = zero_columns(layer)
            arriving = arrivals[name].tolist() if name in arrivals else [math.nan] * len(zero)
            pairs = zip(zero, arriving, strict=False)  # in groups, which are never cut, of one
            self._fills[name] = [0.0 if is_zero else value for is_zero, value in pairs]

    def writers(self, group: Group) -> list[Member]:
        """The layers whose rows the group has, its first one first."""
        return [one for one in group.members if one.has_rows and self._is_layer(one)]

    def readers(self, group: Group) -> list[Member]:
        """The layers whose columns the group has, without those that are filters by channel."""
        return [
            one
            for one in group.members
            if one.has_columns and not one.has_rows and self._is_layer(one)
        ]

    def filters(self, group: Group) -> list[Member]:
        """The layers whose channels pass through one by one, which both write and read."""
        return [one for one in self.writers(group) if one.has_columns]

    def _is_layer(self, member: Member) -> bool:
        return member.module is self.layers.get(member.name)

    def fills(self, member: Member) -> dict[int, float]:
        """What each column that a reader loses has received: what its bias is to take over.

        NaN where that is no constant, and 0 where the column is zero and it does not matter.
        """
        return {i: self._fills[member.name][i] for i in member.indices}

    def why_not(self, group: Group) -> str | None:
        """Why no row of a group can be cut; None if there is no such reason."""
        for one in group.members:
            if not one.name:
                continue
            reason = self._why_not(one)
            if reason:
                return reason
            if one.name in self._sharing:
                return f"`{one.name}` shares a parameter with `{self._sharing[one.name]}`"
            if None in one.roots:
                return f"torch-pruning does not say which rows go with those of `{one.name}`"
        return None

    def _why_not(self, member: Member) -> str | None:
        name, module = member.name, member.module
        if self._is_layer(member):
            reason = why_not(module)
            if reason is None and max(member.indices) >= self._limit(member):
                reason = "is narrower than torch-pruning takes it to be"
            return f"`{name}` {reason}" if reason else None
        if isinstance(module, nn.Parameter):
            if module.numel() == max(module.shape):
                return None
            return f"parameter `{name}` of shape {tuple(module.shape)} goes with it"
        if isinstance(module, _BY_CHANNEL):
            return None
        if isinstance(module, (nn.LayerNorm, nn.GroupNorm)):
            kind = type(module).__name__
            return f"it passes `{name}`, a {kind}, whose mean and variance are over many features"
        if isinstance(module, nn.MultiheadAttention):
            return (
                f"it passes `{name}`, an nn.MultiheadAttention, which torch-pruning cuts by its"
                " embed_dim, and with it the scale of the scores"
            )
        return f"it passes `{name}`, a {type(module).__name__}, which compact does not cut"

    def _limit(self, member: Member) -> int:
        return width(member.module) if member.has_rows else len(self._fills[member.name])

    def alive(self, group: Group) -> dict[int, str]:
        """The rows of the group's first layer that something needs, each with the reason."""
        needed: dict[int, str] = {}
        for reader in self.readers(group):
            borders = has_borders(reader.module)
            for column, row in zip(reader.indices, reader.roots, strict=True):
                fill = self._fills[reader.name][column]
                if row in needed:
                    continue
                if math.isnan(fill):
                    needed[row] = f"what arrives for it at `{reader.name}` {_NO_CONSTANT}"
                elif fill and borders:
                    needed[row] = f"its constant is not 0, which `{reader.name}` has at its borders"
        return self._partners(group, needed)

    def _partners(self, group: Group, needed: dict[int, str]) -> dict[int, str]:
        """Say where a dead row is needed because a row that goes with it is not dead."""
        partners: dict[int, str] = {}
        for writer in self.writers(group):
            for i, row in zip(writer.indices, writer.roots, strict=True):
                if i not in self.dead[writer.name]:
                    partners.setdefault(row, writer.name)
        for row, reason in needed.items():
            if row in partners and reason.endswith(_NO_CONSTANT):
                needed[row] = f"it goes together with a row of `{partners[row]}` that is not zero"
        return needed


def _sharing(model: nn.Module) -> dict[str, str]:
    """The modules and parameters that share a parameter with another, each with its name."""
    owners: dict[int, list[tuple[str, str]]] = defaultdict(list)
    for owner, module in model.named_modules():
        for name, param in module.named_parameters(owner, recurse=False, remove_duplicate=False):
            owners[id(param)].append((owner, name))
    shared: dict[str, str] = {}
    for uses in owners.values():
        for owner, name in uses:
            others = [other for other in uses if other != (owner, name)]
            if others:
                shared[owner], shared[name] = others[0]
    return shared
