"""Differences to float32 and zeros, all ways on one axis; three panels a task."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .ways import BITSANDBYTES, OTHER_BATCHES, TORCHAO, WAYS, WITH_L1, WITHOUT_L1, reference

OURS, OTHERS, UNSOUND, CHANCE = "#1f6fb4", "#3a8f5c", "#d1495b", "0.55"
CAPTION = (
    "Differences are paired over the seeds: bars are their standard errors, bands the standard "
    "deviation of fp32's own seeds.\n"
    "Zeros: mean ± standard deviation. F = training loss + l1 Σ|w|."
)
GAP = 1.2  # between the ways with l1 and those without


def draw(documents: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw three panels for each task."""
    cells = [(way, with_l1) for with_l1 in (True, False) for way in (WITHOUT_L1, WITH_L1)[with_l1]]
    seen = {(row["arm"], row["l1"] > 0) for document in documents for row in document["summary"]}
    cells = [cell for cell in cells if cell in seen]
    heights = {cell: -i - GAP * (not cell[1]) for i, cell in enumerate(cells)}
    figure = Figure(figsize=(2.6 + 4.2 * len(documents), 1.6 + 0.27 * len(cells)), dpi=110)
    figure.set_layout_engine("constrained")
    ratios = [2.2, 1, 1, 0.15] * len(documents)  # the last is room before the next task
    panels = figure.subplots(1, len(ratios), squeeze=False, sharey=True, width_ratios=ratios)[0]
    for i, document in enumerate(documents):
        _scores(panels[4 * i], document, heights)
        _objectives(panels[4 * i + 1], document, heights)
        _zeros(panels[4 * i + 2], document, heights)
        panels[4 * i + 3].set_axis_off()
    panels[0].set_yticks(list(heights.values()), [way for way, _ in heights])
    for label, (way, _) in zip(panels[0].get_yticklabels(), heights, strict=True):
        label.set_color(_color(way))
    figure.supxlabel(CAPTION, fontsize=8, color="0.35")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _color(way: str) -> str:
    if way == OTHER_BATCHES:
        return CHANCE
    if not WAYS[way].sound:
        return UNSOUND
    return OTHERS if way in (TORCHAO, BITSANDBYTES) else OURS


def _scores(axes: Axes, document: dict[str, Any], heights: dict[tuple[str, bool], float]) -> None:
    """Test scores minus float32's, and as a band how far float32's own seeds spread."""
    for row in document["summary"]:
        if row["arm"] == reference(row["l1"]):
            own = [y for (_, with_l1), y in heights.items() if with_l1 == (row["l1"] > 0)]
            spread = row["test_spread"]
            axes.fill_betweenx(
                [min(own) - 0.5, max(own) + 0.5], -spread, spread, color="0.92", lw=0
            )
            y = heights[row["arm"], row["l1"] > 0]
            axes.plot(0, y, "o", color="white", markeredgecolor=OURS, markersize=5)
            head = f"l1 = {row['l1']:g}" if row["l1"] else "without l1"
            place = {"ha": "left", "va": "bottom", "fontsize": 8, "color": "0.35"}
            place["bbox"] = {"color": "white", "pad": 1}
            axes.text(0.02, max(own) + 0.55, head, transform=axes.get_yaxis_transform(), **place)
    axes.axvline(0, color="0.6", linewidth=0.8, zorder=0)
    for row in document["differences"]:
        y, color = heights[row["arm"], row["l1"] > 0], _color(row["arm"])
        error = row["test_error"] or 0.0
        axes.errorbar(row["test"], y, xerr=error, fmt="o", color=color, markersize=5, capsize=2.5)
    better = "higher" if document["sign"] > 0 else "lower"
    unit = "points" if document["sign"] > 0 else "nats"
    measure = "accuracy" if document["sign"] > 0 else "loss"
    axes.set_title(document["data"]["name"], fontsize=10, loc="left")
    axes.set_xlabel(f"test {measure} − fp32's\n({unit}; {better} is better)", fontsize=8)
    _dress(axes, heights, ticks=5)


def _objectives(
    axes: Axes, document: dict[str, Any], heights: dict[tuple[str, bool], float]
) -> None:
    """The objective above float32's, in percent of it."""
    (base,) = (r for r in document["summary"] if r["l1"] and r["arm"] == reference(r["l1"]))
    for row in document["differences"]:
        if row["l1"]:
            shift, error = (
                100 * (row[key] or 0.0) / base["objective"]
                for key in ("objective", "objective_error")
            )
            y, color = heights[row["arm"], True], _color(row["arm"])
            axes.errorbar(shift, y, xerr=error, fmt="s", color=color, markersize=4, capsize=2.5)
    axes.plot(0, heights[base["arm"], True], "s", color="white", markeredgecolor=OURS, markersize=4)
    axes.axvline(0, color="0.6", linewidth=0.8, zorder=0)
    axes.set_xlabel("F − fp32's\n(%)", fontsize=8)
    _dress(axes, heights, ticks=3)


def _zeros(axes: Axes, document: dict[str, Any], heights: dict[tuple[str, bool], float]) -> None:
    """Zeros in percent, with their spread over the seeds."""
    for row in document["summary"]:
        if not row["l1"]:
            continue
        y, color = heights[row["arm"], True], _color(row["arm"])
        axes.errorbar(
            row["zeros"],
            y,
            xerr=row["zeros_spread"],
            fmt="D",
            color=color,
            markersize=4,
            capsize=2.5,
        )
        if row["arm"] == reference(row["l1"]):
            axes.axvline(row["zeros"], color="0.6", linewidth=0.8, zorder=0)
    axes.set_xlabel("zeros\n(%)", fontsize=8)
    _dress(axes, heights, ticks=3)


def _dress(axes: Axes, heights: dict[tuple[str, bool], float], ticks: int) -> None:
    axes.set_ylim(min(heights.values()) - 0.7, max(heights.values()) + 1.3)
    axes.tick_params(labelsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(ticks, steps=[1, 2, 5, 10]))
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", alpha=0.3)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
