"""Halves are even by class, keep groups whole, and hang on seed and ids alone."""

from __future__ import annotations

import numpy as np
import pytest

from cytodino_hf.evaluation.calibration.halves import balanced_parts, calibration_halves
from cytodino_hf.evaluation.predictions import Predictions

CLASSES = tuple("ABCDE")


def fold(labels: list[int] | np.ndarray, groups: list[str | None] | None = None) -> Predictions:
    n = len(labels)
    ids = [f"cell{i:04}" for i in range(n)]
    logits = np.zeros((n, len(CLASSES)), np.float32)
    return Predictions(
        ids, ids, ["s"] * n, groups or [None] * n, ["calibration"] * n, np.array(labels), logits, CLASSES, "r"
    )


def test_every_class_is_halved_and_a_class_of_one_image_scales() -> None:
    labels = np.repeat([0, 1, 2, 3], [40, 7, 2, 1])
    scaling, conformal = calibration_halves(fold(labels), seed=3)
    assert sorted([*scaling, *conformal]) == list(range(50))
    assert np.bincount(labels[scaling], minlength=4).tolist() == [20, 4, 1, 1]
    assert np.bincount(labels[conformal], minlength=4).tolist() == [20, 3, 1, 0]


def test_rows_without_label_are_in_neither_half() -> None:
    scaling, conformal = calibration_halves(fold([-1, 0, 0, -1, 1, 1]))
    assert sorted([*scaling, *conformal]) == [1, 2, 4, 5]
    nothing = calibration_halves(fold([-1, -1]))
    assert [len(part) for part in nothing] == [0, 0]


def test_the_seed_decides_and_the_order_of_rows_does_not() -> None:
    predictions = fold(np.arange(60) % 3)
    halves = {
        seed: {predictions.ids[i] for i in calibration_halves(predictions, seed)[0]} for seed in (0, 0, 1)
    }
    assert halves[0] != halves[1]
    turned = predictions.select(np.random.default_rng(0).permutation(60))
    assert {turned.ids[i] for i in calibration_halves(turned, 0)[0]} == halves[0]


def test_no_group_is_divided_and_classes_stay_near_even() -> None:
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 3, 600)
    groups = [f"patient{g}" for g in rng.integers(0, 40, 600)]
    scaling, conformal = calibration_halves(fold(labels, groups), seed=0)
    assert {groups[i] for i in scaling}.isdisjoint(groups[i] for i in conformal)
    assert len(scaling) + len(conformal) == 600
    difference = np.bincount(labels[scaling]) - np.bincount(labels[conformal])
    assert abs(difference).max() <= 20, "groups are of about 15 images in all"


@pytest.mark.parametrize("parts", [2, 3, 5])
def test_parts_of_images_alone_differ_by_one_image_of_a_class(parts: int) -> None:
    labels = np.repeat([0, 1, 2], [31, 11, 4])
    ids = [str(i) for i in range(46)]
    part = balanced_parts(labels, [None] * 46, ids, parts, seed=5)
    for label in range(3):
        counts = np.bincount(part[labels == label], minlength=parts)
        assert counts.max() - counts.min() <= 1
