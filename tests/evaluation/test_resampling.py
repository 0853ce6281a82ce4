"""Draws of images and of whole groups: what stays fixed, what varies, and how much."""

from __future__ import annotations

import time

import numpy as np
import pytest

from cytodino_hf.evaluation import resampling
from cytodino_hf.evaluation.resampling import are_grouped, draw_weights


def _all(labels: list[int], groups: list[str | None] | None, draws: int, seed: int = 0) -> np.ndarray:
    return np.concatenate(list(draw_weights(np.array(labels), groups, draws, seed)))


def test_a_draw_keeps_the_images_of_each_class() -> None:
    weights = _all([0, 0, 0, 2, 2, 1], None, 4000)
    assert weights.shape == (4000, 6)
    assert weights.dtype == np.float64
    assert (weights[:, :3].sum(1) == 3).all()
    assert (weights[:, 3:5].sum(1) == 2).all()
    assert (weights[:, 5] == 1).all()
    # Times of one of n images: binomial(n, 1/n), mean 1, variance 1 - 1/n
    np.testing.assert_allclose(weights[:, :5].mean(0), 1, atol=0.05)
    np.testing.assert_allclose(weights[:, :3].var(0), 2 / 3, atol=0.05)
    np.testing.assert_allclose(weights[:, 3:5].var(0), 1 / 2, atol=0.05)


def test_groups_are_drawn_whole_and_by_class_where_each_has_one_class() -> None:
    labels, groups = [0, 0, 0, 0, 1, 1], ["a", "a", "b", None, "c", "d"]
    weights = _all(labels, groups, 3000)
    assert (weights[:, 0] == weights[:, 1]).all()
    units = weights[:, [0, 2, 3]]  # a, b and the image of its own
    assert (units.sum(1) == 3).all()
    assert (weights[:, 4:].sum(1) == 2).all()
    np.testing.assert_allclose(units.var(0), 2 / 3, atol=0.06)
    # The share of class 0 varies as three units do, not as four images do.
    assert set(weights[:, :4].sum(1)) == {3.0, 4.0, 5.0, 6.0}


def test_classes_that_share_a_group_are_drawn_together() -> None:
    # a holds classes 0 and 1, b classes 1 and 2: these three are joined; class 3 is not
    labels, groups = [0, 1, 1, 2, 3, 3], ["a", "a", "b", "b", "c", "d"]
    weights = _all(labels, groups, 2000)
    assert (weights[:, 0] == weights[:, 1]).all()
    assert (weights[:, 2] == weights[:, 3]).all()
    assert (weights[:, 0] + weights[:, 2] == 2).all()
    assert (weights[:, 4] + weights[:, 5] == 2).all()
    assert (weights[:, 0] == 0).mean() == pytest.approx(1 / 4, abs=0.04)


def test_groups_of_nobody_are_no_groups() -> None:
    labels = [0, 0, 1, 1, 1]
    np.testing.assert_array_equal(_all(labels, [None] * 5, 20), _all(labels, None, 20))
    assert not are_grouped(None)
    assert not are_grouped([None, None])
    assert are_grouped([None, "a"])


def test_the_seed_decides_and_chunks_are_small(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = [0, 1] * 10
    np.testing.assert_array_equal(_all(labels, None, 8, 1), _all(labels, None, 8, 1))
    assert (_all(labels, None, 8, 1) != _all(labels, None, 8, 2)).any()
    monkeypatch.setattr(resampling, "_CELLS_AT_ONCE", 60)
    assert [len(chunk) for chunk in draw_weights(np.array(labels), None, 8, 1)] == [3, 3, 2]


def test_nothing_to_draw_and_unequal_columns_are_refused() -> None:
    with pytest.raises(ValueError, match="no image"):
        _all([], None, 3)
    with pytest.raises(ValueError, match="3 labels and 2 groups"):
        _all([0, 0, 1], ["a", "b"], 3)


def test_a_thousand_draws_of_34000_images_are_quick() -> None:
    labels = np.random.default_rng(0).integers(0, 21, 34_000)
    start = time.process_time()
    assert sum(len(chunk) for chunk in draw_weights(labels, None, 200, 0)) == 200
    assert time.process_time() - start < 1.0  # a fifth of the draws; measured 0.2 s
