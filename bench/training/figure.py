"""Accuracy or loss over sparsity, one panel a task."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from .panels import draw_panels
from .recipes import DEBIASED, DENSE, KNEE, L1, L1_IN_LOSS, MAGNITUDE, PAT, RAMP

STYLES = {
    MAGNITUDE: ("C0", "s-"),
    PAT: ("C2", "^-"),
    L1_IN_LOSS: ("C7", "v-"),
    L1: ("C1", "o:"),
    DEBIASED: ("C1", "o--"),
    KNEE: ("C4", "D--"),
    RAMP: ("C3", "o-"),
}


def draw(documents: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw a panel for each task."""
    draw_panels(documents, path, _panel)


def _panel(axes: Axes, document: dict[str, Any]) -> None:
    rows, sign = document["summary"], document["sign"]
    scores = []
    for row in rows:
        if row["arm"] == DENSE:
            axes.axhline(row["test"], color="0.4", linestyle="-", linewidth=1, label="AdamW, dense")
            scores.append(row["test"])
    for arm, (color, style) in STYLES.items():
        own = [row for row in rows if row["arm"] == arm and row["zeros"] < 100]
        if not own:
            continue
        left = [100 - row["zeros"] for row in own]
        means, spreads = ([row[key] for row in own] for key in ("test", "spread"))
        scores += means
        axes.errorbar(
            left, means, spreads, fmt=style, color=color, label=arm, capsize=2, markersize=4
        )
    levels = sorted({row["sparsity"] for row in rows} - {0.0})
    axes.set_xscale("log")
    axes.invert_xaxis()
    axes.set_xticks([100 - 100 * level for level in levels], [f"{100 * x:g}" for x in levels])
    axes.minorticks_off()
    better = "higher" if sign > 0 else "lower"
    axes.set(xlabel="weights that are exactly zero (%)", title=document["data"]["name"])
    axes.set_ylabel(f"test {document['unit']} ({better} is better)")
    axes.set_ylim(_limits(scores, sign))
    axes.grid(alpha=0.3)


def _limits(scores: list[float], sign: int) -> tuple[float, float]:
    """Room for all but what has collapsed, which would flatten the others."""
    best = max(scores) if sign > 0 else min(scores)
    losses = sorted(abs(score - best) for score in scores)
    most = 2.5 * losses[int(0.9 * (len(losses) - 1))]
    room = max(loss for loss in losses if loss <= most) or 1.0
    low, high = sorted((best + sign * 0.1 * room, best - sign * 1.1 * room))
    return low, high
