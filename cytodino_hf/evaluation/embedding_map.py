"""A map of embeddings: which cells a model sees as alike (PCA, then t-SNE).

A picture to look at, not a measurement: t-SNE keeps neighbourhoods and little else; sizes of clusters and distances
between them mean nothing. So nothing is computed from it.

Source: van der Maaten and Hinton, Journal of Machine Learning Research 9 (2008), 2579.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import DataError
from ..taxonomy import Taxonomy
from .plots import BLUE, GREEN, GREY, INK, ORANGE, VERMILLION, new_figure, shortened

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Points at most where nobody says otherwise: 2,000 take some 4 s, 5,000 half a minute and look alike.
MAP_POINTS = 2000
#: Points at most, whatever is asked.
MOST_POINTS = 5000
#: With fewer there is no neighbourhood to keep.
FEWEST_POINTS = 10
# A class of the map has this many points, where it has as many images, before the rest is shared out.
_LEAST_OF_A_CLASS = 20
_COMPONENTS, _PERPLEXITY, _ITERATIONS = 50, 30.0, 500
# Okabe and Ito's eight; markers tell lineages apart as well, or the classes of one lineage.
_COLOURS = (BLUE, ORANGE, GREEN, VERMILLION, "#CC79A7", "#56B4E9", "#8C6D00", GREY)
_MARKERS = ("o", "^", "s", "D", "v", "P", "X", "*")


def stratified_rows(labels: np.ndarray, limit: int, seed: int = 0) -> np.ndarray:
    """Some rows of every class: the rare ones whole as far as possible, the rest in proportion.

    Args:
        labels: (images,); rows of -1 are left out.
        limit: Rows at most; at least one a class.
        seed: Of the draw.

    Returns:
        Sorted row numbers, int64.

    Example:
        >>> rows = stratified_rows(np.repeat([0, 1], [1000, 5]), 100)
        >>> np.repeat([0, 1], [1000, 5])[rows].sum(), len(rows)
        (np.int64(5), 100)
    """
    labels = np.asarray(labels)
    known = np.flatnonzero(labels >= 0)
    classes, counts = np.unique(labels[known], return_counts=True)
    if len(known) <= limit:
        return known
    limit = max(limit, len(classes))
    taken = np.minimum(counts, max(1, min(_LEAST_OF_A_CLASS, limit // len(classes))))
    left = counts - taken
    taken += np.floor(left * (limit - taken.sum()) / left.sum()).astype(np.int64)
    # What rounding left over goes to the classes with most images left.
    for place in np.argsort(-(counts - taken), kind="stable")[: limit - taken.sum()]:
        taken[place] += 1
    rng = np.random.default_rng(seed)
    chosen = [
        rng.choice(known[labels[known] == label], count, replace=False)
        for label, count in zip(classes, taken, strict=True)
    ]
    return np.sort(np.concatenate(chosen))


def embedding_section(
    embeddings: np.ndarray,
    labels: np.ndarray,
    taxonomy: Taxonomy,
    *,
    limit: int = MAP_POINTS,
    seed: int = 0,
) -> dict[str, Any]:
    """Lay out the embeddings of some images of every class in a plane.

    Args:
        embeddings: (images, width) float.
        labels: (images,) true labels, -1 where unknown: such images are left out.
        taxonomy: The classes.
        limit: Points at most, never more than `MOST_POINTS`.
        seed: Of the draw of points and of t-SNE.

    Returns:
        `points` (list of [x, y, label]), `images` (all with a label), `explained` (share of the variance the
        principal components keep), `classes`, `lineages`; or no points and `why`.

    Raises:
        DataError: Lengths differ, or an embedding is not finite.
    """
    embeddings, labels = np.asarray(embeddings), np.asarray(labels)
    if embeddings.ndim != 2 or len(embeddings) != len(labels):
        raise DataError(
            f"embeddings {embeddings.shape} and {len(labels)} labels do not belong together; score the fold again"
        )
    if not np.isfinite(embeddings).all():
        raise DataError(
            "some embeddings are not finite; the model is of no use: score the fold again or train anew"
        )
    rows = stratified_rows(labels, min(limit, MOST_POINTS), seed)
    section: dict[str, Any] = {
        "images": int((labels >= 0).sum()),
        "points": [],
        "explained": None,
        "classes": list(taxonomy.codes),
        "lineages": list(taxonomy.lineages),
        "seed": seed,
        "why": None,
    }
    if len(rows) < FEWEST_POINTS:
        return section | {"why": f"{len(rows)} images with a label; a map needs {FEWEST_POINTS}"}
    chosen = embeddings[rows].astype(np.float64)
    if not chosen.std(axis=0).any():
        return section | {"why": "all embeddings are the same, so there is nothing to lay out"}
    points, explained = _layout(chosen, seed)
    told = zip(points.round(3).tolist(), labels[rows].tolist(), strict=True)
    return section | {"points": [[x, y, label] for (x, y), label in told], "explained": explained}


def _layout(chosen: np.ndarray, seed: int) -> tuple[np.ndarray, float]:
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    components = min(_COMPONENTS, *chosen.shape)
    pca = PCA(components, svd_solver="full" if min(chosen.shape) <= _COMPONENTS else "covariance_eigh")
    reduced = pca.fit_transform(chosen)
    perplexity = min(_PERPLEXITY, (len(chosen) - 1) / 3)
    layout = TSNE(
        perplexity=perplexity,
        # One column has no second axis to begin with.
        init="pca" if components > 1 else "random",
        learning_rate="auto",
        max_iter=_ITERATIONS,
        random_state=seed,
        n_jobs=1,
    )
    return layout.fit_transform(reduced), float(pca.explained_variance_ratio_.sum())


def draw_embedding_map(section: Mapping[str, Any], by: str = "class") -> Figure:
    """The map, coloured by lineage; by class each class of a lineage has a marker of its own and its code beside it.

    Args:
        section: From `embedding_section`, with points.
        by: "class" or "lineage".
    """
    points = np.array([point[:2] for point in section["points"]])
    labels = np.array([point[2] for point in section["points"]])
    lineages = list(dict.fromkeys(section["lineages"]))
    figure = new_figure(7.6, 5.6, dpi=130)
    axes = figure.subplots()
    names = section["classes"] if by == "class" else lineages
    for number, name in enumerate(names):
        lineage = section["lineages"][number] if by == "class" else name
        mine = _rows_of(labels, section["lineages"], number, by)
        if not mine.any():
            continue
        place = lineages.index(lineage)
        member = _member(section["lineages"], number) if by == "class" else place
        axes.plot(
            *points[mine].T, _MARKERS[member % len(_MARKERS)], color=_COLOURS[place % len(_COLOURS)],
            markersize=3.6 if mine.sum() >= _LEAST_OF_A_CLASS else 6.0, alpha=0.75, markeredgewidth=0,
            linestyle="none", zorder=3 if mine.sum() < _LEAST_OF_A_CLASS else 2,
            label=f"{shortened(name)}  n={mine.sum():,}",
        )  # fmt: skip
        if by == "class":
            _name_beside(axes, points[mine], shortened(name, 12))
    legend = axes.legend(
        frameon=False, fontsize=7.5, loc="center left", bbox_to_anchor=(1.0, 0.5), markerscale=1.8,
        handletextpad=0.2,
    )  # fmt: skip
    for text in legend.get_texts():
        text.set_parse_math(False)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_aspect("equal", adjustable="datalim")
    for spine in axes.spines.values():
        spine.set_color("#cbd2d9")
    return figure


def _rows_of(labels: np.ndarray, lineages: Sequence[str], number: int, by: str) -> np.ndarray:
    if by == "class":
        return labels == number
    names = list(dict.fromkeys(lineages))
    return np.isin(labels, [label for label, name in enumerate(lineages) if name == names[number]])


def _member(lineages: Sequence[str], label: int) -> int:
    """The how-manieth class of its lineage."""
    return list(lineages[:label]).count(lineages[label])


def _name_beside(axes: Any, points: np.ndarray, name: str) -> None:
    """The code at the point nearest to the middle of its class, which lies within it even where the class is in two."""
    from matplotlib.patheffects import withStroke

    middle = points[np.argmin(((points - np.median(points, axis=0)) ** 2).sum(axis=1))]
    axes.text(
        *middle, name, fontsize=8, fontweight="bold", color=INK, ha="center", va="center", parse_math=False,
        path_effects=[withStroke(linewidth=2.5, foreground="white")],
    )  # fmt: skip
