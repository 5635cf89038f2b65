"""What compact cuts, what it saves, and what stays though it is dead, with the reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_SHOWN = 8  # indices of a layer that are printed


@dataclass(frozen=True)
class LayerRows:
    """The rows of one Linear or convolution.

    Attributes:
        name: of the layer.
        before: how many rows it has.
        dead: the rows whose weights are all zero.
        cut: the rows that go: dead ones, and those that only dead columns read.
    """

    name: str
    before: int
    dead: tuple[int, ...]
    cut: tuple[int, ...]

    @property
    def after(self) -> int:
        """How many rows are left."""
        return self.before - len(self.cut)


@dataclass(frozen=True)
class Kept:
    """Dead rows that stay.

    Attributes:
        name: of the layer, or of the nn.MultiheadAttention.
        rows: its rows, or its heads.
        reason: why they stay.
    """

    name: str
    rows: tuple[int, ...]
    reason: str


@dataclass(frozen=True)
class CompactReport:
    """What :func:`proxadam.compact` does to a model; ``print`` shows it as a table.

    Attributes:
        layers: those that have dead rows or lose rows, in the order of the model.
        kept: what is dead and stays, with the reason.
        parameters: how many the model has, before and after.
        macs: multiply-adds of one forward on the example, before and after, in matrix products
            and convolutions, as ``torch.utils.flop_counter`` counts them.
    """

    layers: tuple[LayerRows, ...]
    kept: tuple[Kept, ...]
    parameters: tuple[int, int]
    macs: tuple[int, int]

    def __str__(self) -> str:
        rows = [("layer", "rows", "left", "dead", "cut")]
        rows += [
            (one.name, f"{one.before}", f"{one.after}", f"{len(one.dead)}", _indices(one.cut))
            for one in self.layers
        ]
        lines = _table(rows) if self.layers else ["no dead rows"]
        totals = (("parameters", self.parameters), ("multiply-adds", self.macs))
        lines += [f"{name}: {a:,} → {b:,} ({_share(a, b)})" for name, (a, b) in totals]
        if self.kept:
            lines.append("kept:")
            lines += [f"  {one.name} {_indices(one.rows)}: {one.reason}" for one in self.kept]
        return "\n".join(lines)


def _indices(rows: Sequence[int]) -> str:
    if not rows:
        return "none"
    shown = ", ".join(map(str, rows[:_SHOWN]))
    return f"[{shown}]" if len(rows) <= _SHOWN else f"[{shown}, …] ({len(rows)})"


def _share(before: int, after: int) -> str:
    return f"{(after - before) / before:+.1%}" if before else "±0"


def _table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
