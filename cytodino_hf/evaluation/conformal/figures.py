"""Figures of sets of classes, drawn from the report's own numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..plots import BLUE, GREEN, GREY, INK, ORANGE, VERMILLION, new_figure, shortened, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = {"lac": BLUE, "aps": ORANGE, "raps": GREEN, "class": VERMILLION}
_BASIS_MARKS = {"class": "o", "lineage": "s", "all cells": "^"}
_BASIS_TITLES = {"class": "own cells", "lineage": "cells of the lineage", "all cells": "all cells"}
_MOST_SIZES = 6  # sets larger than this share the last bar


def draw_set_sizes(section: Mapping[str, Any]) -> Figure | None:
    """Share of test cells by the number of classes in their set, one panel for each kind of sets.

    Args:
        section: From `conformal_section`.

    Returns:
        None where there are no sets.
    """
    kinds = [(name, method) for name, method in section["methods"].items() if method["scores"]]
    if not kinds:
        return None
    largest = max(_largest(method["scores"]["size_counts"]) for _, method in kinds)
    shown = min(largest, _MOST_SIZES)
    figure = new_figure(2.3 * len(kinds) + 0.6, 2.9)
    panels = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
    for axes, (name, method) in zip(panels, kinds, strict=True):
        counts = np.array(method["scores"]["size_counts"], dtype=np.float64)
        bars = 100 * np.append(counts[:shown], counts[shown:].sum()) / counts.sum()
        axes.bar(range(shown + 1), bars, color=_COLOURS[name], width=0.8)
        for place, height in enumerate(bars):
            if height > 0:
                text = f"{height:.0f}" if height >= 1 else "<1"
                axes.text(place, height + 1, text, ha="center", va="bottom", fontsize=7, color=INK)
        last = f"{shown}+" if largest > shown else str(shown)
        axes.set_xticks(range(shown + 1), [*map(str, range(shown)), last])
        coverage = method["scores"]["coverage"]["value"]
        axes.set_title(
            f"{method['title']}: {100 * coverage:.1f} % covered", loc="left", fontsize=9, color=INK
        )
        axes.set_xlabel("classes in the set", fontsize=8)
        tidy(axes, "y")
    panels[0].set_ylim(0, 108)
    panels[0].set_ylabel("% of test cells", fontsize=8)
    return figure


def draw_class_coverage(section: Mapping[str, Any], order: Sequence[str] | None = None) -> Figure | None:
    """Coverage of each class with its interval beside the size of its sets: sets by class against LAC.

    Args:
        section: From `conformal_section`.
        order: Class codes from top to bottom; None takes the order of the report. Classes without a test cell are
            left out.

    Returns:
        None where there are no sets.
    """
    rows = {row["code"]: row for row in section["per_class"] if row["images"]}
    if not rows:
        return None
    chosen = [rows[code] for code in order or rows if code in rows]
    figure = new_figure(7.6, max(2.4, 0.27 * len(chosen) + 1.3))
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    kinds = [name for name in ("lac", "class") if name in chosen[0]["methods"]]
    for name, shift in zip(kinds, (-0.17, 0.17), strict=False):
        _coverage_lines(left, chosen, name, shift)
        sizes = [row["methods"][name]["mean_size"]["value"] for row in chosen]
        right.barh(np.arange(len(chosen)) + shift, sizes, height=0.3, color=_COLOURS[name])
    left.axvline(1 - section["alpha"], color=GREY, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    left.set_xlim(-0.02, 1.02)
    left.set_xlabel(f"covered (asked: {100 * (1 - section['alpha']):.0f} %, dashed)", fontsize=8)
    right.set_xlabel("mean number of classes in the set", fontsize=8)
    names = [f"{shortened(row['code'])}  n={row['images']:,}" for row in chosen]
    left.set_yticks(range(len(chosen)), names, fontsize=8)
    for label in left.get_yticklabels():
        label.set_parse_math(False)
    left.set_ylim(len(chosen) - 0.4, -0.6)
    for axes in (left, right):
        tidy(axes, "x")
    _legend(figure, kinds, {row["basis"] for row in chosen})
    return figure


def _coverage_lines(axes: Axes, rows: Sequence[Mapping[str, Any]], name: str, shift: float) -> None:
    for place, row in enumerate(rows):
        found = row["methods"][name]["coverage"]
        colour, y = _COLOURS[name], place + shift
        axes.hlines(y, found["low"], found["high"], color=colour, alpha=0.45, linewidth=2.5)
        mark = _BASIS_MARKS[row["basis"]] if name == "class" else "d"
        # Of a class with very few images the mark is hollow.
        face = "white" if row["is_few"] else colour
        axes.plot(found["value"], y, mark, color=colour, markerfacecolor=face, markersize=5)


def _legend(figure: Figure, kinds: Sequence[str], bases: set[str]) -> None:
    from matplotlib.lines import Line2D

    entries = []
    if "lac" in kinds:
        entries.append(Line2D([], [], color=_COLOURS["lac"], marker="d", label="LAC, one threshold"))
    for basis, mark in _BASIS_MARKS.items():
        if basis in bases:
            title = f"by class, from {_BASIS_TITLES[basis]}"
            entries.append(Line2D([], [], color=_COLOURS["class"], marker=mark, label=title))
    figure.legend(handles=entries, frameon=False, fontsize=8, loc="outside upper left", ncols=2)


def _largest(counts: Sequence[int]) -> int:
    return int(np.flatnonzero(counts).max(initial=1))
