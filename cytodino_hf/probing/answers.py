"""All answers from the features of one system, kept so that the same question is never worked out twice."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from ..files import whole_file
from .few_shot import SHOTS, few_shot_values, logistic_fit, svm_fit
from .methods import METHODS, Answer, Folds, ask_backbone, ask_classical

# Raise it with any change of how methods are fitted that `METHODS` does not tell.
_VERSION = 1


@dataclass(frozen=True)
class Question:
    """What is asked of the features of one system and seed.

    Args:
        folds: Features and labels.
        test_labels: int64 (test images,), to score few-shot draws by.
        is_classical: Which methods are asked.
        seed: Of the weights the features come from; None where they are trained or there are none.
        tree_seeds: Of the trees of classical features.
        draws: Numbers of the few-shot draws.
    """

    folds: Folds
    test_labels: np.ndarray
    is_classical: bool
    seed: int | None
    tree_seeds: tuple[int, ...]
    draws: range

    def digest(self) -> str:
        """sha256 of everything the answers depend on."""
        told = {
            "version": _VERSION,
            "methods": METHODS,
            "shots": SHOTS,
            "libraries": [version("scikit-learn"), version("numpy")],
            "asked": [
                self.is_classical,
                self.seed,
                self.tree_seeds,
                list(self.draws),
                self.folds.num_classes,
            ],
        }
        digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
        folds = self.folds
        for part in (folds.train, folds.validation, folds.test, folds.train_labels, folds.validation_labels):
            digest.update(f"{part.dtype}{part.shape}".encode() + np.ascontiguousarray(part).tobytes())
        digest.update(np.ascontiguousarray(self.test_labels).tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class Answers:
    """The answers of every method, and balanced accuracies of few-shot draws by images a class."""

    methods: tuple[Answer, ...]
    few_shot: dict[int, list[float]]


def answer(question: Question, folder: Path) -> Answers:
    """Work out the answers, or take them from the folder where the very same question was asked before."""
    file = folder / f"{question.digest()[:16]}.npz"
    if not file.is_file():
        asked = (
            ask_classical(question.folds, question.tree_seeds)
            if question.is_classical
            else ask_backbone(question.folds, question.seed)
        )
        _keep(file, Answers(tuple(asked), _few_shot(question)))
    return _kept(file)


def useful_shots(train_labels: np.ndarray) -> Sequence[int]:
    """Those of `SHOTS` for which some class has more images: otherwise every draw is the whole fold."""
    most = int(np.bincount(train_labels).max())
    return [shots for shots in SHOTS if shots < most]


def _few_shot(question: Question) -> dict[int, list[float]]:
    folds = question.folds
    if not question.draws:
        return {}
    fit = svm_fit(folds) if question.is_classical else logistic_fit(folds.num_classes)
    return {
        shots: list(few_shot_values(folds, question.test_labels, fit, shots, question.draws))
        for shots in useful_shots(folds.train_labels)
    }


def _keep(file: Path, answers: Answers) -> None:
    told: dict[str, Any] = {
        "methods": [[one.method, one.seed, one.about] for one in answers.methods],
        "few_shot": [[shots, values] for shots, values in answers.few_shot.items()],
    }
    with whole_file(file) as stream:
        np.savez(
            stream, told=np.array(json.dumps(told)), logits=np.stack([one.logits for one in answers.methods])
        )


def _kept(file: Path) -> Answers:
    with np.load(file, allow_pickle=False) as content:
        told, logits = json.loads(str(content["told"])), content["logits"]
    return Answers(
        tuple(
            Answer(method, logits[place], seed, about)
            for place, (method, seed, about) in enumerate(told["methods"])
        ),
        dict(told["few_shot"]),
    )
