"""Figures of a report: arrays in, a matplotlib Figure out; nothing is computed here that a number depends on.

Figures are made without pyplot: no window, no global state, and the same input gives the same bytes. Colours
are those of Okabe and Ito, told apart by colour-blind readers; a second sign (shape, outline) goes with them.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..page import data_address
from .statistics import FEW_IMAGES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, VERMILLION, INK, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#1f2933", "#7b8794"
LABEL_LENGTH = 24  # of a class in a chart: a longer one would leave no room for the data


@dataclass(frozen=True)
class TrainingCurves:
    """What a trainer logged, as columns of (step, value); a column without entries is empty.

    Args:
        train_loss, eval_loss, eval_macro_f1: (entries, 2) float64.
        learning_rates: Name of the group -> (entries, 2) float64.
    """

    train_loss: np.ndarray
    eval_loss: np.ndarray
    eval_macro_f1: np.ndarray
    learning_rates: dict[str, np.ndarray]

    @property
    def is_empty(self) -> bool:
        """Nothing was logged, so there is nothing to draw."""
        columns = (self.train_loss, self.eval_loss, self.eval_macro_f1, *self.learning_rates.values())
        return not any(len(column) for column in columns)


def training_curves(log_history: Sequence[Mapping[str, Any]]) -> TrainingCurves:
    """Sort `trainer.state.log_history` into curves; values that are not finite are left out.

    Args:
        log_history: Entries with `step` and any of `loss`, `eval_loss`, `eval_macro_f1`, `learning_rate*`.
    """

    def column(key: str) -> np.ndarray:
        pairs = [
            (e["step"], e[key]) for e in log_history if e.get(key) is not None and e.get("step") is not None
        ]
        found = np.array(pairs, dtype=np.float64).reshape(-1, 2)
        return found[np.isfinite(found).all(1)]

    rates = sorted({key for entry in log_history for key in entry if key.startswith("learning_rate")})
    return TrainingCurves(
        train_loss=column("loss"),
        eval_loss=column("eval_loss"),
        eval_macro_f1=column("eval_macro_f1"),
        learning_rates={key: column(key) for key in rates},
    )


def draw_training_curves(curves: TrainingCurves, best_step: int | None = None) -> Figure:
    """Loss, macro F1 on the validation fold and learning rate over the steps; the chosen step is marked.

    What was not logged gets no panel.
    """
    rates = {
        name.removeprefix("learning_rate").strip("_/ ") or "learning rate": values
        for name, values in curves.learning_rates.items()
    }
    panels = {
        "loss": {"training": curves.train_loss, "validation": curves.eval_loss},
        "macro F1": {"validation": curves.eval_macro_f1},
        "learning rate": rates,
    }
    panels = {title: lines for title, lines in panels.items() if any(map(len, lines.values()))}
    figure = new_figure(3.5 * len(panels), 3.2)
    for axes, (title, lines) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
    ):
        colours = iter((GREEN, BLUE, ORANGE, VERMILLION) * len(lines))
        for label, values in lines.items():
            _line(
                axes, values, {"training": BLUE, "validation": VERMILLION}.get(label) or next(colours), label
            )
        if best_step is not None:
            axes.axvline(
                best_step, color=GREY, linewidth=1, linestyle=(0, (4, 3)), zorder=1, label="chosen step"
            )
        if len(axes.get_lines()) > 1:
            axes.legend(frameon=False, fontsize=8)
        axes.set_title(title, loc="left", fontsize=10, color=INK, fontweight="bold")
        axes.set_xlabel("step", fontsize=8)
        tidy(axes)
        if title == "learning rate":
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:.1e}")
    return figure


def draw_confusion_matrix(
    matrix: np.ndarray,
    names: Sequence[str],
    lineages: Sequence[str],
    is_dangerous: np.ndarray | None = None,
) -> Figure:
    """Confusion matrix: colour is the share of the true class, the number in a cell is the count.

    Args:
        matrix: (K, K) counts, rows true, in the order to draw.
        names: Class names in that order.
        lineages: Lineage of each class in that order; members of a lineage stand together.
        is_dangerous: (K, K) bool, cells to outline (critical cells called safe); None outlines none.
    """
    k = len(names)
    support = matrix.sum(1, keepdims=True)
    shares = np.divide(matrix, support, out=np.zeros(matrix.shape), where=support > 0)
    side = min(max(0.38 * k, 2.4), 20.0)
    figure = new_figure(side + 2.6, side + 1.6)
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="equal")
    for t, p in np.argwhere(matrix):
        colour = "white" if shares[t, p] > 0.55 else INK
        axes.text(p, t, _count(matrix[t, p]), ha="center", va="center", fontsize=7, color=colour)
    if is_dangerous is not None:
        _outline(axes, np.asarray(is_dangerous) & (matrix > 0))
    rows = [f"{shortened(name)}  {n:,}" for name, n in zip(names, support[:, 0], strict=True)]
    _labels(axes, "x", range(k), [shortened(name) for name in names], rotation=90)
    _labels(axes, "y", range(k), rows)
    axes.set_xlabel("predicted", fontsize=9)
    axes.set_ylabel("true (images)", fontsize=9)
    _lineage_marks(axes, lineages)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    bar = figure.colorbar(image, ax=axes, shrink=0.5, aspect=30, pad=0.02, location="bottom")
    bar.set_label("share of the true class", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)
    return figure


def draw_class_f1(
    names: Sequence[str],
    values: np.ndarray,
    lows: np.ndarray,
    highs: np.ndarray,
    images: np.ndarray,
    is_critical: np.ndarray,
) -> Figure:
    """F1 of each class with its interval, best first; critical classes are orange diamonds.

    Args:
        names: Class names.
        values, lows, highs: (K,) F1 and the ends of its interval.
        images: (K,) images of the class in the fold.
        is_critical: (K,) bool.
    """
    order = np.argsort(-np.asarray(values), kind="stable")
    # Narrow enough to be read on a telephone.
    figure = new_figure(4.8, max(2.0, 0.25 * len(names) + 1.0))
    axes = figure.subplots()
    places = np.arange(len(names))
    groups = ((~is_critical, BLUE, "o", "other classes"), (is_critical, VERMILLION, "D", "critical classes"))
    for mask, colour, marker, label in groups:
        chosen = mask[order]
        if chosen.any():
            rows = order[chosen]
            axes.hlines(places[chosen], lows[rows], highs[rows], color=colour, alpha=0.45, linewidth=3)
            axes.plot(values[rows], places[chosen], marker, color=colour, markersize=6, label=label)
    counts = [f"n={n:,}" + (" (few)" if n < FEW_IMAGES else "") for n in images]
    _labels(axes, "y", places, [f"{shortened(names[i])}  {counts[i]}" for i in order])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(-0.02, 1.02)
    axes.set_xlabel("F1 with its interval", fontsize=9)
    if is_critical.any():
        axes.legend(frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    tidy(axes, "x")
    return figure


def new_figure(
    wide: float, high: float, dpi: int = 110, layout: Literal["constrained"] | None = "constrained"
) -> Figure:
    """A white figure that belongs to no window.

    Args:
        wide, high: Inches.
        dpi: Pixels of an inch.
        layout: None places axes where they are told to be.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(wide, high), dpi=dpi, layout=layout, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def shortened(text: str, length: int = LABEL_LENGTH) -> str:
    """A name with an ellipsis where it is too long to stand beside others."""
    return text if len(text) <= length else text[: length - 1] + "…"


