"""ROC curves of several runs on the same test images, with intervals of the area under them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ..taxonomy import Taxonomy
from .comparison import aligned_rows
from .delta_intervals import share_interval, spread_of
from .plots import BLUE, GREEN, GREY, INK, ORANGE, VERMILLION, new_figure, shortened
from .predictions import Predictions
from .ranking_metrics import rank_class
from .resampling import are_grouped

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Corners a curve keeps in a report.
CURVE_POINTS = 200


def positive_labels(taxonomy: Taxonomy) -> tuple[int, ...]:
    """What counts as positive: the critical classes; of two classes without one critical the second.

    Example:
        >>> from cytodino_hf.taxonomy import MLL
        >>> cells = MLL.subset(["BLA", "LYT", "NGS"])
        >>> [cells.codes[label] for label in positive_labels(cells)]
        ['BLA']
    """
    critical = taxonomy.critical
    if len(taxonomy) == 2 and len(critical) != 1:
        return (1,)
    return critical if len(critical) < len(taxonomy) else ()


def positive_scores(logits: np.ndarray, positive: tuple[int, ...]) -> np.ndarray:
    """Log odds that an image is of a positive class, float64 (images,); they differ where probabilities round to 1.

    Args:
        logits: (images, classes).
        positive: Labels, some but not all.
    """
    from scipy.special import logsumexp

    logits = np.asarray(logits, dtype=np.float64)
    is_positive = np.isin(np.arange(logits.shape[1]), positive)
    scores: np.ndarray = logsumexp(logits[:, is_positive], axis=1) - logsumexp(
        logits[:, ~is_positive], axis=1
    )
    return scores


def roc_section(
    runs: Mapping[str, Predictions], taxonomy: Taxonomy, *, level: float = 0.95
) -> dict[str, Any]:
    """The ROC curve of each run: positive classes (`positive_labels`) against all others.

    Args:
        runs: Name -> predictions, all of the same labelled images, in any order; at least one.
        taxonomy: The classes.
        level: Nominal coverage.

    Returns:
        `positive` (codes), `positives`, `n`, `curves` (name, AUROC with its interval, `points` of false and true
        positive rate, and the difference to the first run with its paired interval); no curve and `why` where no class
        is positive or the test images are all of one side.

    Raises:
        DataError: The runs are not of the same images, labels and classes.
    """
    positive = positive_labels(taxonomy)
    names = list(runs)
    aligned = aligned_rows(list(runs.values()), list(runs.values())[:1], taxonomy)
    labels, groups = aligned[0].labels, aligned[0].groups
    is_positive = np.isin(labels, positive)
    section: dict[str, Any] = {
        "positive": [taxonomy.codes[label] for label in positive],
        "positives": int(is_positive.sum()),
        "n": len(labels),
        "level": level,
        "curves": [],
        "why": _why_not(positive, is_positive),
    }
    if section["why"]:
        return section
    units = _units(is_positive, list(groups))
    rankings = []
    for name, one in zip(names, aligned, strict=True):
        scores = positive_scores(one.logits, positive)
        ranking = rank_class(scores, is_positive)
        spread = spread_of(ranking.auroc_influence, is_positive.astype(np.int64), groups)
        interval = share_interval(ranking.auroc, spread, len(labels), units, level=level)
        rankings.append(ranking)
        entry: dict[str, Any] = {
            "name": name,
            "auroc": interval.to_dict(),
            "points": _curve(is_positive, scores),
        }
        if len(rankings) > 1:
            influence = ranking.auroc_influence - rankings[0].auroc_influence
            half = spread_of(influence, is_positive.astype(np.int64), groups).half_width(level)
            value = ranking.auroc - rankings[0].auroc
            entry["difference"] = {
                "value": value,
                # Two rankings that differ in no image do not tell how sure that is.
                "low": value - half if half else None,
                "high": value + half if half else None,
                "n": len(labels),
            }
        section["curves"].append(entry)
    return section


def _why_not(positive: tuple[int, ...], is_positive: np.ndarray) -> str | None:
    if not positive:
        return "the taxonomy has no critical class to set against the others"
    if is_positive.all() or not is_positive.any():
        return f"{int(is_positive.sum())} of {len(is_positive)} test images are positive; a curve needs both kinds"
    return None


def _units(is_positive: np.ndarray, groups: list[str | None]) -> int:
    """Images, or groups, of the smaller side."""
    if not are_grouped(groups):
        return int(min(is_positive.sum(), (~is_positive).sum()))
    names = np.array([f"{row}" if group is None else f"g{group}" for row, group in enumerate(groups)])
    return min(len(np.unique(names[is_positive])), len(np.unique(names[~is_positive])))


def _curve(is_positive: np.ndarray, scores: np.ndarray) -> list[list[float]]:
    from sklearn.metrics import roc_curve

    false, true, _ = roc_curve(is_positive, scores)
    if len(false) > CURVE_POINTS:
        along = false + true  # grows from 0 to 2: corners evenly along the curve
        wanted = np.linspace(0, 2, CURVE_POINTS)
        kept = np.unique(np.minimum(np.searchsorted(along, wanted - 1e-12), len(false) - 1))
        false, true = false[kept], true[kept]
    return np.stack([false, true], axis=1).round(5).tolist()


def draw_roc_curves(section: Mapping[str, Any]) -> Figure:
    """The curves; the legend holds each area with its interval.

    Args:
        section: From `roc_section`, with curves.
    """
    figure = new_figure(5.2, 5.0)
    axes = figure.subplots()
    colours, dashes = (BLUE, VERMILLION, GREEN, ORANGE, INK), ("-", (0, (5, 2)), (0, (2, 1.5)))
    for place, curve in enumerate(section["curves"]):
        area = curve["auroc"]
        axes.plot(
            *np.array(curve["points"]).T, color=colours[place % len(colours)], linewidth=1.8,
            linestyle=dashes[place % len(dashes)],
            label=f"{shortened(curve['name'])}  {area['value']:.3f} ({area['low']:.3f} to {area['high']:.3f})",
        )  # fmt: skip
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle=(0, (1, 2)))
    legend = axes.legend(frameon=False, fontsize=8, loc="lower right", title="AUROC", title_fontsize=8)
    for text in legend.get_texts():
        text.set_parse_math(False)
    axes.set_xlabel("false positive rate", fontsize=9)
    axes.set_ylabel("true positive rate", fontsize=9)
    axes.set_xlim(-0.01, 1.01)
    axes.set_ylim(-0.01, 1.01)
    axes.set_aspect("equal")
    axes.grid(color="#e4e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8, length=0, colors=INK)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure
