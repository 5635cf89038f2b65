"""A figure with a panel for each task, side by side, and one legend below them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure


def draw_panels(
    documents: Sequence[dict[str, Any]], path: Path, panel: Callable[[Axes, dict[str, Any]], None]
) -> None:
    """Draw ``panel(axes, document)`` for each task; the legend has what any of them shows."""
    figure = Figure(figsize=(1.5 + 4.5 * len(documents), 4.6), layout="constrained")
    panels = figure.subplots(1, len(documents), squeeze=False)[0]
    labelled: dict[str, Any] = {}
    for axes, document in zip(panels, documents, strict=True):
        panel(axes, document)
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            labelled.setdefault(label, handle)
    columns = min(4, 2 * len(documents))
    figure.legend(labelled.values(), labelled, loc="outside lower center", ncols=columns)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
