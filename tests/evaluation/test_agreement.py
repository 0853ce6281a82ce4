"""Kappa, Matthews' correlation, micro F1 and macro F1 of frequent classes, against scikit-learn and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score, f1_score, matthews_corrcoef

from cytodino_hf.evaluation.agreement import AGREEMENT, agreement_metrics
from cytodino_hf.evaluation.metrics import confusion_matrix


@pytest.mark.parametrize("seed", range(4))
def test_values_agree_with_scikit_learn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.choice(5, 400, p=[0.4, 0.3, 0.15, 0.1, 0.05])
    called = np.where(rng.random(400) < 0.7, labels, rng.integers(0, 5, 400))
    values = agreement_metrics(confusion_matrix(labels, called, 5))
    assert tuple(values) == AGREEMENT
    assert values["cohen_kappa"] == pytest.approx(cohen_kappa_score(labels, called))
    assert values["mcc"] == pytest.approx(matthews_corrcoef(labels, called))
    assert values["micro_f1"] == pytest.approx(f1_score(labels, called, average="micro"))
    frequent = [c for c in range(5) if (labels == c).sum() >= 50]
    assert 1 < len(frequent) < 5
    assert values["macro_f1_frequent"] == pytest.approx(
        f1_score(labels, called, average="macro", labels=frequent)
    )


def test_a_leading_axis_and_the_classes_of_the_fold_are_carried_through() -> None:
    matrices = np.random.default_rng(0).integers(1, 30, (6, 3, 3))
    frequent = np.array([True, False, True])
    together = agreement_metrics(matrices, None, frequent)
    for place in range(6):
        for name, value in agreement_metrics(matrices[place], None, frequent).items():
            assert together[name][place] == pytest.approx(value)
    only = agreement_metrics(matrices, np.array([True, False, False]), frequent)["macro_f1_frequent"]
    hits, true, said = matrices[:, 0, 0], matrices[:, 0].sum(1), matrices[:, :, 0].sum(1)
    np.testing.assert_allclose(only, 2 * hits / (true + said))


def test_where_nothing_but_chance_can_be_seen_agreement_is_0() -> None:
    for matrix in ([[7, 0], [0, 0]], [[3, 4], [0, 0]], [[3, 0], [4, 0]], [[5]]):
        values = agreement_metrics(np.array(matrix))
        assert values["cohen_kappa"] == 0
        assert values["mcc"] == 0
        assert "macro_f1_frequent" not in values
    with pytest.raises(ValueError, match="no image"):
        agreement_metrics(np.zeros((2, 2)))
