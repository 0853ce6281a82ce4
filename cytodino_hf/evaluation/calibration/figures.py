"""Reliability diagrams: how often the model is right when it is so sure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ..plots import BLUE, GREY, INK, VERMILLION, new_figure, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw_reliability(section: Mapping[str, Any]) -> Figure | None:
    """Reliability before and after scaling, side by side, with Wilson intervals; below it where the images lie.

    Args:
        section: Of `calibration_section`.

    Returns:
        None where no image was scored.
    """
    stages = [(name, bins) for name, bins in section["reliability"].items() if bins]
    if not stages:
        return None
    figure = new_figure(3.9 * len(stages) + 0.4, 4.6)
    panels = figure.subplots(
        2, len(stages), squeeze=False, sharex=True, sharey="row", gridspec_kw={"height_ratios": [4, 1]}
    )
    titles = {"before": "as the model says it", "after": f"after {_words(section['method'])}"}
    for column, (name, bins) in enumerate(stages):
        ece = section["metrics"]["ece"][name]
        _reliability(panels[0, column], bins, "o" if name == "before" else "D")
        ends = "" if ece["low"] is None else f" ({ece['low']:.3f} to {ece['high']:.3f})"
        panels[0, column].set_title(
            f"{titles[name]}\nECE {ece['value']:.3f}{ends}",
            loc="left",
            fontsize=9,
            color=INK,
            fontweight="bold",
        )
        _shares(panels[1, column], bins)
    panels[0, 0].set_ylabel("share right", fontsize=9)
    panels[1, 0].set_ylabel("images", fontsize=9)
    return figure


def _words(method: str | None) -> str:
    return {"temperature": "temperature scaling", "vector": "vector scaling"}.get(str(method), "no scaling")


def _reliability(axes: Axes, bins: list[dict[str, Any]], marker: str) -> None:
    sure, right, low, high = (
        np.array([b[key] for b in bins]) for key in ("confidence", "accuracy", "low", "high")
    )
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=(0, (4, 3)), label="as sure as right")
    axes.vlines(sure, low, high, color=BLUE, alpha=0.45, linewidth=3)
    axes.plot(sure, right, color=BLUE, linewidth=1)
    is_off = (sure < low) | (sure > high)
    axes.plot(
        sure[~is_off], right[~is_off], marker, color=BLUE, markersize=6, label="agrees with the diagonal"
    )
    if is_off.any():
        axes.plot(
            sure[is_off], right[is_off], "X", color=VERMILLION, markersize=7, label="its interval does not"
        )
    axes.set_xlim(0, 1.02)
    axes.set_ylim(0, 1.02)
    axes.legend(frameon=False, fontsize=8, loc="upper left")
    tidy(axes)


def _shares(axes: Axes, bins: list[dict[str, Any]]) -> None:
    axes.bar([b["confidence"] for b in bins], [b["images"] for b in bins], width=0.03, color=GREY)
    axes.set_xlabel("confidence of the answer", fontsize=9)
    axes.set_yscale("log")
    # A bin of one image has a bar as well.
    axes.set_ylim(bottom=0.5)
    tidy(axes)
