"""What is asked of features: neighbours and logistic regression of backbones, an SVM and trees of classical ones.

Everything is fitted on the training fold; what has to be chosen is chosen on the validation fold; the test fold only
gets answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..evaluation.linear_probe import (
    LOG_OF_NOTHING,
    LogisticProbe,
    choose_logistic,
    fit_logistic,
    log_shares,
)
from ..evaluation.metrics import confusion_matrix, confusion_metrics
from ..evaluation.neighbours import NEIGHBOURS, TEMPERATURE, knn_probabilities
from .classical import EvenKinds

#: Values of C an SVM may choose from. Features have squared length 1 on average, so gamma stays as it is.
_SVM_STRENGTHS, _SVM_GAMMA = (1.0, 10.0, 100.0), 0.5
_TREES = 500

#: Method -> (short name, how it works), in the order reports show them.
METHODS: dict[str, tuple[str, str]] = {
    **{
        f"knn_{k}": (
            f"kNN {k}",
            f"{k} nearest training image{'s' * (k > 1)} by cosine similarity"
            + (f", each votes with exp(similarity / {TEMPERATURE})" if k > 1 else ""),
        )
        for k in NEIGHBOURS
    },
    "logistic": (
        "logistic regression",
        "DinoBloom's protocol: multinomial, L2 with C = width x classes / 100, at most 1000 iterations of L-BFGS, "
        "features as they are, fitted on the training fold; nothing is chosen",
    ),
    "logistic_chosen": (
        "logistic, C chosen",
        "the same on standardised features, with the C of 1e-4 ... 100 that has the least negative log-likelihood on "
        "the validation fold",
    ),
    "svm": (
        "SVM",
        "support vector machine with radial kernel (gamma 0.5) on standardised features, each kind of feature of equal "
        "weight; C of 1, 10, 100 by balanced accuracy on the validation fold",
    ),
    "extra_trees": ("extra trees", f"{_TREES} extremely randomised trees with the defaults of scikit-learn"),
}
#: The method that stands for a system where one has to.
HEADLINE = {False: "logistic", True: "svm"}
#: Methods whose answers are meant as probabilities; of the others no likelihood and no calibration is reported.
HAVE_PROBABILITIES = ("logistic", "logistic_chosen")


@dataclass(frozen=True)
class Folds:
    """Features and labels of the three folds.

    Args:
        train, validation, test: float (images, width).
        train_labels, validation_labels: int64 (images,).
        num_classes: Classes of the taxonomy.
    """

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    train_labels: np.ndarray
    validation_labels: np.ndarray
    num_classes: int


@dataclass(frozen=True)
class Answer:
    """What one method says of the test fold.

    Args:
        method: One of `METHODS`.
        logits: float32 (images, classes); the largest is the answer.
        seed: Of the weights or trees; None where chance plays no part.
        about: What was chosen.
    """

    method: str
    logits: np.ndarray
    seed: int | None = None
    about: dict[str, Any] = field(default_factory=dict)


def ask_backbone(folds: Folds, seed: int | None) -> Iterator[Answer]:
    """Answers from frozen features of a backbone, whose weights were drawn with the seed or, with None, trained."""
    yield from ask_without_choice(folds, seed)
    chosen = choose_logistic(
        folds.train, folds.train_labels, folds.validation, folds.validation_labels, folds.num_classes
    )
    yield _said_by("logistic_chosen", chosen, folds, seed)


def ask_without_choice(folds: Folds, seed: int | None) -> Iterator[Answer]:
    """Those answers of a backbone that choose nothing, so that the validation fold may be asked as well."""
    for k in NEIGHBOURS:
        shares = knn_probabilities(folds.train, folds.train_labels, folds.test, k, folds.num_classes)
        yield Answer(f"knn_{k}", log_shares(shares), seed)
    yield _said_by("logistic", fit_logistic(folds.train, folds.train_labels, folds.num_classes), folds, seed)


def _said_by(method: str, probe: LogisticProbe, folds: Folds, seed: int | None) -> Answer:
    logits = probe.log_probabilities(folds.test).astype(np.float32)
    return Answer(method, logits, seed, {"c": probe.c, "converged": probe.converged})


def ask_classical(folds: Folds, seeds: Sequence[int]) -> Iterator[Answer]:
    """Answers from classical features; the seeds are those of the trees."""
    from sklearn.ensemble import ExtraTreesClassifier

    even = EvenKinds.fitted(folds.train)
    c = choose_svm(folds, even)
    decide = fit_svm(even(folds.train), folds.train_labels, folds.num_classes, c)
    yield Answer("svm", decide(even(folds.test)), None, {"c": c})
    for seed in seeds:
        trees = ExtraTreesClassifier(_TREES, random_state=seed, n_jobs=-1).fit(
            folds.train, folds.train_labels
        )
        shares = np.zeros((len(folds.test), folds.num_classes))
        shares[:, trees.classes_] = trees.predict_proba(folds.test)
        yield Answer("extra_trees", log_shares(shares), seed)


def choose_svm(folds: Folds, even: EvenKinds) -> float:
    """The C with the best balanced accuracy on the validation fold; of equal ones the smallest."""
    train, validation = even(folds.train), even(folds.validation)
    scores = [
        balanced_accuracy(
            folds.validation_labels,
            fit_svm(train, folds.train_labels, folds.num_classes, c)(validation).argmax(1),
            folds.num_classes,
        )
        for c in _SVM_STRENGTHS
    ]
    return _SVM_STRENGTHS[int(np.argmax(scores))]


def fit_svm(
    train: np.ndarray, labels: np.ndarray, num_classes: int, c: float
) -> Callable[[np.ndarray], np.ndarray]:
    """A fitted SVM: features -> float32 (images, classes), the larger the more likely."""
    from sklearn.svm import SVC

    model = SVC(C=c, gamma=_SVM_GAMMA).fit(train, labels)

    def decide(features: np.ndarray) -> np.ndarray:
        found = model.decision_function(features)
        if found.ndim == 1:  # two classes: how much the second one
            found = np.stack([-found, found], axis=1)
        decisions = np.full((len(features), num_classes), LOG_OF_NOTHING, dtype=np.float32)
        decisions[:, model.classes_] = found
        return decisions

    return decide


def balanced_accuracy(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> float:
    """Mean recall over the classes that have an image."""
    matrix = confusion_matrix(labels, predicted, num_classes)
    return float(confusion_metrics(matrix)["balanced_accuracy"])
