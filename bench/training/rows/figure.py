"""Accuracy or loss over latency, one panel a task."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FormatStrFormatter

from ..panels import draw_panels
from ..recipes import DENSE
from .latency import BATCHES, THREADS
from .recipes import L21, MAGNITUDE, RAMP

STYLES = {MAGNITUDE: ("C0", "s-"), L21: ("C1", "o-"), RAMP: ("C3", "o-")}


def draw(documents: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw a panel for each task."""
    draw_panels(documents, path, _panel)


def _panel(axes: Axes, document: dict[str, Any]) -> None:
    batch = str(BATCHES[-1])
    for arm, (color, style) in {DENSE: ("0.4", "D"), **STYLES}.items():
        own = [row for row in document["summary"] if row["arm"] == arm]
        axes.errorbar(
            [row["ms"][batch] for row in own],
            [row["test"] for row in own],
            [row["test_error"] or 0.0 for row in own],
            fmt=style,
            color=color,
            label="AdamW, dense" if arm == DENSE else arm,
            capsize=2,
            markersize=4,
        )
        if arm == DENSE:
            axes.axhline(own[0]["test"], color=color, linewidth=0.8, linestyle=":")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FormatStrFormatter("%g"))
    axes.xaxis.set_minor_formatter(FormatStrFormatter("%g"))
    better = "higher" if document["sign"] > 0 else "lower"
    network = ", convolutions" if document["recipe"]["channels"] else ""
    axes.set(
        xlabel=f"milliseconds for a batch of {batch}, {THREADS} threads",
        ylabel=f"test {document['unit']} ({better} is better)",
        title=f"{document['data']['name']}{network}",
    )
    axes.grid(alpha=0.3, which="both")
