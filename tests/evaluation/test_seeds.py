"""Differences over seeds: a t-test by scipy, and how often equal systems are called different."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from cytodino_hf.evaluation.comparison import ENOUGH_DISCORDANT, paired_differences
from cytodino_hf.evaluation.predictions import Predictions
from cytodino_hf.evaluation.seeds import interval_of_both, over_seeds, seed_error
from cytodino_hf.taxonomy import MLL

TAXONOMY = MLL.subset(["BLA", "LYT", "NGS"])  # BLA is critical; LYT and NGS are safe


def spreads_of(*systems: list[float]) -> tuple[tuple[float | None, int], ...]:
    return tuple((over_seeds(values)[1], len(values)) for values in systems)


def test_without_images_it_is_welchs_interval() -> None:
    ours, other = [0.71, 0.74, 0.79], [0.60, 0.61, 0.65, 0.63]
    expected = stats.ttest_ind(ours, other, equal_var=False).confidence_interval(0.9)
    value = float(np.mean(ours) - np.mean(other))
    found = interval_of_both(value, 0.0, spreads_of(ours, other), 0.9)
    assert found == pytest.approx((expected.low, expected.high))


def test_without_seeds_it_is_the_normal_interval_of_the_images() -> None:
    half = 1.959964 * 0.03
    for spreads in (((None, 1), (0.2, 3)), ((None, 1), (None, 1)), ((0.0, 3), (0.0, 3))):
        assert interval_of_both(0.1, 0.03, spreads) == pytest.approx((0.1 - half, 0.1 + half), abs=1e-6)
    assert seed_error(((None, 1), (0.2, 3))) is None


def test_both_parts_add_up_and_the_images_lend_degrees_of_freedom() -> None:
    """By hand: s^2 = .03^2 / 3 + .04^2 / 3 = 8.333e-4; d^2 = 4e-4; freedom = (12.333e-4)^2 / (s1^4 + s2^4) * 2."""
    variance = 0.02**2 + (0.03**2 + 0.04**2) / 3
    freedom = variance**2 / (((0.03**2 / 3) ** 2 + (0.04**2 / 3) ** 2) / 2)
    half = stats.t.ppf(0.975, freedom) * np.sqrt(variance)
    spreads = ((0.03, 3), (0.04, 3))
    assert seed_error(spreads) == pytest.approx(0.0288675, abs=1e-7)
    assert interval_of_both(0.0, 0.02, spreads) == pytest.approx((-half, half))
    assert freedom == pytest.approx(8.125, abs=0.01)  # four by the seeds alone, at most


def test_images_of_few_degrees_of_freedom_widen_it() -> None:
    half = stats.t.ppf(0.975, 4) * 0.03
    assert interval_of_both(0.1, 0.03, ((None, 1),), freedom=4) == pytest.approx((0.1 - half, 0.1 + half))
    # Both: d^4 / 4 + s^4 / 2
    freedom = (0.03**2 + 0.02**2 / 3) ** 2 / (0.03**4 / 4 + (0.02**2 / 3) ** 2 / 2)
    half = stats.t.ppf(0.975, freedom) * np.sqrt(0.03**2 + 0.02**2 / 3)
    assert interval_of_both(0.0, 0.03, ((0.02, 3),), freedom=4) == pytest.approx((-half, half))


def answers(rng: np.random.Generator, hard: np.ndarray, skill: float, seed_sd: float) -> Predictions:
    n = len(hard)
    labels = np.arange(n) % 3
    logits = rng.normal(0, 1, (n, 3))
    logits[np.arange(n), labels] += skill + rng.normal(0, seed_sd) - hard
    return Predictions(
        ids=[f"i{i}" for i in range(n)], paths=["x"] * n, sources=["s"] * n, groups=[None] * n, folds=["test"] * n,
        labels=labels, logits=logits.astype(np.float32), classes=TAXONOMY.codes, model_revision="",
    )  # fmt: skip


def test_equal_systems_of_three_seeds_are_rarely_called_different() -> None:
    """At most 6 of 100; an interval over images alone, even with a difference of two standard errors, gives 8 to 11."""
    rng = np.random.default_rng(0)
    samples, clear, former = 300, {"accuracy": 0, "nll": 0, "critical_to_safe": 0}, 0
    for number in range(samples):
        hard = rng.normal(0, 1.5, 120)
        ours, other = ([answers(rng, hard, 2.0, 0.3) for _ in range(3)] for _ in range(2))
        found = paired_differences(ours, other, TAXONOMY, tuple(clear), draws=100, seed=number)
        for name, difference in found.items():
            clear[name] += difference.is_clear
        nll = found["nll"]
        assert nll.seed_error is not None
        former += (nll.low > 0 or nll.high < 0) and abs(nll.value) > 2 * nll.seed_error
    assert former > 0.07 * samples  # the simulation is one in which seeds matter
    assert all(count <= 0.06 * samples for count in clear.values()), clear
    assert clear["nll"] > 0


def test_a_real_difference_is_clear() -> None:
    rng = np.random.default_rng(1)
    hard = rng.normal(0, 1.5, 240)
    ours, other = ([answers(rng, hard, skill, 0.1) for _ in range(3)] for skill in (3.0, 1.5))
    found = paired_differences(ours, other, TAXONOMY, draws=200)
    assert found["accuracy"].is_clear
    assert found["nll"].is_clear


def test_a_rate_that_a_few_images_decide_is_never_clear() -> None:
    """Ten blasts called lymphocytes by one system alone, or nine; all else is equal."""
    n = 300
    labels = np.arange(n) % 3
    right = np.eye(3)[labels] * 9.0

    def wrong_in(count: int) -> Predictions:
        logits = right.copy()
        for row in np.flatnonzero(labels == 0)[:count]:
            logits[row] = (0.0, 9.0, 0.0)
        return Predictions(
            ids=[str(i) for i in range(n)], paths=["x"] * n, sources=["s"] * n, groups=[None] * n,
            folds=["test"] * n, labels=labels, logits=logits.astype(np.float32), classes=TAXONOMY.codes,
            model_revision="",
        )  # fmt: skip

    for count, is_clear in ((ENOUGH_DISCORDANT - 1, False), (ENOUGH_DISCORDANT, True)):
        found = paired_differences([wrong_in(0)], [wrong_in(count)], TAXONOMY, draws=200)["critical_to_safe"]
        assert found.discordant == count
        assert found.value == pytest.approx(-count / 100)
        assert found.high_of_both < 0
        assert found.n == 100
        assert found.is_clear is is_clear
    # Seeds of which one in three calls an image safe count a third each.
    several = [wrong_in(12), wrong_in(0), wrong_in(0)]
    found = paired_differences([wrong_in(0)] * 3, several, TAXONOMY, draws=200)["critical_to_safe"]
    assert found.discordant == pytest.approx(4)
