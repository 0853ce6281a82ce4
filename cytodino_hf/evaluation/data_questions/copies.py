"""Images that show one picture: how many, and whether any stand on both sides of a split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np

from ..statistics import wilson_interval

#: Clusters a report lists.
LISTED_CLUSTERS = 40


def copies_section(
    clusters: Sequence[Sequence[int]],
    folds: Sequence[str | None],
    labels: Sequence[int],
    paths: Sequence[str],
    codes: Sequence[str],
    *,
    level: float = 0.95,
) -> dict[str, Any]:
    """Count clusters, those in several folds, and the images outside the training fold that have a copy in it.

    Args:
        clusters: Rows of images that show one picture.
        folds, labels, paths: Of every row.
        codes: Class codes in label order.
        level: Nominal coverage.

    Returns:
        `leaks`: fold -> images of it with a copy in the training fold, of how many, with the interval of the share;
        `pairs_of_folds`: `"test, train"` -> clusters with an image in both. `listed`: some clusters, those in several
        folds first, then those under two labels.
    """
    names = np.array([fold or "none" for fold in folds], dtype=object)
    known = list(dict.fromkeys(sorted(name for name in names.tolist() if name != "none")))
    in_folds = [sorted({str(names[row]) for row in rows} - {"none"}) for rows in clusters]
    called = [sorted({codes[labels[row]] for row in rows}) for rows in clusters]
    pairs = Counter(", ".join(pair) for found in in_folds for pair in combinations(found, 2))
    leaks = {}
    for fold in known:
        if fold == "train":
            continue
        twins = sum(
            int((names[list(rows)] == fold).sum())
            for rows, found in zip(clusters, in_folds, strict=True)
            if "train" in found
        )
        n = int((names == fold).sum())
        leaks[fold] = {**wilson_interval(twins, n, level=level).to_dict(), "images": twins}
    order = sorted(range(len(clusters)), key=lambda i: (len(in_folds[i]) < 2, len(called[i]) < 2, i))
    return {
        "images": len(names),
        "clusters": len(clusters),
        "images_in_clusters": sum(map(len, clusters)),
        "across_folds": sum(len(found) > 1 for found in in_folds),
        "under_two_labels": sum(len(found) > 1 for found in called),
        "pairs_of_folds": dict(sorted(pairs.items())),
        "leaks": leaks,
        "listed": [
            {
                "folds": in_folds[i],
                "labels": called[i],
                "images": [
                    {"path": paths[row], "label": codes[labels[row]], "fold": folds[row]}
                    for row in clusters[i]
                ],
            }
            for i in order[:LISTED_CLUSTERS]
        ],
    }
