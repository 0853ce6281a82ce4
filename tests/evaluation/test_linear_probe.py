"""Logistic regression on features: the solution itself, the protocol, the choice of C."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize

from cytodino_hf.evaluation import linear_probe
from cytodino_hf.evaluation.linear_probe import LOG_OF_NOTHING, choose_logistic, fit_logistic
from cytodino_hf.evaluation.probability_metrics import probability_metrics


@pytest.fixture
def some() -> tuple[np.ndarray, np.ndarray]:
    """60 images of 3 classes whose features say something of the class."""
    labels = np.arange(60) % 3
    features = np.sin(np.arange(60 * 4).reshape(60, 4) ** 1.3)
    features[:, 0] += labels
    features[:, 1] = 5 + 100 * features[:, 1]
    return features, labels


def _solved(features: np.ndarray, labels: np.ndarray, c: float) -> np.ndarray:
    """Log-probabilities of the minimum of C * sum of NLL + |weights|^2 / 2, by another optimiser."""
    width, k = features.shape[1], labels.max() + 1

    def logits(flat: np.ndarray) -> np.ndarray:
        z = features @ flat[: width * k].reshape(width, k) + flat[width * k :]
        return z - np.log(np.exp(z).sum(1, keepdims=True))

    def loss(flat: np.ndarray) -> float:
        nll = -logits(flat)[np.arange(len(labels)), labels].sum()
        return float(c * nll + (flat[: width * k] ** 2).sum() / 2)

    found = minimize(loss, np.zeros((width + 1) * k), method="BFGS", options={"gtol": 1e-6})
    return logits(found.x)


def test_the_protocol_is_the_minimum_it_claims(some: tuple) -> None:
    features, labels = some
    features = features / [1, 100, 1, 1]
    probe = fit_logistic(features, labels, 3)
    assert probe.c == pytest.approx(4 * 3 / 100)  # width x classes / 100
    assert probe.converged
    np.testing.assert_allclose(
        probe.log_probabilities(features), _solved(features, labels, probe.c), atol=2e-3
    )


def test_standardised_features_forget_their_scale(some: tuple) -> None:
    features, labels = some
    one = fit_logistic(features, labels, 3, c=0.1, is_standardised=True)
    other = fit_logistic(features * [3, 1, 1, 7] + 2, labels, 3, c=0.1, is_standardised=True)
    np.testing.assert_allclose(
        one.log_probabilities(features), other.log_probabilities(features * [3, 1, 1, 7] + 2), atol=1e-4
    )
    scaled = (features - features.mean(0)) / features.std(0)
    np.testing.assert_allclose(one.log_probabilities(features), _solved(scaled, labels, 0.1), atol=2e-3)


def test_classes_without_images_get_nothing_and_a_constant_feature_does_no_harm() -> None:
    features = np.column_stack([np.arange(8.0), np.ones(8)])
    labels = np.array([1, 1, 1, 1, 3, 3, 3, 3])
    probe = fit_logistic(features, labels, 5, is_standardised=True)
    found = probe.log_probabilities(features)
    assert found.shape == (8, 5)
    assert (found[:, [0, 2, 4]] == LOG_OF_NOTHING).all()
    np.testing.assert_allclose(np.exp(found[:, [1, 3]]).sum(1), 1.0, rtol=1e-12)
    assert (found.argmax(1) == labels).all()


def test_the_validation_fold_chooses_and_nothing_else(some: tuple) -> None:
    features, labels = some
    train, validation = slice(0, 40), slice(40, 60)
    strengths = (1e-4, 1e-2, 1.0, 100.0)
    chosen = choose_logistic(
        features[train], labels[train], features[validation], labels[validation], 3, strengths
    )
    nll = {}
    for c in strengths:
        probe = fit_logistic(features[train], labels[train], 3, c=c, is_standardised=True)
        nll[c] = probability_metrics(probe.log_probabilities(features[validation]), labels[validation])["nll"]
    assert chosen.c == min(nll, key=nll.__getitem__)


def test_an_end_before_the_minimum_is_said(some: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_probe, "MAX_ITERATIONS", 3)
    assert not fit_logistic(*some, 3).converged
