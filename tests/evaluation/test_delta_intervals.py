"""Standard errors from influences, by textbook formulas, and intervals at the edges."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import t

from cytodino_hf.evaluation.delta_intervals import (
    ON_LOG_ODDS,
    ON_LOGARITHM,
    Spread,
    positive_interval,
    share_interval,
    spread_of,
)
from cytodino_hf.evaluation.statistics import WILSON, wilson_interval


def test_the_error_of_a_stratified_mean() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], [10, 30, 60])
    values = rng.normal(labels, 1 + labels)
    found = spread_of((values - values.mean()) / 100, labels)
    parts = [values[labels == k] for k in range(3)]
    expected = math.sqrt(sum(len(p) * p.var(ddof=1) for p in parts)) / 100
    assert found.error == pytest.approx(expected)
    # Welch and Satterthwaite, from the variances alone, is the most it can be
    terms = [(len(p) * p.var(ddof=1), len(p) - 1) for p in parts]
    assert found.freedom <= sum(v for v, _ in terms) ** 2 / sum(v**2 / m for v, m in terms) + 1e-9


def test_rare_large_influences_leave_few_degrees_of_freedom() -> None:
    rare = np.zeros(1000)
    rare[:3] = 1.0
    many = np.tile([0.0, 1.0], 500)
    one_class = np.zeros(1000, dtype=int)
    few, enough = (spread_of((v - v.mean()) / 1000, one_class) for v in (rare, many))
    assert few.freedom == pytest.approx(6, rel=0.02)  # twice the number of events
    assert enough.freedom == pytest.approx(999)


def test_groups_are_one_unit_and_a_unit_alone_counts_whole() -> None:
    values = np.array([1.0, 1.0, 3.0, 3.0, 8.0, 8.0])
    groups = ["a", "a", "b", "b", "c", "c"]
    labels = np.zeros(6, dtype=int)
    found = spread_of((values - 4) / 6, labels, groups)
    assert found.error == pytest.approx(np.std([1, 3, 8], ddof=1) / math.sqrt(3))
    assert spread_of(np.array([0.3]), np.array([0])) == Spread(0.3, 1.0)
    assert spread_of(np.zeros(4), np.zeros(4, dtype=int)).error == 0


def test_intervals_by_hand() -> None:
    spread = Spread(0.02, 12.0)
    factor = t.ppf(0.975, 12)
    share = share_interval(0.9, spread, 50, 50)
    middle, half = math.log(9), factor * 0.02 / 0.09
    assert share.low == pytest.approx(1 / (1 + math.exp(-(middle - half))))
    assert share.high == pytest.approx(1 / (1 + math.exp(-(middle + half))))
    assert (share.value, share.method, share.n) == (0.9, ON_LOG_ODDS, 50)
    mean = positive_interval(0.5, spread, 50)
    assert mean is not None
    assert (mean.low, mean.high) == pytest.approx(
        (0.5 * math.exp(-factor * 0.04), 0.5 * math.exp(factor * 0.04))
    )
    assert mean.method == ON_LOGARITHM


def test_edges_have_an_interval_or_none() -> None:
    perfect = share_interval(1.0, Spread(0.0, math.inf), 80, 12)
    assert perfect.method == WILSON
    assert perfect.low == pytest.approx(wilson_interval(12, 12).low)
    assert (perfect.high, perfect.n) == (1.0, 80)
    assert share_interval(1 - 1e-12, Spread(0.4, 1.0), 9, 9).low == 0.0
    wide = positive_interval(1e-9, Spread(5.0, 1.0), 9)
    assert wide is not None
    assert np.isfinite([wide.low, wide.high]).all()
    assert positive_interval(0.0, Spread(0.1, 3.0), 4) is None
    assert positive_interval(0.3, Spread(0.0, math.inf), 1) is None
