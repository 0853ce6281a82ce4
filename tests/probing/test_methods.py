"""What is asked of features, against scikit-learn's own pipelines; few-shot draws; the words of a command line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.svm import SVC

from cytodino_hf.errors import RecipeError
from cytodino_hf.probing.answers import Question, answer
from cytodino_hf.probing.classical import EvenKinds
from cytodino_hf.probing.command_line import parse_seeds, split_arguments
from cytodino_hf.probing.few_shot import FewShot, few_shot_values, logistic_fit, pick_shots, svm_fit
from cytodino_hf.probing.methods import Folds, ask_backbone, ask_classical, choose_svm, fit_svm

WIDTHS = (5, 2)


@pytest.fixture(scope="module")
def folds() -> Folds:
    """Classes 0, 1, 3 of four; seven features that tell them apart now and then."""
    rng = np.random.default_rng(0)
    labels = np.array([0, 1, 3])[np.arange(150) % 3]
    features = rng.normal(0, 1.0, (150, 7)) + rng.normal(0, 1, (4, 7))[labels]
    features[:, 5:] *= 40
    return Folds(features[:90], features[90:120], features[120:], labels[:90], labels[90:120], 4)


TEST_LABELS = np.array([0, 1, 3])[np.arange(120, 150) % 3]


def test_a_backbone_is_asked_what_scikit_learn_would_be(folds: Folds) -> None:
    answers = {answer.method: answer for answer in ask_backbone(folds, 4)}
    assert list(answers) == ["knn_1", "knn_20", "logistic", "logistic_chosen"]
    assert all(
        a.logits.shape == (30, 4) and np.isfinite(a.logits).all() and a.seed == 4 for a in answers.values()
    )
    nearest = (
        KNeighborsClassifier(1, metric="cosine").fit(folds.train, folds.train_labels).predict(folds.test)
    )
    assert (answers["knn_1"].logits.argmax(1) == nearest).all()
    logistic = LogisticRegression(C=7 * 3 / 100, max_iter=1000).fit(folds.train, folds.train_labels)
    np.testing.assert_allclose(
        np.exp(answers["logistic"].logits[:, [0, 1, 3]]), logistic.predict_proba(folds.test), atol=1e-4
    )
    assert answers["logistic"].about["c"] == pytest.approx(0.21)


def test_classical_features_are_asked_what_scikit_learn_would_be(
    folds: Folds, monkeypatch: pytest.MonkeyPatch
) -> None:
    even = EvenKinds.fitted(folds.train, WIDTHS)
    monkeypatch.setattr(EvenKinds, "fitted", classmethod(lambda *_: even))
    answers = list(ask_classical(folds, (3, 8)))
    assert [(a.method, a.seed) for a in answers] == [("svm", None), ("extra_trees", 3), ("extra_trees", 8)]
    scores = {}
    for c in (1.0, 10.0, 100.0):
        model = SVC(C=c, gamma=0.5).fit(even(folds.train), folds.train_labels)
        scores[c] = balanced_accuracy_score(folds.validation_labels, model.predict(even(folds.validation)))
    best = max(scores, key=lambda c: (scores[c], -c))
    assert answers[0].about["c"] == choose_svm(folds, even) == best
    decided = SVC(C=best, gamma=0.5).fit(even(folds.train), folds.train_labels).predict(even(folds.test))
    assert (
        answers[0].logits.argmax(1) == decided
    ).mean() > 0.95  # scikit-learn breaks ties of votes otherwise
    trees = ExtraTreesClassifier(500, random_state=8).fit(folds.train, folds.train_labels)
    np.testing.assert_allclose(
        np.exp(answers[2].logits[:, [0, 1, 3]]), trees.predict_proba(folds.test), atol=1e-5
    )


def test_an_svm_of_two_classes_and_of_absent_ones() -> None:
    features = np.array([[0.0], [0.1], [1.0], [1.1]])
    decide = fit_svm(features, np.array([2, 2, 0, 0]), 4, 1.0)
    assert decide(np.array([[0.05], [1.05]])).argmax(1).tolist() == [2, 0]


def test_kinds_of_features_weigh_the_same_whatever_their_number_and_scale(folds: Folds) -> None:
    still = np.column_stack([folds.train[:, :4], np.full(90, 3.0), folds.train[:, 5:]])
    even = EvenKinds.fitted(still, WIDTHS)
    scaled = even(still)
    np.testing.assert_allclose(scaled.mean(0), 0, atol=1e-12)
    squares = (scaled**2).mean(0)
    np.testing.assert_allclose(squares[:4], 1 / 8)  # half of the weight on four features that move
    assert squares[4] == 0
    np.testing.assert_allclose(squares[5:], 1 / 4)


def test_shots_are_drawn_class_by_class_and_alike_for_all() -> None:
    labels = np.repeat([0, 2, 5], [30, 8, 3])
    rows = pick_shots(labels, 5, draw=0)
    assert np.bincount(labels[rows]).tolist() == [5, 0, 5, 0, 0, 3]
    assert len(set(rows.tolist())) == 13
    np.testing.assert_array_equal(rows, pick_shots(labels, 5, draw=0))
    others = [tuple(sorted(pick_shots(labels, 5, draw=d)[:5])) for d in range(20)]
    assert len(set(others)) > 15


def test_few_shot_values_are_those_of_a_fit_on_the_drawn_rows(folds: Folds) -> None:
    values = list(few_shot_values(folds, TEST_LABELS, logistic_fit(4), 5, range(1, 6, 2)))
    expected = []
    for draw in (1, 3, 5):
        rows = pick_shots(folds.train_labels, 5, draw)
        model = LogisticRegression(C=0.21, max_iter=1000).fit(folds.train[rows], folds.train_labels[rows])
        expected.append(balanced_accuracy_score(TEST_LABELS, model.predict(folds.test)))
    assert values == pytest.approx(expected)


def test_few_shots_of_the_svm_learn_something(folds: Folds, monkeypatch: pytest.MonkeyPatch) -> None:
    even = EvenKinds.fitted(folds.train, WIDTHS)
    monkeypatch.setattr(EvenKinds, "fitted", classmethod(lambda *_: even))
    assert np.mean(list(few_shot_values(folds, TEST_LABELS, svm_fit(folds), 10, range(4)))) > 0.5


def test_answers_are_kept_for_the_same_question_only(folds: Folds, tmp_path: Path) -> None:
    question = Question(folds, TEST_LABELS, False, 3, (0,), range(2))
    first = answer(question, tmp_path)
    assert list(first.few_shot) == [1, 5, 10]
    again = answer(question, tmp_path)
    assert first.few_shot == again.few_shot
    for one, other in zip(first.methods, again.methods, strict=True):
        assert (one.method, one.seed, one.about) == (other.method, other.seed, other.about)
        np.testing.assert_array_equal(one.logits, other.logits)
    for expected, kept in zip(ask_backbone(folds, 3), again.methods, strict=True):
        np.testing.assert_allclose(kept.logits, expected.logits, atol=1e-6)
    others = [
        replace(question, seed=4),
        replace(question, draws=range(3)),
        replace(question, test_labels=TEST_LABELS[::-1]),
        replace(question, folds=replace(folds, train=folds.train + 1e-9)),
        replace(question, folds=replace(folds, validation_labels=folds.validation_labels[::-1])),
    ]
    assert len({one.digest() for one in [question, *others]}) == 6


def test_the_interval_over_draws_is_students() -> None:
    few = FewShot(5, (0.5, 0.6, 0.55, 0.7))
    expected = stats.ttest_1samp(few.values, 0).confidence_interval(0.95)
    assert few.interval() == pytest.approx((expected.low, expected.high))
    assert FewShot(5, (0.5,)).to_dict() | {"values": 0} == {
        "shots": 5, "values": 0, "short_classes": (), "mean": 0.5, "sd": None, "low": None, "high": None,
    }  # fmt: skip


def test_words_of_the_command_line_are_sorted() -> None:
    words = ["a/b", "--data.root", "x y", "./c", "--data.cache=pixels", "classical", "--data.split", "s.csv"]
    assert split_arguments(words) == (
        ["a/b", "./c", "classical"],
        ["--data.root", "x y", "--data.cache=pixels", "--data.split", "s.csv"],
    )
    assert split_arguments(["--data.root", "--data.split", "s"]) == ([], ["--data.root", "--data.split", "s"])
    assert parse_seeds("3, 0") == (3, 0)
    with pytest.raises(RecipeError, match="whole numbers"):
        parse_seeds("")
