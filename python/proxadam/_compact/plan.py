"""Which rows of a model can go with equal outputs, and why the other dead ones cannot."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from .dependencies import Graph, Group, Ungroupable
from .facts import Facts
from .heads import head_width, whole_heads
from .layers import width
from .probes import Leak, leak
from .report import Kept
from .unknowns import UnknownChoice

_NOT_REACHED = "torch-pruning's graph does not reach it: it is not called as a module, or not used"
_HALF_A_HEAD = "it belongs to an attention head of which other rows are needed"
_ONLY_TOGETHER = "torch-pruning cuts it only together with rows that are needed"
_READ = "the model's Python code reads values that depend on it"
_NOT_SAID = "torch-pruning does not say which rows go with it"
_WRITERS_OF_HEADS = 3  # queries, keys and values


@dataclass(frozen=True)
class Cut:
    """Rows that can go.

    Attributes:
        layer: whose rows they are.
        rows: of it.
        writers: all layers that lose rows, and these.
        readers: all layers that lose columns alone, and what each of these has received.
        filters: those of the writers whose channels are channels of their input.
        head: the width of an attention head, if the rows are heads.
    """

    layer: str
    rows: list[int]
    writers: dict[str, list[int]]
    readers: dict[str, dict[int, float]]
    filters: dict[str, list[int]]
    head: int | None = None

    @property
    def touched(self) -> set[tuple[str, str]]:
        """The layers that change, on either side."""
        return {(n, "rows") for n in self.writers} | {(n, "columns") for n in self.readers}


class Plan:
    """One look at a model: what of it can be cut now.

    Args:
        model: in eval mode, with parameters that all require grad.
        inputs: see :func:`.calls.call`.
        multiple_of: what the number of rows that are left is to be divisible by.
        refused: layers that cannot be cut for a reason that is known already.

    Attributes:
        cuts: which do not touch each other.
        kept: what is dead and stays.

    Raises:
        ValueError: the model cannot be traced, or its Python code reads values.
    """

    def __init__(
        self, model: nn.Module, inputs: Any, multiple_of: int, refused: Mapping[str, str]
    ) -> None:
        self.cuts: list[Cut] = []
        self.kept: list[Kept] = []
        self._model, self._inputs = model, inputs
        self._multiple_of, self._refused = multiple_of, refused
        self._facts = Facts(model, inputs)
        self._graph = Graph(model, inputs)
        seen: dict[str, set[int]] = defaultdict(set)
        for name, layer in self._facts.layers.items():
            rows = [i for i in range(width(layer)) if i not in seen[name]]
            if layer not in self._graph:
                self._keep(name, dict.fromkeys(self._facts.dead[name], _NOT_REACHED))
            elif rows:
                try:
                    group = self._graph.group(layer, rows)
                except Ungroupable as error:
                    self._keep(name, dict.fromkeys(self._facts.dead[name], str(error)))
                    continue
                for writer in self._facts.writers(group):
                    seen[writer.name].update(writer.indices)
                self._look_at(group)

    def _look_at(self, group: Group) -> None:
        """Add what of a group can be cut, and what stays."""
        name, rows = group.root.name, group.root.indices
        reason = self._facts.why_not(group)
        if reason is None and not self._facts.readers(group):
            reason = self._unread(group)
        stays = dict.fromkeys(rows, reason) if reason else self._facts.alive(group)
        free = [i for i in rows if i not in stays]
        if name in self._refused:
            stays |= dict.fromkeys(free, self._refused[name])
        elif free:
            try:
                cut, others = self._choose(name, free)
            except Ungroupable as error:
                cut, others = None, dict.fromkeys(free, str(error))
            stays |= others
            if cut and not any(cut.touched & other.touched for other in self.cuts):
                self.cuts.append(cut)
        self._keep_dead(group, set(free), stays)

    def _unread(self, group: Group) -> str:
        """Why the rows of a group stay that no layer reads in the library's graph."""
        dead = self._facts.dead[group.root.name].intersection(group.root.indices)
        try:
            reason = self._leak(self._drawn(group.root.name, sorted(dead))) if dead else None
        except Ungroupable as error:
            reason = str(error)
        return reason or "no layer reads it"

    def _keep_dead(self, group: Group, free: set[int], stays: Mapping[int, str]) -> None:
        """Note the dead rows of a group that stay, and those that nothing reads."""
        reasons: dict[Any, str] = {None: _NOT_SAID}
        reasons |= stays
        for writer in self._facts.writers(group):
            dead = [
                (i, row)
                for i, row in zip(writer.indices, writer.roots, strict=True)
                if i in self._facts.dead[writer.name] and row in reasons
            ]
            free = free - {row for _, row in dead}
            self._keep(writer.name, {i: reasons[row] for i, row in dead})
        self._keep(group.root.name, {row: stays[row] for row in free & stays.keys()})

    def _keep(self, name: str, reasons: Mapping[int, str]) -> None:
        """Note dead rows that stay, together where the reason is the same."""
        alike: dict[str, list[int]] = defaultdict(list)
        for row, reason in reasons.items():
            alike[reason].append(row)
        self.kept += [Kept(name, tuple(sorted(rows)), reason) for reason, rows in alike.items()]

    def _choose(self, name: str, free: list[int]) -> tuple[Cut | None, dict[int, str]]:
        """The cut of those rows that may go; and why the others stay."""
        head = self._head(self._drawn(name, free[:1]))
        whole = whole_heads(free, head) if head else free
        stays = dict.fromkeys(set(free) - set(whole), _HALF_A_HEAD)
        back = self._put_back(width(self._facts.layers[name]), len(whole), head or 1)
        stays |= dict.fromkeys(whole[:back], self._why_back())
        rows = whole[back:]
        if not rows:
            return None, stays
        cut = self._drawn(name, rows, head)
        fills = [fill for columns in cut.readers.values() for fill in columns.values()]
        if cut.writers[name] != cut.rows or any(map(math.isnan, fills)):
            return None, stays | dict.fromkeys(rows, _ONLY_TOGETHER)
        reason = self._leak(cut)
        return (None, stays | dict.fromkeys(rows, reason)) if reason else (cut, stays)

    def _drawn(self, name: str, rows: Sequence[int], head: int | None = None) -> Cut:
        """The cut of these rows, with all that goes with them."""
        group = self._graph.group(self._facts.layers[name], rows)
        return Cut(
            name,
            sorted(rows),
            {one.name: sorted(set(one.indices)) for one in self._facts.writers(group)},
            {one.name: self._facts.fills(one) for one in self._facts.readers(group)},
            {one.name: sorted(set(one.indices)) for one in self._facts.filters(group)},
            head,
        )

    def _probe(self, cut: Cut, zero_hides: bool = True) -> Leak | None:
        """Where these rows reach further than the layers that would lose columns."""
        inside = {
            name: dict.fromkeys(columns, math.nan) for name, columns in cut.filters.items()
        } | cut.readers
        return leak(self._model, self._facts.layers, self._inputs, cut.writers, inside, zero_hides)

    def _leak(self, cut: Cut) -> str | None:
        """Why these rows cannot be cut, if they reach further than that."""
        try:
            found = self._probe(cut)
        except UnknownChoice:
            return _READ
        if found is None:
            return None
        if found.layer is None:
            return "it reaches the model's output"
        return f"it reaches other columns of `{found.layer}` than torch-pruning would cut"

    def _head(self, cut: Cut) -> int | None:
        """The width of an attention head, if one row reaches all columns of a head."""
        if len(cut.writers) < _WRITERS_OF_HEADS:
            return None
        try:
            found = self._probe(cut, zero_hides=False)  # or values of zero hide a part of it
        except UnknownChoice:
            return None
        layers = self._facts.layers
        count = width(layers[cut.layer])
        if found is None or found.layer not in cut.readers:
            return None
        return head_width(found, count) if layers[found.layer].weight.shape[1] == count else None

    def _put_back(self, count: int, free: int, unit: int) -> int:
        """How many of the free rows stay, in whole units: enough for a multiple, at least one."""
        back = 0 if free < count else unit
        while back < free and (count - free + back) % self._multiple_of:
            back += unit
        return min(back, free)

    def _why_back(self) -> str:
        if self._multiple_of == 1:
            return "a layer keeps at least one row"
        return f"the number of rows is to be a multiple of {self._multiple_of}"
