"""The picture of a pretraining: loss parts, what the teacher says, rank of its features, neighbours over the steps."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..evaluation.plots import BLUE, GREEN, GREY, INK, ORANGE, VERMILLION, figure_bytes, new_figure

_COLOURS = (BLUE, VERMILLION, GREEN, ORANGE)
_NAMES = {
    "loss_cls": "views (CLS)",
    "loss_patch": "masked patches",
    "loss_koleo": "KoLeo",
    "teacher_entropy": "entropy of an answer, of its maximum",
    "information": "information on the picture, nats",
    "patch_entropy": "entropy of an answer to a patch",
    "patch_information": "information on the patch, nats",
    "feature_rank": "effective rank",
    "learning_rate": "learning rate",
}
_NEIGHBOURS = re.compile(r"knn(\d+)_balanced_accuracy")


def draw_pretraining(log: Sequence[Mapping[str, Any]]) -> bytes:
    """A PNG of what a pretraining logged; what was not logged gets no panel.

    Args:
        log: Rows with `step` and any of the values a `PretrainingTrainer` logs.
    """
    keys = {key for row in log for key in row}
    votes = {key: int(found[1]) for key in keys if (found := _NEIGHBOURS.fullmatch(key))}
    neighbours = sorted(votes, key=votes.__getitem__)
    names = _NAMES | {key: f"{votes[key]} neighbour{'s' if votes[key] > 1 else ''}" for key in neighbours}
    panels = {
        "loss": ["loss_cls", "loss_patch", "loss_koleo"],
        "teacher's answers": ["teacher_entropy", "information", "patch_entropy", "patch_information"],
        "effective rank of the teacher's features": ["feature_rank"],
        "balanced accuracy by neighbours": neighbours,
        "learning rate": ["learning_rate"],
    }
    drawn = {
        title: {
            names[key]: values for key in keys_of if len(values := _column(log, key)) and values[:, 1].any()
        }
        for title, keys_of in panels.items()
    }
    drawn = {title: lines for title, lines in drawn.items() if lines}
    figure = new_figure(3.4 * max(len(drawn), 1), 3.2)
    for axes, (title, lines) in zip(
        figure.subplots(1, max(len(drawn), 1), squeeze=False)[0], drawn.items(), strict=False
    ):
        for (label, values), colour in zip(lines.items(), _COLOURS * 2, strict=False):
            marker = "o" if len(values) < 30 else ""
            axes.plot(*values.T, color=colour, linewidth=1.4, marker=marker, markersize=3, label=label)
        axes.set_title(title, loc="left", fontsize=10, color=INK, fontweight="bold")
        axes.set_xlabel("step", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.grid(color=GREY, alpha=0.25, linewidth=0.6)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        if len(lines) > 1:
            axes.legend(frameon=False, fontsize=8)
    return figure_bytes(figure, "png")


def _column(log: Sequence[Mapping[str, Any]], key: str) -> np.ndarray:
    pairs = [(row["step"], row[key]) for row in log if row.get(key) is not None]
    found = np.array(pairs, dtype=np.float64).reshape(-1, 2)
    return found[np.isfinite(found).all(1)]
