"""The confusion matrix of a taxonomy as people read it: lineages together, dangerous mistakes outlined."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..taxonomy import Taxonomy
from .plots import draw_confusion_matrix

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_class_confusion(matrix: np.ndarray | Sequence[Sequence[int]], taxonomy: Taxonomy) -> Figure:
    """Counts and shares of the true class, in `lineage_order`; critical cells called safe are outlined.

    Args:
        matrix: (K, K) counts in label order, rows true.
        taxonomy: The K classes.
    """
    order = lineage_order(taxonomy)
    dangerous = np.zeros((len(taxonomy), len(taxonomy)), dtype=bool)
    dangerous[np.ix_(taxonomy.critical, taxonomy.safe)] = True
    return draw_confusion_matrix(
        np.asarray(matrix)[np.ix_(order, order)],
        [taxonomy.codes[label] for label in order],
        [taxonomy.lineages[label] for label in order],
        dangerous[np.ix_(order, order)],
    )


def lineage_order(taxonomy: Taxonomy) -> list[int]:
    """Labels with the members of a lineage together, immature first; lineages that mature come first.

    Example:
        >>> from cytodino_hf.taxonomy import MLL
        >>> cells = MLL.subset(["BLA", "LYT", "PMO", "NGS"])
        >>> [cells.codes[label] for label in lineage_order(cells)]
        ['BLA', 'PMO', 'NGS', 'LYT']
    """
    lineages = list(dict.fromkeys((*taxonomy.maturation, *taxonomy.lineages)))

    def place(label: int) -> tuple[int, int, int]:
        lineage, code = taxonomy.lineages[label], taxonomy.codes[label]
        order = taxonomy.maturation.get(lineage, ())
        return lineages.index(lineage), order.index(code) if code in order else len(order), label

    return sorted(range(len(taxonomy)), key=place)
