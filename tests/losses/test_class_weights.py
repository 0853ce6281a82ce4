"""Class weights against scikit-learn and against the formula."""

from __future__ import annotations

import numpy as np
import pytest

from cytodino_hf.losses.class_weights import class_weights
from cytodino_hf.taxonomy import MLL, MLL_IMAGE_COUNTS


def test_balanced_weights_are_those_of_scikit_learn() -> None:
    from sklearn.utils.class_weight import compute_class_weight

    counts = [4, 1, 7, 30]
    labels = np.repeat(np.arange(4), counts)
    expected = compute_class_weight("balanced", classes=np.arange(4), y=labels)
    np.testing.assert_allclose(class_weights("balanced", counts).numpy(), expected, rtol=1e-6)
    np.testing.assert_allclose(class_weights("sqrt_balanced", counts).numpy(), np.sqrt(expected), rtol=1e-6)
    assert class_weights("none", counts).tolist() == [1.0] * 4


def test_balanced_weights_average_to_one_over_the_images() -> None:
    counts = np.array([MLL_IMAGE_COUNTS[code] for code in MLL.codes])
    weights = class_weights("balanced", counts.tolist()).double().numpy()
    assert (weights * counts).sum() / counts.sum() == pytest.approx(1.0, rel=1e-6)
    # ABE 8 of 171,374 images in 21 classes.
    assert weights[MLL.index("ABE")] == pytest.approx(171374 / (21 * 8), rel=1e-6)


def test_a_class_without_images_gets_zero_and_is_not_counted_as_a_class() -> None:
    with_gap = class_weights("balanced", [5, 0, 15])
    assert with_gap.tolist() == pytest.approx([20 / (2 * 5), 0.0, 20 / (2 * 15)])
    assert class_weights("sqrt_balanced", [5, 0, 15]).tolist() == pytest.approx(np.sqrt(with_gap.numpy()))
    assert class_weights("none", [5, 0, 15]).tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("counts", [[], [0, 0], [3, -1]])
def test_counts_that_make_no_sense_stop(counts: list[int]) -> None:
    with pytest.raises(ValueError, match="class counts"):
        class_weights("balanced", counts)


def test_an_unknown_kind_stops() -> None:
    with pytest.raises(ValueError, match="unknown class weights"):
        class_weights("cubed", [1, 2])  # type: ignore[arg-type]
