"""Shares of images: Wilson's interval by SciPy, and images of a group that are copies count once."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from cytodino_hf.evaluation.image_shares import share_of_images


@pytest.mark.parametrize(("hits", "n"), [(0, 1), (1, 1), (3, 40), (40, 40)])
def test_without_groups_it_is_wilsons(hits: int, n: int) -> None:
    values = np.arange(n) < hits
    found = share_of_images(values, np.zeros(n, dtype=int), [None] * n)
    wanted = binomtest(hits, n).proportion_ci(method="wilson")
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high), abs=1e-12)
    assert (found.value, found.n) == (hits / n, n)


def test_copies_count_once() -> None:
    """30 groups of 10 copies each are known no better than 30 images, and much worse than 300."""
    values = np.arange(30) % 3 == 0
    labels = np.zeros(30, dtype=int)
    copies = np.repeat(values, 10)
    groups = [f"g{i}" for i in np.repeat(np.arange(30), 10)]
    found = share_of_images(copies, np.repeat(labels, 10), groups)
    alone = share_of_images(values, labels, [None] * 30)
    as_images = share_of_images(copies, np.repeat(labels, 10), [None] * 300)
    assert found.value == alone.value == as_images.value
    assert found.n == 300
    assert found.high - found.low == pytest.approx(alone.high - alone.low, rel=0.1)
    assert found.high - found.low > 2.5 * (as_images.high - as_images.low)


def test_what_lies_between_has_a_wider_interval_than_it_needs() -> None:
    """Means of values in [0, 1] vary less than shares of the same mean: the interval covers more than 95 %."""
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(300):
        found = share_of_images(rng.beta(2, 5, 40), np.zeros(40, dtype=int), [None] * 40)
        covered += found.low <= 2 / 7 <= found.high
    assert covered >= 0.97 * 300
