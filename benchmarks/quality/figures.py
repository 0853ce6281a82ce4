"""Figures of the studies: arms as rows with their intervals; quality over the time of pretraining."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cytodino_hf.evaluation.comparison import LESS_IS_BETTER
from cytodino_hf.evaluation.plots import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    VERMILLION,
    figure_bytes,
    new_figure,
    shortened,
)

from .tables import WORDS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .pretraining_time import PretrainingTime
    from .study import Study

_PANELS = ("macro_f1", "balanced_accuracy", "nll", "ece", "critical_to_safe")
_FOLDS = (("validation", ORANGE, "s", 0.17), ("test", BLUE, "o", -0.17))
_TITLE_LENGTH = 34
_METHODS = {
    "knn_1": ("1 neighbour", ORANGE, "o"),
    "knn_20": ("20 neighbours", GREEN, "s"),
    "logistic": ("logistic regression", BLUE, "D"),
    "fine_tuned": ("fine-tuned", VERMILLION, "^"),
}


def draw_study(study: Study) -> bytes:
    """Arm minus reference in each metric, both folds, as PNG.

    A study of the reference alone shows its means.
    """
    arms = [arm for arm in study.arms if arm.name != study.reference]
    metrics = [m for m in _PANELS if m in study.arms[0].folds["test"]]
    figure = new_figure(2.6 + 2.3 * len(metrics), 1.5 + 0.42 * max(len(arms), 1), dpi=130)
    panels = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
    has_reference = any(arm.name == study.reference for arm in study.arms)
    for axes, metric in zip(panels, metrics, strict=True):
        for row, arm in enumerate(arms):
            for fold, colour, mark, shift in _FOLDS:
                score = arm.folds[fold][metric]
                if score.difference is not None:
                    axes.plot(
                        [score.low, score.high], [row + shift] * 2, color=colour, alpha=0.45, linewidth=2.5
                    )
                value = score.mean if score.difference is None else score.difference
                axes.plot(value, row + shift, mark, color=colour, markersize=5, label=f"{fold} fold")
        if has_reference:
            axes.axvline(0, color=GREY, linewidth=1, zorder=0)
        better = "left" if metric in LESS_IS_BETTER else "right"
        axes.set_title(WORDS[metric], loc="left", fontsize=9, color=INK, fontweight="bold")
        axes.set_xlabel(f"better to the {better}", fontsize=8, color=GREY)
        _tidy(axes)
    panels[0].set_yticks(range(len(arms)), [shortened(arm.title, _TITLE_LENGTH) for arm in arms])
    panels[0].set_ylim(len(arms) - 0.5, -0.5)
    handles, labels = panels[0].get_legend_handles_labels()
    once = dict(zip(labels, handles, strict=True))
    figure.legend(once.values(), once.keys(), loc="outside lower right", ncols=2, frameon=False, fontsize=8)
    what = f"arm minus {study.reference}" if has_reference else "means"
    figure.suptitle(
        f"{what}: mean of {len(study.settings['seeds'])} seeds, paired 95 % intervals over images",
        x=0.01, ha="left", fontsize=10, color=INK,
    )  # fmt: skip
    return figure_bytes(figure, "png")


def draw_pretraining_time(found: PretrainingTime) -> bytes:
    """Balanced accuracy over the minutes a backbone was pretrained, as PNG."""
    figure = new_figure(8.2, 4.4, dpi=130)
    axes = figure.subplots()
    for method, (words, colour, mark) in _METHODS.items():
        points = sorted(
            (one.seconds / 60, one.scores[method]) for one in found.backbones if method in one.scores
        )
        if not points:
            continue
        minutes = [at for at, _ in points]
        values = [score.value for _, score in points]
        axes.plot(
            minutes, values, mark, linestyle="-", color=colour, linewidth=1.3, markersize=5, label=words
        )
        for at, score in points:
            axes.plot([at, at], [score.low, score.high], color=colour, alpha=0.35, linewidth=3)
    for one in found.backbones:
        if one.monitored:
            axes.plot(
                [seconds / 60 for seconds, _ in one.monitored], [value for _, value in one.monitored],
                color=GREY, linewidth=1, linestyle=(0, (3, 2)),
                label="20 neighbours, its own probe's validation fold, while it trained",
            )  # fmt: skip
    _minutes_axis(axes, [one.seconds / 60 for one in found.backbones])
    axes.set_ylabel("balanced accuracy, test fold", fontsize=9, color=INK)
    axes.set_title(
        f"{found.images_name}: what longer pretraining gives",
        loc="left",
        fontsize=10,
        color=INK,
        fontweight="bold",
    )
    handles, labels = axes.get_legend_handles_labels()
    once: Mapping[str, Any] = dict(zip(labels, handles, strict=True))
    axes.legend(once.values(), once.keys(), frameon=False, fontsize=8, loc="best")
    _tidy(axes)
    axes.grid(axis="y", color=GREY, alpha=0.2, linewidth=0.6)
    return figure_bytes(figure, "png")


def _minutes_axis(axes: Axes, minutes: Sequence[float]) -> None:
    """Logarithmic from the shortest pretraining on, with room for an untrained backbone at 0."""
    trained = [value for value in minutes if value > 0]
    if trained:
        axes.set_xscale("symlog", linthresh=min(trained), linscale=0.4)
        if 0 in minutes:
            axes.set_xlim(left=-0.08 * min(trained))
    axes.set_xlabel("minutes of pretraining (0: untrained)", fontsize=9, color=INK)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")


def _tidy(axes: Axes) -> None:
    axes.tick_params(labelsize=8, length=0, colors=INK)
    axes.grid(axis="x", color=GREY, alpha=0.2, linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color("#cbd2d9")
