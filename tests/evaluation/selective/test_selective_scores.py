"""Scores of trust against formulas written out in the test, and what happens at the edges."""

from __future__ import annotations

import numpy as np
import torch
from scipy.special import logsumexp, softmax
from scipy.stats import entropy

from cytodino_hf.evaluation.selective.scores import SCORES, confidence_scores
from cytodino_hf.losses.hierarchical_focal import Options
from cytodino_hf.losses.hierarchical_focal import mistake_costs as costs_of_the_loss
from cytodino_hf.taxonomy import MLL, mistake_costs


def test_every_score_is_its_formula() -> None:
    logits = np.random.default_rng(0).normal(0, 3, (50, len(MLL)))
    p = softmax(logits, axis=1)
    ranked = np.sort(p, axis=1)
    scores = confidence_scores(logits, MLL)
    assert tuple(scores) == tuple(SCORES)
    np.testing.assert_allclose(scores["max_probability"], ranked[:, -1])
    np.testing.assert_allclose(scores["margin"], ranked[:, -1] - ranked[:, -2])
    np.testing.assert_allclose(scores["entropy"], -entropy(p, axis=1))
    np.testing.assert_allclose(scores["energy"], logsumexp(logits, axis=1))
    costs = costs_of_the_loss(MLL, 3.0, 1.5)[:, torch.tensor(logits.argmax(1))]
    expected = (torch.tensor(p) * costs.T).sum(1)
    np.testing.assert_allclose(scores["expected_cost"], -expected, atol=1e-12)


def test_the_costs_are_those_of_the_loss() -> None:
    options = Options()
    table = costs_of_the_loss(MLL, options.critical_to_safe_cost, options.safe_to_critical_cost)
    assert mistake_costs(MLL) == table.tolist()
    bla, ngs, art = (MLL.index(code) for code in ("BLA", "NGS", "ART"))
    assert (table[bla, ngs], table[ngs, bla], table[art, ngs], table[bla, bla]) == (3.0, 1.5, 0.0, 0.0)


def test_certainty_and_one_class_give_finite_scores() -> None:
    certain = confidence_scores(np.array([[2000.0, -2000.0, 0.0]]), MLL.subset(["BLA", "LYT", "ART"]))
    assert certain["max_probability"][0] == certain["margin"][0] == 1.0
    assert certain["entropy"][0] == certain["expected_cost"][0] == 0.0
    alone = confidence_scores(np.array([[3.0]]), MLL.subset(["BLA"]))
    assert {name: float(value[0]) for name, value in alone.items()} == {
        "max_probability": 1.0,
        "margin": 1.0,
        "entropy": 0.0,
        "energy": 3.0,
    }


def test_without_dangerous_mistakes_there_is_no_clinical_cost() -> None:
    assert "expected_cost" not in confidence_scores(np.zeros((2, 2)), MLL.subset(["LYT", "ART"]))
