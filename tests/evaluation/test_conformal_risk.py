"""The bound on critical cells called safe: Clopper and Pearson's limit, and repeated calibrations."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import beta, binom

from cytodino_hf.evaluation.conformal.risk_control import (
    bound_risk,
    critical_cells_needed,
    critical_probability,
    stays_safe,
)
from cytodino_hf.taxonomy import CellClass, Taxonomy

TAXONOMY = Taxonomy(
    "small",
    (
        CellClass("BLA", "blast", "granulocytic", is_critical=True),
        CellClass("MMZ", "metamyelocyte", "granulocytic"),
        CellClass("NGS", "segmented neutrophil", "granulocytic", is_safe=True),
    ),
)


def draw(rng: np.random.Generator, n: int) -> np.ndarray:
    """Logits of critical cells, of which about a quarter is called safe."""
    return rng.normal([1.0, 0.0, 0.0], 1.3, (n, 3))


def test_the_number_needed_is_computed() -> None:
    assert [critical_cells_needed(risk) for risk in (0.1, 0.05, 0.02)] == [22, 45, 114]
    for risk in (0.3, 0.1, 0.05, 0.02, 0.01):
        for confidence in (0.8, 0.9, 0.95):
            n = critical_cells_needed(risk, confidence)
            assert binom.pmf(0, n, risk) <= 1 - confidence < binom.pmf(0, n - 1, risk)
    with pytest.raises(ValueError, match="between 0 and 1"):
        critical_cells_needed(0.0)


@pytest.mark.parametrize(("risk", "needed"), [(0.1, 22), (0.05, 45), (0.02, 114)])
def test_it_is_refused_below_the_number_needed(risk: float, needed: int) -> None:
    logits = np.tile([9.0, 0.0, 0.0], (needed, 1))
    refused = bound_risk(logits[1:], np.zeros(needed - 1, int), TAXONOMY, risk)
    assert refused.bar is None
    assert (refused.cells, refused.allowed, refused.bar) == (needed - 1, None, None)
    found = bound_risk(logits, np.zeros(needed, int), TAXONOMY, risk)
    assert (found.allowed, found.bar) == (0, math.inf)  # none is called safe: nobody needs to look


@pytest.mark.parametrize(("n", "risk"), [(45, 0.05), (77, 0.05), (200, 0.1), (500, 0.02)])
def test_as_many_may_stay_safe_as_clopper_and_pearson_allow(n: int, risk: float) -> None:
    logits = draw(np.random.default_rng(n), n)
    allowed = bound_risk(logits, np.zeros(n, int), TAXONOMY, risk).allowed
    assert allowed is not None
    assert beta.ppf(0.9, allowed + 1, n - allowed) <= risk < beta.ppf(0.9, allowed + 2, n - allowed - 1)


def test_the_bar_lets_exactly_the_allowed_cells_stay_safe() -> None:
    logits = draw(np.random.default_rng(1), 300)
    labels = np.zeros(300, int)
    found = bound_risk(logits, labels, TAXONOMY, 0.1)
    assert found.bar is not None
    assert stays_safe(logits, TAXONOMY, found.bar).sum() == found.allowed
    probability = np.exp(logits)[:, 0] / np.exp(logits).sum(axis=1)
    np.testing.assert_allclose(critical_probability(logits, TAXONOMY), probability)
    by_hand = np.sort(probability[logits.argmax(axis=1) == 2])[found.allowed]
    assert found.bar == pytest.approx(by_hand)
    # cells that are not critical change nothing
    more = np.concatenate([logits, np.zeros((50, 3))]), np.concatenate([labels, np.full(50, 2)])
    assert bound_risk(*more, TAXONOMY, 0.1) == found


def test_ties_at_the_bar_do_not_stay_safe() -> None:
    logits = np.tile([0.0, 0.0, 1.0], (300, 1))
    found = bound_risk(logits, np.zeros(300, int), TAXONOMY, 0.1)
    assert found.bar is not None
    assert not stays_safe(logits, TAXONOMY, found.bar).any()


@pytest.mark.parametrize(("n", "risk"), [(45, 0.05), (150, 0.05), (150, 0.1)])
def test_the_risk_is_kept_in_as_many_calibrations_as_promised(n: int, risk: float) -> None:
    rng = np.random.default_rng(n)
    truth = draw(rng, 60_000)
    true_bars = np.sort(critical_probability(truth, TAXONOMY)[truth.argmax(axis=1) == 2])
    failures = []
    for _ in range(400):
        found = bound_risk(draw(rng, n), np.zeros(n, int), TAXONOMY, risk)
        failures.append(np.searchsorted(true_bars, found.bar) / len(truth) > risk)
    expected = binom.cdf(found.allowed, n, risk)  # at most 0.1, by the steps of whole cells
    error = math.sqrt(expected * (1 - expected) / 400)
    assert expected <= 0.1
    assert abs(np.mean(failures) - expected) < 3 * error


def test_a_taxonomy_without_critical_or_safe_classes_has_no_risk() -> None:
    plain = Taxonomy("plain", (CellClass("A", "a", "x"), CellClass("B", "b", "x", is_safe=True)))
    with pytest.raises(ValueError, match="no risk to bound"):
        bound_risk(np.zeros((5, 2)), np.zeros(5, int), plain, 0.1)
