"""Test images drawn anew: how often each stands in each draw of the bootstrap.

Images of one class are drawn among themselves, so each draw holds as many of a class as the fold does. Where images
belong to groups (patients, slides, near-duplicates) whole groups are drawn, for images of one group say the same thing
twice; classes that share a group are then drawn together, and their number of images changes from draw to draw.

Source: Davison and Hinkley 1997, Bootstrap methods and their application, 3.2 (strata) and 3.8 (groups).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

_CELLS_AT_ONCE = 4_000_000  # bounds the memory of the draws to some tens of megabytes


def draw_weights(
    labels: np.ndarray, groups: Sequence[str | None] | None, draws: int, seed: int
) -> Iterator[np.ndarray]:
    """How often each image is in each draw.

    Args:
        labels: (images,) true classes.
        groups: Group of each image; an image whose group is None is a group of its own. None, or None for every
            image: images are drawn one by one.
        draws: Draws in all.
        seed: Same seed, same draws.

    Yields:
        float64 (some draws, images), whole numbers, in chunks of bounded memory. A draw over groups may hold no image
        of a class.

    Raises:
        ValueError: There is no image, or the groups are not as many as the labels.
    """
    labels = np.asarray(labels)
    if not len(labels):
        raise ValueError("no image to draw from")
    rng = np.random.default_rng(seed)
    strata = strata_of(labels, groups)
    step = max(1, _CELLS_AT_ONCE // len(labels))
    for start in range(0, draws, step):
        count = min(step, draws - start)
        weights = np.empty((count, len(labels)))
        for rows, unit in strata:
            n = len(rows) if unit is None else int(unit.max()) + 1
            picked = rng.integers(0, n, (count, n)) + n * np.arange(count)[:, None]
            times = np.bincount(picked.ravel(), minlength=count * n).reshape(count, n)
            weights[:, rows] = times if unit is None else times[:, unit]
        yield weights


def are_grouped(groups: Sequence[str | None] | None) -> bool:
    """Whether any image belongs to a group, so that whole groups are drawn."""
    # Counting is what a list does without an interpreter's step for each of many thousand images.
    return groups is not None and list(groups).count(None) < len(groups)


def group_count(groups: Sequence[str | None] | None) -> int | None:
    """How many groups there are, an image without group as one of its own; None where no image has a group."""
    if groups is None or not are_grouped(groups):
        return None
    return len({group for group in groups if group is not None}) + sum(group is None for group in groups)


def strata_of(
    labels: np.ndarray, groups: Sequence[str | None] | None
) -> list[tuple[np.ndarray, np.ndarray | None]]:
    """Rows drawn among themselves, and the number of the group of each of them (None: every row is its own).

    Args:
        labels, groups: As of `draw_weights`.

    Raises:
        ValueError: The groups are not as many as the labels.
    """
    classes, label = np.unique(labels, return_inverse=True)
    if groups is None or not are_grouped(groups):
        return [(np.flatnonzero(label == k), None) for k in range(len(classes))]
    if len(groups) != len(labels):
        raise ValueError(f"{len(labels)} labels and {len(groups)} groups; each image needs an entry in both")
    named: dict[str, int] = {}
    unit = np.array(
        [row - len(labels) if g is None else named.setdefault(g, len(named)) for row, g in enumerate(groups)]
    )
    stratum = _joined_classes(label, unit, len(classes))[label]
    strata: list[tuple[np.ndarray, np.ndarray | None]] = []
    for k in np.unique(stratum):
        rows = np.flatnonzero(stratum == k)
        strata.append((rows, np.unique(unit[rows], return_inverse=True)[1]))
    return strata


def _joined_classes(label: np.ndarray, unit: np.ndarray, count: int) -> np.ndarray:
    """The stratum of each class: classes that share a group, by one or several steps, are in one."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    units = np.unique(unit, return_inverse=True)[1] + count
    nodes = int(units.max()) + 1
    links = coo_matrix((np.ones(len(label)), (label, units)), shape=(nodes, nodes))
    stratum: np.ndarray = connected_components(links, directed=False)[1][:count]
    return stratum
