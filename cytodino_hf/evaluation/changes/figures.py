"""Figures of a comparison: what changed in the whole, and in each class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..comparison import LESS_IS_BETTER
from ..plots import BLUE, GREY, INK, VERMILLION, new_figure, shortened, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Has another scale than shares.
_NOT_DRAWN = ("nll",)
_WORDS = {"macro_f1": "macro F1", "ece": "ECE"}


def draw_comparison(section: Mapping[str, Any]) -> Figure:
    """Differences of the metrics and of each class's recall with intervals; right of zero is better.

    Filled: clear (of classes after Holm's correction). Hollow: other test images might turn it round.

    Args:
        section: From `comparison_section`.
    """
    classes = [row for row in section["per_class"] if row["change"] is not None]
    figure = new_figure(9.0, max(2.6, 0.25 * max(len(classes), len(section["metrics"])) + 1.2))
    metrics, recalls = figure.subplots(1, 2)
    drawn = {name: entry for name, entry in section["metrics"].items() if name not in _NOT_DRAWN}
    sign = [-1 if name in LESS_IS_BETTER else 1 for name in drawn]
    names = [
        f"{_WORDS.get(name, name.replace('_', ' '))}{' (less is better)' if s < 0 else ''}"
        for name, s in zip(drawn, sign, strict=True)
    ]
    _rows(
        metrics,
        names,
        list(drawn.values()),
        sign,
        [entry["verdict"] != "unclear" for entry in drawn.values()],
    )
    metrics.set_title("metrics", loc="left", fontsize=10, color=INK, fontweight="bold")
    names = [f"{shortened(row['code'])}  n={row['n']:,}" for row in classes]
    changes = [row["change"] for row in classes]
    _rows(recalls, names, changes, [1] * len(classes), [row["is_clear"] for row in classes])
    recalls.set_title("recall of each class", loc="left", fontsize=10, color=INK, fontweight="bold")
    for axes in (metrics, recalls):
        axes.set_xlabel("worse  <  difference  >  better", fontsize=9)
    return figure


def _rows(
    axes: Axes,
    names: Sequence[str],
    entries: Sequence[Mapping[str, Any]],
    signs: Sequence[int],
    are_clear: Sequence[bool],
) -> None:
    places = np.arange(len(names))
    value = np.array([sign * entry["value"] for sign, entry in zip(signs, entries, strict=True)])
    # A metric's interval knows the seeds as well; that of a class's recall is over images.
    ends = [(e.get("low_of_both", e["low"]), e.get("high_of_both", e["high"])) for e in entries]
    axes.axvline(0, color=GREY, linewidth=1, zorder=1)
    for place in places.tolist():
        colour = GREY if not are_clear[place] else BLUE if value[place] > 0 else VERMILLION
        marker = "D" if value[place] < 0 else "o"
        low, high = ends[place]
        if low is not None:
            axes.hlines(place, signs[place] * low, signs[place] * high, color=colour, alpha=0.5, linewidth=3)
        face = colour if are_clear[place] else "white"
        axes.plot(value[place], place, marker, color=colour, markerfacecolor=face, markersize=6)
    axes.set_yticks(places, labels=list(names), fontsize=8, color=INK)
    for label in axes.get_yticklabels():
        label.set_parse_math(False)
    axes.set_ylim(len(names) - 0.4, -0.6)
    tidy(axes, "x")
