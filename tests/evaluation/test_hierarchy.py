"""Distances of classes by hand, and what they make of mistakes."""

from __future__ import annotations

import numpy as np
import pytest

from cytodino_hf.evaluation.hierarchy import (
    HIERARCHY,
    across_lineages,
    distance_matrix,
    hierarchy_metrics,
)
from cytodino_hf.evaluation.metrics import confusion_matrix, critical_mistakes
from cytodino_hf.taxonomy import MLL, MLL_PUBLISHED, CellClass, Taxonomy


def test_distances_by_hand() -> None:
    distances = distance_matrix(MLL)
    np.testing.assert_array_equal(distances, distances.T)
    assert (np.diag(distances) == 0).all()
    assert (distances[~np.eye(21, dtype=bool)] >= 1).all()

    def steps(a: str, b: str) -> int:
        return int(distances[MLL.index(a), MLL.index(b)])

    assert [steps("BLA", code) for code in ("PMO", "MYB", "MMZ", "NGB", "NGS")] == [1, 2, 3, 4, 5]
    assert (steps("LYI", "LYT"), steps("LYI", "PLM"), steps("PEB", "EBO")) == (1, 2, 1)
    # No order inside these lineages
    assert (steps("ABE", "EOS"), steps("FGC", "KSC"), steps("ART", "OTH")) == (1, 1, 1)
    assert {steps("BLA", code) for code in ("LYI", "PEB", "MON", "FGC", "ART")} == {6}
    # The published code has no lymphoid order, so its members lie one step apart.
    assert distance_matrix(MLL_PUBLISHED)[MLL.index("LYI"), MLL.index("PLM")] == 1


def test_the_distance_across_lineages_is_never_a_step() -> None:
    assert across_lineages(MLL) == 6
    assert across_lineages(MLL.subset(["BLA", "LYT"])) == 2
    assert distance_matrix(MLL.subset(["BLA", "LYT"])).tolist() == [[0, 2], [2, 0]]
    assert distance_matrix(MLL.subset(["BLA"])).tolist() == [[0]]


def test_metrics_equal_plain_loops_over_the_images() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 21, 600)
    called = np.where(rng.random(600) < 0.6, labels, rng.integers(0, 21, 600))
    matrix = confusion_matrix(labels, called, 21)
    distances = distance_matrix(MLL)
    found = hierarchy_metrics(matrix, MLL)
    assert tuple(found) == HIERARCHY
    pairs = list(zip(labels, called, strict=True))
    assert found["lineage_accuracy"] == pytest.approx(
        np.mean([MLL.lineages[a] == MLL.lineages[b] for a, b in pairs])
    )
    far = [distances[a, b] for a, b in pairs]
    assert found["mean_distance"] == pytest.approx(np.mean(far))
    assert found["within_one_step"] == pytest.approx(np.mean([d == 1 for d in far if d]))
    mistakes = critical_mistakes(matrix, MLL.critical, MLL.safe).critical_to_safe
    assert found["critical_to_safe"] == pytest.approx(mistakes.rate)


def test_what_is_not_defined_is_left_out() -> None:
    perfect = hierarchy_metrics(np.eye(21, dtype=int), MLL)
    assert "within_one_step" not in perfect
    assert (perfect["mean_distance"], perfect["lineage_accuracy"]) == (0, 1)
    harmless = Taxonomy("harmless", (CellClass("a", "a", "x"), CellClass("b", "b", "y")))
    assert "critical_to_safe" not in hierarchy_metrics(np.array([[1, 2], [3, 4]]), harmless)
    no_critical = np.zeros((21, 21), dtype=int)
    no_critical[MLL.index("LYT"), MLL.index("BLA")] = 3
    assert "critical_to_safe" not in hierarchy_metrics(no_critical, MLL)
    # Of several draws one may have no mistake
    draws = np.array([[[3, 0], [0, 3]], [[2, 1], [0, 3]]])
    cells = MLL.subset(["BLA", "PMO"])
    assert hierarchy_metrics(draws, cells)["within_one_step"].tolist() == [1.0, 1.0]
    with pytest.raises(ValueError, match="no image"):
        hierarchy_metrics(np.zeros((2, 2)), cells)