def figure_bytes(figure: Figure, format: Literal["svg", "png"]) -> bytes:
    """Render a figure; the same figure gives the same bytes (no date, no random ids)."""
    import matplotlib

    buffer = io.BytesIO()
    options: dict[str, Any] = (
        {"metadata": {"Date": None}} if format == "svg" else {"metadata": {"Software": None}}
    )
    with matplotlib.rc_context({"svg.hashsalt": "cytodino"}):
        figure.savefig(buffer, format=format, dpi=figure.dpi, **options)
    return buffer.getvalue()


def figure_to_data_uri(figure: Figure, format: Literal["svg", "png"] = "svg") -> str:
    """A figure as a `data:` address, for a page that needs no other file."""
    return bytes_to_data_uri(figure_bytes(figure, format), format)


def bytes_to_data_uri(content: bytes, format: Literal["svg", "png"]) -> str:
    """Rendered bytes as a `data:` address."""
    kind = {"svg": "image/svg+xml", "png": "image/png"}[format]
    return data_address(content, kind)


def _line(axes: Axes, values: np.ndarray, colour: str, label: str) -> None:
    if len(values):
        # Few points are evaluations and show where they were made; one point alone draws no line.
        marker = "o" if label == "validation" or len(values) == 1 else ""
        axes.plot(
            values[:, 0], values[:, 1], color=colour, linewidth=1.6, marker=marker, markersize=4, label=label
        )


def tidy(axes: Axes, grid: Literal["both", "x", "y"] = "both") -> None:
    """The look of a chart of this project: light grid, small labels, no box."""
    axes.grid(axis=grid, color="#e4e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8, length=0, colors=INK)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color("#cbd2d9")


def _labels(axes: Axes, axis: str, places: Any, texts: Sequence[str], **style: Any) -> None:
    """Tick labels as they are: a `$` in a class name is no formula."""
    chosen = axes.xaxis if axis == "x" else axes.yaxis
    chosen.set_ticks(list(places), labels=list(texts), fontsize=8, color=INK, **style)
    for label in chosen.get_ticklabels():
        label.set_parse_math(False)


def _outline(axes: Axes, cells: np.ndarray) -> None:
    from matplotlib.patches import Rectangle

    for t, p in np.argwhere(cells):
        axes.add_patch(
            Rectangle((p - 0.46, t - 0.46), 0.92, 0.92, fill=False, edgecolor=VERMILLION, linewidth=1.4)
        )


def _lineage_marks(axes: Axes, lineages: Sequence[str]) -> None:
    """Lines between lineages, and their names right of the rows."""
    k = len(lineages)
    starts = [i for i in range(k) if i == 0 or lineages[i] != lineages[i - 1]]
    for start, end in zip(starts, [*starts[1:], k], strict=True):
        if start:
            axes.axhline(start - 0.5, color="#9aa5b1", linewidth=0.8)
            axes.axvline(start - 0.5, color="#9aa5b1", linewidth=0.8)
        middle = (start + end - 1) / 2
        text = axes.text(
            k - 0.35, middle, shortened(lineages[start]), fontsize=8, color=GREY, va="center", ha="left"
        )
        text.set_parse_math(False)


def _count(n: int) -> str:
    return str(n) if n < 10_000 else f"{n / 1000:.0f}k"
