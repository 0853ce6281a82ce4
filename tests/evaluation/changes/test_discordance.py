"""Tests on discordant images: p-values by SciPy and by listing every outcome, intervals by simulation."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.stats import binomtest, false_discovery_control

from cytodino_hf.evaluation.changes.discordance import GROUPS, IMAGES, flip_p, holm, mcnemar_p, share_change


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (1, 0), (5, 0), (3, 7), (12, 12), (40, 9), (900, 700)])
def test_mcnemar_is_the_binomial_test_of_scipy(gained: int, lost: int) -> None:
    expected = binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    assert mcnemar_p(gained, lost) == pytest.approx(expected, rel=1e-9)
    # One image a group: the sign flips are the same test.
    single = np.array([1] * gained + [-1] * lost + [0, 0])
    assert flip_p(single) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("differences", [[3, 1, -2], [5, 5, -1, -1, 2], [2, 2, 2, 2], [4, -4], [0, 7]])
def test_flips_of_groups_are_all_sign_patterns(differences: list[int]) -> None:
    sums = [
        sum(s * d for s, d in zip(signs, differences, strict=True))
        for signs in itertools.product((-1, 1), repeat=len(differences))
    ]
    expected = np.mean([abs(total) >= abs(sum(differences)) for total in sums])
    assert flip_p(np.array(differences)) == pytest.approx(expected, rel=1e-12)


def test_holm_is_the_known_example() -> None:
    """Sorted .01 .02 .03 .04 times 4 3 2 1 is .04 .06 .06 .04, and may not fall: .04 .06 .06 .06."""
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
    values = np.random.default_rng(0).uniform(0, 0.2, 20)
    # Never milder than the control of false discoveries, never harsher than Bonferroni.
    found = np.array(holm(values.tolist()))
    assert (found >= false_discovery_control(values) - 1e-12).all()
    assert (found <= np.minimum(1, 20 * values) + 1e-12).all()


def test_a_change_of_shares() -> None:
    ours = np.array([True] * 70 + [False] * 30)
    other = np.array([True] * 60 + [False] * 20 + [True] * 5 + [False] * 15)
    found = share_change(ours, other)
    assert (found.gained, found.lost, found.n, found.method) == (10, 5, 100, IMAGES)
    assert (found.ours, found.other, found.value) == pytest.approx((0.70, 0.65, 0.05))
    # (10.5 - 5.5) / 102 +- 1.96 sqrt(16 - 25 / 102) / 102
    assert (found.low, found.high) == pytest.approx((0.04902 - 0.07627, 0.04902 + 0.07627), abs=1e-4)
    assert found.p == pytest.approx(binomtest(10, 15).pvalue)


def test_equal_models_and_one_image_give_defined_values() -> None:
    same = share_change(np.ones(4, bool), np.ones(4, bool))
    assert (same.value, same.p) == (0.0, 1.0)
    assert same.low < 0 < same.high
    one = share_change(np.array([True]), np.array([False]))
    assert (one.value, one.p) == (1.0, 1.0)
    assert -1 <= one.low <= one.high <= 1
    with pytest.raises(ValueError, match="no image"):
        share_change(np.zeros(0, bool), np.zeros(0, bool))


def test_copies_within_groups_prove_nothing() -> None:
    """Ten copies of each image: McNemar on images would call anything clear, whole groups do not."""
    rng = np.random.default_rng(1)
    ours, other = rng.random(20) < 0.8, rng.random(20) < 0.6
    copies = [f"g{i // 10}" for i in range(200)]
    once, many = share_change(ours, other), share_change(ours.repeat(10), other.repeat(10), copies)
    assert many.method == GROUPS
    assert many.p == pytest.approx(once.p, rel=1e-9)
    assert many.p > share_change(ours.repeat(10), other.repeat(10)).p
    assert (many.high - many.low) == pytest.approx(once.high - once.low, rel=0.25)
    lonely = share_change(ours, other, ["g"] * 2 + [None] * 18)
    assert 0 < lonely.p <= 1


def test_groups_that_agree_are_no_certainty() -> None:
    """By hand: one group knows nothing; of four that agree the spread of one more is 1 / 4, by Student's t of 3."""
    ours, other = np.ones(100, bool), np.zeros(100, bool)
    one = share_change(ours, other, ["a"] * 100)
    assert (one.low, one.high, one.p) == (-1.0, 1.0, 1.0)
    four = share_change(ours, other, [f"g{i % 4}" for i in range(100)])
    assert (four.low, four.high) == pytest.approx((1 - 3.182 / 4, 1.0), abs=1e-3)


@pytest.mark.parametrize("count", [3, 5, 10, 25])
def test_the_interval_over_groups_covers(count: int) -> None:
    """Of 400 samples of patients who differ at least 93 in a hundred hold the truth (standard error 1.1)."""
    rng = np.random.default_rng(count)
    groups = [f"g{i % count}" for i in range(20 * count)]
    hits = 0
    for number in range(400):
        by_group = np.tile(rng.uniform(0.1, 0.5, count), 20)  # how often the first alone is right
        ours = rng.random(20 * count) < by_group
        found = share_change(ours, np.zeros_like(ours), groups, draws=200, seed=number)
        hits += found.low <= 0.3 <= found.high
    assert hits >= 0.93 * 400


def test_the_interval_covers() -> None:
    """Of 2,000 simulated comparisons of 40 images 93 to 98 % hold the truth (standard error .5)."""
    rng = np.random.default_rng(3)
    both, gained, lost = 0.6, 0.2, 0.08
    hits = 0
    for drawn in rng.multinomial(40, [both, gained, lost, 1 - both - gained - lost], size=2000):
        ours = np.repeat([True, True, False, False], drawn)
        other = np.repeat([True, False, True, False], drawn)
        found = share_change(ours, other)
        hits += found.low <= gained - lost <= found.high
    assert 0.93 * 2000 <= hits <= 0.98 * 2000
