"""The figure of a probe: every method's balanced accuracy with its interval, and what a few labels give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..evaluation.plots import BLUE, GREEN, GREY, INK, ORANGE, VERMILLION, new_figure, shortened
from .methods import METHODS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MARKS = {
    "knn_1": (ORANGE, "o"),
    "knn_20": (GREEN, "s"),
    "logistic": (BLUE, "D"),
    "logistic_chosen": ("#56B4E9", "^"),
    "svm": (VERMILLION, "v"),
    "extra_trees": ("#CC79A7", "P"),
}
_LINES = ((BLUE, "-", "o"), (VERMILLION, "--", "s"), (GREEN, "-.", "D"), (ORANGE, ":", "^"), (GREY, "-", "v"))
_NAME_LENGTH = 40


def draw_probe(document: Mapping[str, Any]) -> Figure:
    """Draw the results of `run_probe`."""
    systems = document["systems"]
    names = short_names([system["name"] for system in systems])
    rows = sum(len(system["methods"]) + 1 for system in systems)
    has_few = any(system["few_shot"] for system in systems)
    figure = new_figure(11.5 if has_few else 6.5, max(3.2, 0.24 * rows + 1.4))
    panels = figure.subplots(
        1, 2 if has_few else 1, squeeze=False, width_ratios=[1.15, 1] if has_few else None
    )[0]
    _draw_methods(panels[0], systems, names)
    if has_few:
        _draw_few_shot(panels[1], systems, names)
    for axes in panels:
        axes.tick_params(labelsize=8, length=0, colors=INK)
        axes.set_axisbelow(True)
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
        axes.spines["bottom"].set_color("#cbd2d9")
    return figure


def short_names(names: Sequence[str]) -> list[str]:
    """The ends of names, as long as they stay different."""
    ends = [shortened_start(name) for name in names]
    return ends if len(set(ends)) == len(set(names)) else list(names)


def shortened_start(name: str) -> str:
    """The end of a path with an ellipsis before it where it is too long."""
    return name if len(name) <= _NAME_LENGTH else "…" + name[-(_NAME_LENGTH - 1) :]


def _draw_methods(axes: Axes, systems: Sequence[Mapping[str, Any]], names: Sequence[str]) -> None:
    place, ticks, labels, bold = 0, [], [], []
    for system, name in zip(systems, names, strict=True):
        ticks.append(place)
        labels.append(name)
        bold.append(True)
        place += 1
        for method, found in system["methods"].items():
            score, (colour, mark) = found["metrics"]["balanced_accuracy"], _MARKS[method]
            axes.hlines(place, score["low"], score["high"], color=colour, alpha=0.45, linewidth=3)
            axes.plot(score["value"], place, mark, color=colour, markersize=6)
            axes.text(
                score["high"] + 0.01, place, f"{score['value']:.3f}", fontsize=7, color=INK, va="center"
            )
            ticks.append(place)
            labels.append(shortened(METHODS[method][0]))
            bold.append(False)
            place += 1
    axes.set_yticks(ticks, labels)
    for label, is_bold in zip(axes.get_yticklabels(), bold, strict=True):
        label.set(fontsize=8, fontweight="bold" if is_bold else "normal", color=INK)
        label.set_parse_math(False)
    axes.set_ylim(place - 0.4, -0.6)
    axes.set_xlim(0, 1.06)
    axes.grid(axis="x", color="#e4e7eb", linewidth=0.8)
    n = next(iter(systems[0]["methods"].values()))["metrics"]["balanced_accuracy"]["n"]
    axes.set_xlabel(f"balanced accuracy on {n:,} test images, 95 % interval", fontsize=9)


def _draw_few_shot(axes: Axes, systems: Sequence[Mapping[str, Any]], names: Sequence[str]) -> None:
    shots = sorted({row["shots"] for system in systems for row in system["few_shot"]})
    for number, (system, name) in enumerate(zip(systems, names, strict=True)):
        colour, line, mark = _LINES[number % len(_LINES)]
        rows = system["few_shot"]
        places = [row["shots"] * 1.03 ** (number - (len(systems) - 1) / 2) for row in rows]  # side by side
        values = [row["mean"] for row in rows]
        axes.plot(
            places, values, linestyle=line, marker=mark, color=colour, markersize=5, linewidth=1.4, label=name
        )
        for place, row in zip(places, rows, strict=True):
            if row["low"] is not None:
                axes.vlines(place, row["low"], row["high"], color=colour, alpha=0.5, linewidth=2)
    axes.set_xscale("log")
    axes.set_xticks(shots, [str(n) for n in shots])
    axes.minorticks_off()
    axes.set_ylim(0, 1)
    axes.grid(color="#e4e7eb", linewidth=0.8)
    axes.set_xlabel("labelled images of each class (log scale)", fontsize=9)
    axes.set_ylabel("balanced accuracy, mean over draws", fontsize=9)
    legend = axes.legend(frameon=False, fontsize=8, loc="upper left")
    for text in legend.get_texts():
        text.set_parse_math(False)
