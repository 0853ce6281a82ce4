"""Figures of the studies: arms as rows with their intervals; quality over the time of pretraining."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

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
)

from .scores import FOLDS
from .tables import WORDS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .pretraining_time import PretrainedBackbone, PretrainingTime
    from .study import Study

_PANELS = ("macro_f1", "balanced_accuracy", "nll", "ece", "critical_to_safe")
_FOLDS = (("validation", ORANGE, "s", -0.17), ("test", BLUE, "o", 0.17))
_LINE_LENGTH = 26  # of the titles of arms, which take two lines where they are longer
_METHODS = {
    "knn_1": ("1 neighbour", ORANGE, "o"),
    "knn_20": ("20 neighbours", GREEN, "s"),
    "logistic": ("logistic regression", BLUE, "D"),
    "fine_tuned": ("fine-tuned", VERMILLION, "^"),
}
# Points between the methods of one backbone, whose intervals would lie upon each other.
_APART_PT = 5.0


def draw_study(study: Study) -> bytes:
    """Arm minus reference in each metric, both folds, as PNG.

    A study of the reference alone shows its means.
    """
    arms = [arm for arm in study.arms if arm.name != study.reference]
    metrics = [m for m in _PANELS if m in study.arms[0].folds["test"]]
    figure = new_figure(2.6 + 2.3 * len(metrics), 1.7 + 0.45 * max(len(arms), 1), dpi=130)
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
        axes.locator_params(axis="x", nbins=4)
        axes.set_xlabel(f"better to the {better}", fontsize=8, color=GREY)
        _tidy(axes)
    panels[0].set_yticks(range(len(arms)), [textwrap.fill(arm.title, _LINE_LENGTH) for arm in arms])
    panels[0].set_ylim(len(arms) - 0.5, -0.5)
    handles, labels = panels[0].get_legend_handles_labels()
    once = dict(zip(labels, handles, strict=True))
    figure.legend(once.values(), once.keys(), loc="outside lower right", ncols=2, frameon=False, fontsize=8)
    what = f"arm minus {study.reference}" if has_reference else "means"
    seeds = len(study.settings["seeds"])
    over = "images and seeds" if seeds > 1 else "images"
    figure.suptitle(
        f"{study.images_name}, {what}: mean of {seeds} seed{'s' * (seeds > 1)}\n95 % intervals over {over}",
        x=0.01, ha="left", fontsize=10, color=INK,
    )  # fmt: skip
    return figure_bytes(figure, "png")


def draw_pretraining_time(found: PretrainingTime) -> bytes:
    """Balanced accuracy of both folds over the minutes a backbone was pretrained, as PNG."""
    figure = new_figure(11, 4.8, dpi=130)
    panels = figure.subplots(1, len(FOLDS), sharey=True)
    for axes, fold in zip(panels, FOLDS, strict=True):
        if fold == found.decides:
            _draw_monitored(axes, found.backbones)
        shown = [name for name in _METHODS if any(name in one.scores[fold] for one in found.backbones)]
        for place, method in enumerate(shown):
            _draw_method(axes, found.backbones, fold, method, (place - (len(shown) - 1) / 2) * _APART_PT)
        _minutes_axis(axes, [one.seconds / 60 for one in found.backbones])
        _name_backbones(axes, found.backbones)
        word = f"{fold} fold (it decides)" if fold == found.decides else f"{fold} fold"
        axes.set_title(word, loc="left", fontsize=9, color=INK, fontweight="bold")
        _tidy(axes)
        axes.grid(axis="y", color=GREY, alpha=0.2, linewidth=0.6)
    panels[0].set_ylabel("balanced accuracy", fontsize=9, color=INK)
    handles, labels = panels[0].get_legend_handles_labels()
    once = dict(zip(labels, handles, strict=True))
    figure.legend(once.values(), once.keys(), loc="outside lower left", ncols=3, frameon=False, fontsize=8)
    figure.suptitle(
        f"{found.images_name}: what longer pretraining gives; 95 % intervals over images",
        x=0.01, ha="left", fontsize=10, color=INK,
    )  # fmt: skip
    return figure_bytes(figure, "png")


def _draw_method(
    axes: Axes, backbones: Sequence[PretrainedBackbone], fold: str, method: str, aside_pt: float
) -> None:
    """One method over the backbones, moved aside so that its intervals stand beside those of the others."""
    from matplotlib.transforms import ScaledTranslation

    words, colour, mark = _METHODS[method]
    points = sorted(
        (one.seconds / 60, one.scores[fold][method]) for one in backbones if method in one.scores[fold]
    )
    figure = axes.get_figure()
    assert figure is not None
    moved = axes.transData + ScaledTranslation(aside_pt / 72, 0, figure.dpi_scale_trans)
    minutes, reached = [at for at, _ in points], [score for _, score in points]
    axes.plot(
        minutes, [score.value for score in reached], mark, linestyle="-", color=colour, linewidth=1.2,
        markersize=5, label=words, transform=moved,
    )  # fmt: skip
    axes.vlines(
        minutes, [score.low for score in reached], [score.high for score in reached],
        color=colour, alpha=0.45, linewidth=2.2, transform=moved,
    )  # fmt: skip
    for at, score in points:  # what is moved does not count for the limits
        axes.update_datalim([(at, score.low), (at, score.high)])
    axes.autoscale_view()


def _draw_monitored(axes: Axes, backbones: Sequence[PretrainedBackbone]) -> None:
    """What each pretraining saw of itself."""
    for one in backbones:
        if not one.monitored:
            continue
        minutes = [seconds / 60 for seconds, _ in one.monitored]
        values = [value for _, value in one.monitored]
        axes.plot(
            minutes, values, color=GREY, linewidth=1, linestyle=(0, (3, 2)), zorder=1,
            label="20 neighbours while it trained, by the pretraining's own probe",
        )  # fmt: skip


def _name_backbones(axes: Axes, backbones: Sequence[PretrainedBackbone]) -> None:
    """Each backbone's name upright at the foot of its time: beside its points it would lie on other lines."""
    for one in backbones:
        axes.annotate(
            one.name, (one.seconds / 60, 0.02), xycoords=axes.get_xaxis_transform(), xytext=(0, 0),
            textcoords="offset points", ha="center", va="bottom", rotation=90, fontsize=7, color=GREY,
        )  # fmt: skip


def _minutes_axis(axes: Axes, minutes: Sequence[float]) -> None:
    """Logarithmic from the shortest pretraining on, with room for an untrained backbone at 0."""
    trained = [value for value in minutes if value > 0]
    if trained:
        axes.set_xscale("symlog", linthresh=min(trained), linscale=0.4)
        # Room at both ends: methods stand beside each other.
        axes.set_xlim(-0.3 * min(trained) if 0 in minutes else 0.8 * min(trained), 1.5 * max(trained))
    axes.set_xlabel("minutes of pretraining (0: untrained)", fontsize=9, color=INK)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")


def _tidy(axes: Axes) -> None:
    axes.tick_params(labelsize=8, length=0, colors=INK)
    axes.grid(axis="x", color=GREY, alpha=0.2, linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color("#cbd2d9")
