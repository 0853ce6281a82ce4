"""The figure of test-time augmentation: how much better each metric becomes, with its interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .plots import BLUE, GREY, INK, ORANGE, new_figure, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_NAMES = {
    "macro_f1": "macro F1",
    "balanced_accuracy": "balanced accuracy",
    "accuracy": "accuracy",
    "critical_to_safe": "critical called safe",
    "nll": "NLL (nats)",
    "brier": "Brier score",
    "ece": "ECE",
}
_OF_PROBABILITIES = ("nll", "brier", "ece")


def draw_symmetries(section: Mapping[str, Any]) -> Figure:
    """Gain of each metric by the average over the symmetries; right of the line is better, whatever the metric.

    Args:
        section: Of `symmetries_section`, with at least one metric.
    """
    rows = list(section["metrics"])
    groups = {
        "answers": [row for row in rows if row["name"] not in _OF_PROBABILITIES],
        "probabilities": [row for row in rows if row["name"] in _OF_PROBABILITIES],
    }
    groups = {title: entries for title, entries in groups.items() if entries}
    figure = new_figure(4.3 * len(groups), 2.7)
    for axes, (title, entries) in zip(
        figure.subplots(1, len(groups), squeeze=False)[0], groups.items(), strict=True
    ):
        _gains(axes, entries)
        axes.set_title(title, loc="left", fontsize=10, color=INK, fontweight="bold")
    return figure


def _gains(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    axes.axvline(0, color=GREY, linewidth=1)
    for place, row in enumerate(rows):
        sign = -1 if row["less_is_better"] else 1
        # Shape and colour both tell a clear difference from one that may be none.
        colour, marker = (BLUE, "o") if row["is_clear"] else (ORANGE, "D")
        if row["low"] is not None:
            low, high = sorted((sign * row["low"], sign * row["high"]))
            axes.hlines(place, low, high, color=colour, linewidth=3, alpha=0.55)
        axes.plot(sign * row["difference"], place, marker, color=colour, markersize=6)
    axes.set_yticks(range(len(rows)), labels=[_NAMES[row["name"]] for row in rows], fontsize=8, color=INK)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.margins(x=0.1)
    axes.set_xlabel("gain by averaging (right is better)", fontsize=8)
    tidy(axes, "x")
    axes.locator_params(axis="x", nbins=5)
