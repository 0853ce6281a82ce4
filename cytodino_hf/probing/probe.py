"""run_probe(options): images -> features of each system -> answers -> numbers, on one page."""

from __future__ import annotations

import logging
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel

from ..errors import CytoDinoError, RecipeError
from ..evaluation.features import Pooling
from ..evaluation.predictions import Predictions
from ..evaluation.scoring import as_predictions
from ..page import plain
from ..recipe import DataSection
from .answers import Question, answer
from .classical import need_skimage
from .few_shot import FewShot
from .images import ProbeImages, load_probe_images
from .methods import HEADLINE, METHODS, Answer, Folds
from .report import write_report
from .scores import compare_with_first, score_method
from .systems import CLASSICAL, FeatureSettings, slug, system_features

logger = logging.getLogger(__name__)

_VERSIONS = ("cytodino-hf", "torch", "transformers", "scikit-learn", "numpy")
_SEED = 0  # of the bootstrap: all systems see the same draws


@dataclass(frozen=True)
class ProbeOptions:
    """What a probe is asked for.

    Args:
        backbones: Hub ids, folders, `random:` and one of them, `classical`; the first is compared with the others.
        data: Images and folds.
        source_options: Options of every source.
        output: Folder of the results, and of features and answers kept for the next time.
        more: Folder of more training images, or None.
        seeds: Of untrained weights and of trees.
        pooling, precision, batch_size, workers: See `FeatureSettings`.
        few_shot_draws: Draws of a few training images a class; 0 leaves that part out.
        interval_draws: Bootstrap draws behind each interval.
        command: What was typed, for the report.
    """

    backbones: tuple[str, ...]
    data: DataSection
    source_options: Mapping[str, BaseModel]
    output: Path
    more: Path | None = None
    seeds: tuple[int, ...] = (0, 1, 2)
    pooling: Pooling = "cls"
    precision: Literal["float32", "bfloat16"] = "float32"
    batch_size: int = 64
    workers: int = 0
    few_shot_draws: int = 10
    interval_draws: int = 2000
    command: str = ""


def run_probe(options: ProbeOptions) -> dict[str, Any]:
    """Compare backbones by their frozen features.

    Args:
        options: See `ProbeOptions`.

    Returns:
        The content of `probe.json`, which is written with the other files of the report.

    Raises:
        CytoDinoError: Of any step; says what is wrong, where, and the remedy.
    """
    _check(options)
    images = load_probe_images(options.data, options.source_options, options.more)
    answers: dict[str, dict[str, list[Predictions]]] = {}
    systems = []
    for name in options.backbones:
        answers[name], record = _ask(name, options, images)
        systems.append(record)
    document = {
        "command": options.command,
        "versions": {"python": platform.python_version()} | {name: version(name) for name in _VERSIONS},
        "data": images.record(),
        "features": {"pooling": options.pooling, "precision": options.precision},
        "methods": {name: text for name, (_, text) in METHODS.items()},
        "interval_draws": options.interval_draws,
        "systems": systems,
        "comparisons": compare_with_first(
            answers,
            images.taxonomy,
            is_classical={name: name == CLASSICAL for name in answers},
            draws=options.interval_draws,
            seed=_SEED,
        ),
    }
    document = plain(document)
    write_report(document, options.output)
    return document


def _settings(options: ProbeOptions) -> FeatureSettings:
    return FeatureSettings(
        options.data, options.pooling, options.precision, options.batch_size, options.workers
    )


def _check(options: ProbeOptions) -> None:
    found = []
    if not options.backbones:
        found.append("no backbone: give a Hub id, a folder, random:ONE_OF_THEM or classical")
    if twice := sorted({name for name in options.backbones if options.backbones.count(name) > 1}):
        found.append(f"named twice: {', '.join(twice)}")
    if not options.seeds or len(set(options.seeds)) != len(options.seeds) or min(options.seeds) < 0:
        found.append(f"--seeds {options.seeds}: must be different whole numbers from 0")
    if found:
        raise RecipeError(found, "command line")
    if CLASSICAL in options.backbones:
        need_skimage()
    try:
        options.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CytoDinoError(f"{options.output}: cannot be made ({error}); give another --output") from error


def _ask(
    name: str, options: ProbeOptions, images: ProbeImages
) -> tuple[dict[str, list[Predictions]], dict[str, Any]]:
    """Answers of one system to the test fold, one a method and seed, and its part of `probe.json`."""
    is_classical = name == CLASSICAL
    test = images.own.images.fold("test")
    predictions: dict[str, list[Predictions]] = {}
    methods: dict[str, dict[str, Any]] = {}
    few: dict[int, list[float]] = {}
    runs = []
    folder = options.output / "features"
    for number, found in enumerate(system_features(name, options.seeds, images, _settings(options), folder)):
        logger.info("%s: fitting on %d features an image", name, found.features.shape[1])
        runs.append({"seed": found.seed, **found.about})
        # Draws take turns among the seeds, so that their spread holds that of both.
        turns = 1 if found.seed is None else len(options.seeds)
        question = Question(
            folds_of(images, found.features),
            np.asarray(test.labels),
            is_classical,
            found.seed,
            options.seeds,
            range(number, options.few_shot_draws, turns),
        )
        answers = answer(question, options.output / "answers")
        for one in answers.methods:
            revision = " ".join([name, one.method, found.about.get("sha256", "")[:12]]).strip()
            kept = as_predictions(test, one.logits, revision)
            predictions.setdefault(one.method, []).append(kept)
            entry = methods.setdefault(one.method, {"chosen": [], "predictions": []})
            entry["chosen"].append(one.about)
            entry["predictions"].append(_write_predictions(kept, options.output, name, one))
        for shots, values in answers.few_shot.items():
            few.setdefault(shots, []).extend(values)
    for method, each in predictions.items():
        scores = score_method(each, images.taxonomy, method, draws=options.interval_draws, seed=_SEED)
        methods[method]["metrics"] = {key: score.to_dict() for key, score in scores.items()}
    return predictions, {
        "name": name,
        "runs": runs,
        "methods": methods,
        "few_shot_method": HEADLINE[is_classical],
        "few_shot": [FewShot(n, tuple(v), _short_classes(images, n)).to_dict() for n, v in few.items()],
        "test_images": len(test.labels),
    }


def _short_classes(images: ProbeImages, shots: int) -> tuple[str, ...]:
    counts = np.bincount(images.labels[images.rows("train")], minlength=len(images.taxonomy))
    return tuple(code for code, n in zip(images.taxonomy.codes, counts, strict=True) if n < shots)


def _write_predictions(kept: Predictions, output: Path, name: str, one: Answer) -> str:
    """Keep an answer, so that it can be compared later; the file relative to the output."""
    ending = "" if one.seed is None else f"-seed{one.seed}"
    file = Path("predictions") / slug(name) / f"{one.method}{ending}.parquet"
    kept.to_parquet(output / file)
    return file.as_posix()


def folds_of(images: ProbeImages, features: np.ndarray) -> Folds:
    """Features and labels of each fold."""
    train, validation, test = (images.rows(fold) for fold in ("train", "validation", "test"))
    labels = images.labels
    return Folds(
        features[train],
        features[validation],
        features[test],
        labels[train],
        labels[validation],
        len(images.taxonomy),
    )
