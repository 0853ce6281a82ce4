"""Figures of transfer: what each way to prepare the pictures reaches, and which common classes are taken for which."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ..plots import BLUE, GREEN, INK, ORANGE, VERMILLION, draw_confusion_matrix, new_figure, shortened, tidy

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_METRICS = {"accuracy": "accuracy", "balanced_accuracy": "balanced accuracy", "macro_f1": "macro F1"}
_SIGNS = ((BLUE, "o"), (VERMILLION, "D"), (GREEN, "s"), (ORANGE, "^"), (INK, "v"))


def draw_transfer(section: Mapping[str, Any]) -> Figure:
    """Accuracy, balanced accuracy and macro F1 on the common classes with their intervals, one sign for each way.

    Args:
        section: Of `transfer_section`.
    """
    ways = section["ways"]
    figure = new_figure(5.6, 1.5 + 0.22 * len(_METRICS) * len(ways))
    axes = figure.subplots()
    step = 0.62 / max(1, len(ways))
    for number, (name, way) in enumerate(ways.items()):
        colour, marker = _SIGNS[number % len(_SIGNS)]
        metrics = way["scores"]["metrics"]
        places = np.arange(len(_METRICS)) + (number - (len(ways) - 1) / 2) * step
        low, value, high = (
            np.array([metrics[metric][end] for metric in _METRICS]) for end in ("low", "value", "high")
        )
        axes.hlines(places, low, high, color=colour, linewidth=3, alpha=0.5)
        axes.plot(value, places, marker, color=colour, markersize=6, label=shortened(name, 40))
    axes.set_yticks(range(len(_METRICS)), labels=list(_METRICS.values()), fontsize=9, color=INK)
    axes.set_ylim(len(_METRICS) - 0.5, -0.5)
    axes.set_xlim(-0.02, 1.02)
    axes.set_xlabel(f"on {section['images']:,} images of the common classes", fontsize=9)
    legend = axes.legend(
        frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=min(2, len(ways))
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
    tidy(axes, "x")
    return figure


def draw_transfer_confusion(section: Mapping[str, Any], way: str | None = None) -> Figure:
    """Confusion matrix of the common classes; critical cells called safe are outlined.

    Args:
        section: Of `transfer_section`.
        way: Which way to prepare the pictures; None takes the first.
    """
    scores = section["ways"][way or next(iter(section["ways"]))]["scores"]
    lineages = list(dict.fromkeys(row["lineage"] for row in scores["per_class"]))
    # Members of a lineage stand together.
    order = sorted(
        range(len(scores["per_class"])), key=lambda i: lineages.index(scores["per_class"][i]["lineage"])
    )
    rows = [scores["per_class"][i] for i in order]
    critical, safe = (np.array([bool(row[key]) for row in rows]) for key in ("is_critical", "is_safe"))
    return draw_confusion_matrix(
        np.array(scores["confusion_matrix"])[np.ix_(order, order)],
        [row["code"] for row in rows],
        [row["lineage"] for row in rows],
        critical[:, None] & safe[None, :],
    )
