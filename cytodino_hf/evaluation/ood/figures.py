"""Figures of strange images: where the scores lie, and ROC curves; drawn from the report's own numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..plots import BLUE, GREEN, GREY, INK, ORANGE, VERMILLION, new_figure, shortened, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_SETS = 3  # more lines in one panel cannot be told apart
_LINES = {"max_softmax": ("-", GREY), "energy": ((0, (1, 1.2)), ORANGE), "knn": ("-", BLUE)}
_LINES["mahalanobis"] = ((0, (5, 2)), GREEN)
_SET_LINES = ((VERMILLION, "-"), (ORANGE, (0, (4, 2))), (GREEN, (0, (1, 1.2))))


def draw_ood_scores(section: Mapping[str, Any]) -> Figure | None:
    """Where each score lies for known and for strange images, and the threshold; one panel a score.

    Args:
        section: From `ood_section`.

    Returns:
        None where no known image was scored.
    """
    if not section["histograms"]:
        return None
    names = list(section["histograms"])
    columns = min(2, len(names))
    rows = -(-len(names) // columns)
    figure = new_figure(4.2 * columns, 2.4 * rows + 0.6)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    sets = _shown_sets(section)
    for axes, name in zip(panels, names, strict=False):
        histogram = section["histograms"][name]
        edges = np.array(histogram["edges"])
        known = 100 * np.array(histogram["known"])
        axes.stairs(known, edges, fill=True, color=BLUE, alpha=0.35, label="known classes, test fold")
        for (colour, line), other in zip(_SET_LINES, sets, strict=False):
            shares = 100 * np.array(histogram["sets"][other])
            axes.stairs(
                shares, edges, color=colour, linestyle=line, linewidth=1.4, label=_title(section, other)
            )
        axes.axvline(
            section["thresholds"][name], color=INK, linewidth=1, linestyle=(0, (2, 2)), label="threshold"
        )
        decides = "  (decides)" if name == section["deciding"] else ""
        axes.set_title(f"{section['scores'][name]}{decides}", loc="left", fontsize=9, color=INK)
        axes.set_ylabel("% of images", fontsize=8)
        tidy(axes)
    for axes in panels[len(names) :]:
        axes.set_visible(False)
    panels[len(names) - 1].set_xlabel("the stranger the further right", fontsize=8)
    _legend(figure, panels[0])
    return figure


def draw_ood_roc(section: Mapping[str, Any]) -> Figure | None:
    """ROC curves of the scores, one panel for each set of strange images.

    Args:
        section: From `ood_section`.

    Returns:
        None where nothing was told apart.
    """
    sets = [name for name in _shown_sets(section) if section["sets"][name]["scores"]]
    if not sets:
        return None
    figure = new_figure(3.1 * len(sets) + 0.4, 3.6)
    for axes, name in zip(figure.subplots(1, len(sets), sharey=True, squeeze=False)[0], sets, strict=True):
        for score, title in section["scores"].items():
            found = section["sets"][name]["scores"][score]
            curve = 100 * np.array(found["roc"])
            line, colour = _LINES[score]
            label = f"{title}  {found['auroc']['value']:.3f}"
            axes.plot(curve[:, 0], curve[:, 1], color=colour, linestyle=line, linewidth=1.6, label=label)
        axes.plot([0, 100], [0, 100], color="#cbd2d9", linewidth=0.8, zorder=1)
        axes.set_aspect("equal")
        text = axes.set_title(_title(section, name), loc="left", fontsize=9, color=INK)
        text.set_parse_math(False)
        axes.set_xlabel("% of known images called out", fontsize=8)
        axes.legend(frameon=False, fontsize=7, loc="lower right", title="AUROC", title_fontsize=7)
        tidy(axes)
    figure.axes[0].set_ylabel("% of strange images called out", fontsize=8)
    return figure


def _shown_sets(section: Mapping[str, Any]) -> Sequence[str]:
    """The largest sets, in the order of the report; single classes give way to all of them together."""
    sets = section["sets"]
    kinds = {one["kind"] for one in sets.values()}
    wanted = [name for name in sets if not (sets[name]["kind"] == "class" and "classes" in kinds)]
    largest = sorted(wanted, key=lambda name: -sets[name]["images"])[:_MOST_SETS]
    return [name for name in wanted if name in largest]


def _title(section: Mapping[str, Any], name: str) -> str:
    return f"{shortened(name)}  n={section['sets'][name]['images']:,}"


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    legend = figure.legend(handles, labels, frameon=False, fontsize=8, loc="outside upper left", ncols=2)
    for text in legend.get_texts():
        text.set_parse_math(False)
