"""Risk-coverage curves: what each score leaves of the mistakes when fewer and fewer answers are kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ..plots import BLUE, GREEN, GREY, INK, ORANGE, VERMILLION, new_figure, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# A colour and a dash each, so that the curves are told apart without colour as well.
_STYLES: dict[str, tuple[str, Any]] = {
    "max_probability": (BLUE, "-"),
    "margin": (ORANGE, (0, (5, 2))),
    "entropy": (GREEN, (0, (1, 1.2))),
    "energy": (VERMILLION, (0, (4, 1.5, 1, 1.5))),
    "expected_cost": (INK, (0, (8, 2))),
}


def draw_risk_coverage(section: Mapping[str, Any]) -> Figure | None:
    """Risk against coverage of every score: all mistakes, and critical cells called safe.

    The expected clinical cost ranks dangerous mistakes alone, so it is drawn with those only.

    Args:
        section: Of `selective_section`.

    Returns:
        None where no image was scored.
    """
    curves = section["curves"]
    if curves is None:
        return None
    has_critical = bool(curves["critical"])
    figure = new_figure(8.4 if has_critical else 4.6, 4.4)
    panels = figure.subplots(1, 2 if has_critical else 1, squeeze=False)[0]
    coverage = 100 * np.array(curves["coverage"])
    of_all = {
        n: risk for n, risk in curves["all"].items() if n != "expected_cost" or n == section["score_in_use"]
    }
    _curves(panels[0], coverage, of_all, section)
    panels[0].plot(
        coverage, 100 * np.array(curves["best"]), color=GREY, linewidth=1, label="best possible order"
    )
    if curves["band"]:
        low, high = (100 * np.array(curves["band"][end]) for end in ("low", "high"))
        colour = _STYLES[curves["band"]["score"]][0]
        panels[0].fill_between(coverage, low, high, color=colour, alpha=0.18, linewidth=0)
    _title(panels[0], "All mistakes", section["images"])
    panels[0].set_xlabel("answers kept, the surest first (%)", fontsize=9)
    panels[0].set_ylabel("wrong among those kept (%)", fontsize=9)
    if has_critical:
        _curves(panels[1], coverage, curves["critical"], section)
        _title(panels[1], "Critical cells called safe", curves["critical_images"])
        panels[1].set_xlabel("critical cells kept (%)", fontsize=9)
        panels[1].set_ylabel("called safe among those kept (%)", fontsize=9)
    named = dict(
        pair for axes in panels for pair in zip(*reversed(axes.get_legend_handles_labels()), strict=True)
    )
    figure.legend(
        named.values(),
        named.keys(),
        loc="outside lower center",
        ncols=3 if has_critical else 2,
        frameon=False,
        fontsize=8,
    )
    return figure


def _curves(
    axes: Axes, coverage: np.ndarray, curves: Mapping[str, list[float]], section: Mapping[str, Any]
) -> None:
    for name, risk in curves.items():
        colour, dash = _STYLES[name]
        is_used = name == section["score_in_use"]
        axes.plot(
            coverage,
            100 * np.array(risk),
            color=colour,
            linestyle=dash,
            linewidth=2.2 if is_used else 1.4,
            label=f"{section['scores'][name]['words']}{' (in use)' if is_used else ''}",
        )
    axes.set_xlim(0, 101)
    axes.set_ylim(bottom=0)
    tidy(axes)


def _title(axes: Axes, text: str, images: int) -> None:
    axes.set_title(f"{text}  n = {images:,}", loc="left", fontsize=10, color=INK, fontweight="bold")
