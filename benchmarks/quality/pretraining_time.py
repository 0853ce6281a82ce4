"""`cytodino benchmark pretraining`: quality of backbones over the seconds they were pretrained."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from benchmarks.machine import describe_machine, describe_versions
from benchmarks.results import Part
from cytodino_hf.errors import CytoDinoError
from cytodino_hf.evaluation.comparison import bootstrap_intervals
from cytodino_hf.evaluation.predictions import Predictions

from .arms import ARMS, recipe_of
from .images import StudyImages, load_images
from .outputs import write_found
from .runs import Child, Run, perform
from .settings import PretrainingTimeSettings, called, command_line
from .study import same_backbone

if TYPE_CHECKING:
    from cytodino_hf.evaluation.frozen_backbones import FrozenBackbone

_RECORD = "pretraining.json"
_NEIGHBOURS = (1, 20)
_MONITORED = f"knn{_NEIGHBOURS[-1]}_balanced_accuracy"
_METRIC = "balanced_accuracy"
_WORDS = {
    "knn_1": "1 neighbour",
    "knn_20": "20 neighbours",
    "logistic": "logistic regression",
    "fine_tuned": "fine-tuned",
}


class Reached(Part):
    """Balanced accuracy of the test fold: mean over seeds where there are several, interval over images."""

    value: float
    low: float
    high: float
    seeds: int = 1


class PretrainedBackbone(Part):
    """One backbone.

    Args:
        name: What it is called.
        seconds: It was pretrained, on the wall; 0 for the untrained one.
        images_seen: In pretraining.
        hardware: It was pretrained on.
        monitored: (seconds, balanced accuracy by 20 neighbours) of the pretraining's own probe, while it trained.
        scores: Method -> what was reached.
    """

    name: str
    seconds: float
    images_seen: int
    hardware: str
    monitored: list[tuple[float, float]]
    scores: dict[str, Reached]


class PretrainingTime(Part):
    """Quality over pretraining as it came out."""

    format: Literal[1] = 1
    date: str
    command: str
    machine: dict[str, str | int | float]
    versions: dict[str, str]
    settings: dict[str, Any]
    images_name: str
    images: dict[str, int]
    backbones: list[PretrainedBackbone]


def run(settings: PretrainingTimeSettings, start: Callable[[Run], Child] | None = None) -> PretrainingTime:
    """Look at the features of each backbone, and fine-tune on each.

    Args:
        settings: Checked.
        start: See `perform`.

    Raises:
        CytoDinoError: A folder was not written by `cytodino pretrain`; images or a run.
    """
    machine = describe_machine()
    records = {folder: _read_record(folder) for folder in settings.backbones}
    names = [called(folder) for folder in settings.backbones]
    if len(set(names)) < len(names):
        raise CytoDinoError(f"--backbones: two folders are called {', '.join(sorted(names))}; rename one")
    images = load_images(settings.images, settings.split_file, (), settings.output)
    tuned = _fine_tune(settings, images, start) if settings.fine_tune else {}
    found = [_untrained(settings, images)]
    for folder, record in records.items():
        scores = _frozen_scores(settings, images, str(folder))
        if folder in tuned:
            scores["fine_tuned"] = _reached(tuned[folder], settings.draws)
        found.append(_backbone(called(folder), record, scores))
    return PretrainingTime(
        date=datetime.now(UTC).strftime("%Y-%m-%d"),
        command=command_line("pretraining", settings),
        machine=machine,
        versions=describe_versions(),
        settings=settings.model_dump(mode="json", exclude={"images", "split", "backbones", "output"}),
        images_name=settings.images_name,
        images=images.counts(),
        backbones=sorted(found, key=lambda one: one.seconds),
    )


def _read_record(folder: Path) -> dict[str, Any]:
    file = folder / _RECORD
    if not file.is_file():
        raise CytoDinoError(
            f"{folder}: has no {_RECORD}; --backbones takes folders that `cytodino pretrain` wrote (RUN/backbone)"
        )
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def _backbone(name: str, record: Mapping[str, Any], scores: dict[str, Reached]) -> PretrainedBackbone:
    training, environment = record["training"], record["environment"]
    gpus = environment.get("gpus") or []
    return PretrainedBackbone(
        name=name,
        seconds=training["seconds"],
        images_seen=training["images_seen"],
        hardware=", ".join(gpus) if gpus else f"{environment['processor']}, {environment['cores']} cores",
        monitored=[
            (row["seconds"], row[_MONITORED])
            for row in training["log_history"]
            if _MONITORED in row and "seconds" in row
        ],
        scores=scores,
    )


def _untrained(settings: PretrainingTimeSettings, images: StudyImages) -> PretrainedBackbone:
    """The first backbone's architecture with fresh weights: where the curve begins."""
    name = f"random:{settings.backbones[0]}"
    each = [_frozen_predictions(settings, images, name, seed) for seed in settings.seeds]
    return PretrainedBackbone(
        name="untrained",
        seconds=0.0,
        images_seen=0,
        hardware="",
        monitored=[],
        scores={method: _reached([one[method] for one in each], settings.draws) for method in each[0]},
    )


def _frozen_scores(settings: PretrainingTimeSettings, images: StudyImages, name: str) -> dict[str, Reached]:
    return {
        method: _reached([predictions], settings.draws)
        for method, predictions in _frozen_predictions(settings, images, name, 0).items()
    }


def _frozen_predictions(
    settings: PretrainingTimeSettings, images: StudyImages, name: str, seed: int
) -> dict[str, Predictions]:
    """What neighbours and logistic regression (DinoBloom's protocol) say of the test fold."""
    from cytodino_hf.evaluation.frozen_backbones import load_frozen_backbone
    from cytodino_hf.evaluation.linear_probe import fit_logistic
    from cytodino_hf.evaluation.neighbours import knn_probabilities
    from cytodino_hf.probing.scores import as_predictions

    backbone = load_frozen_backbone(name, seed=seed)
    train, test = (_features(settings, images, backbone, fold) for fold in ("train", "test"))
    labels, classes = np.asarray(images.folds.fold("train").labels), len(images.folds.taxonomy)
    said = {
        f"knn_{k}": np.log(
            np.maximum(knn_probabilities(train, labels, test, min(k, len(labels)), classes), 1e-12)
        )
        for k in _NEIGHBOURS
    }
    said["logistic"] = fit_logistic(train, labels, classes).log_probabilities(test)
    scored = images.folds.fold("test")
    return {
        method: as_predictions(scored, logits.astype(np.float32), name) for method, logits in said.items()
    }


def _features(
    settings: PretrainingTimeSettings, images: StudyImages, backbone: FrozenBackbone, fold: str
) -> np.ndarray:
    from cytodino_hf.data.dataset import CellDataset
    from cytodino_hf.evaluation.features import frozen_features
    from cytodino_hf.model_builder import build_processor
    from cytodino_hf.recipe import DataSection

    statistics = {
        key: list(backbone.preprocessing[key])
        for key in ("image_mean", "image_std")
        if key in backbone.preprocessing
    }
    data = DataSection(image_size_px=settings.image_size_px, **statistics)  # type: ignore[arg-type]
    return frozen_features(
        backbone.model,
        CellDataset(images.folds.fold(fold), build_processor(data)),
        description=f"features, {fold}",
    )


def _fine_tune(
    settings: PretrainingTimeSettings, images: StudyImages, start: Callable[[Run], Child] | None
) -> dict[Path, list[Predictions]]:
    """Ours on every backbone with every seed; each backbone has a folder of its own."""
    runs: dict[Path, list[Run]] = {}
    for folder in settings.backbones:
        study = settings.output / called(folder)
        same_backbone(study, str(folder))
        document = recipe_of(ARMS["ours"], images, settings, str(folder))
        runs[folder] = [Run("ours", seed, study) for seed in settings.seeds]
        for one in runs[folder]:
            one.write_recipe(document)
    perform([runs[f][i] for i in range(len(settings.seeds)) for f in runs], jobs=settings.jobs, start=start)
    return {
        folder: [Predictions.from_parquet(one.folder.predictions / "test.parquet") for one in own]
        for folder, own in runs.items()
    }


def _reached(predictions: Sequence[Predictions], draws: int) -> Reached:
    from cytodino_hf.taxonomy import load_taxonomy

    taxonomy = load_taxonomy("mll").subset(predictions[0].classes)
    found = bootstrap_intervals(predictions, taxonomy, (_METRIC,), draws)[_METRIC]
    return Reached(value=found.value, low=found.low, high=found.high, seeds=len(predictions))


def to_markdown(found: PretrainingTime) -> str:
    """The table with what a reader needs to judge it."""
    methods = [name for name in _WORDS if any(name in one.scores for one in found.backbones)]
    lines = [
        f"### Quality against the time of pretraining, on {found.images_name}",
        "",
        f"`{found.command}`",
        "",
        "| backbone | minutes of pretraining | images seen | "
        + " | ".join(_WORDS[m] for m in methods)
        + " |",
        "|---" * (len(methods) + 3) + "|",
    ]
    for one in found.backbones:
        cells = [_cell(one.scores.get(method)) for method in methods]
        lines.append(f"| {one.name} | {one.seconds / 60:.1f} | {one.images_seen:,} | {' | '.join(cells)} |")
    hardware = dict.fromkeys(one.hardware for one in found.backbones if one.hardware)
    return "\n".join(
        [
            *lines,
            "",
            f"- Balanced accuracy of the {found.images['test']:,} test images with a 95 % interval over images "
            "(stratified bootstrap); means over seeds where a method has some (fine-tuning, untrained weights).",
            f"- Pretrained on: {'; '.join(hardware)}. The time is that of the pretraining run alone, on the wall.",
            "- Logistic regression by DinoBloom's protocol; fine-tuned: ours, as compared with the published way.",
            f"- {found.date}; measured on {found.machine['cpu']}; "
            + ", ".join(f"{name} {number}" for name, number in found.versions.items())
            + ".",
        ]
    )


def _cell(reached: Reached | None) -> str:
    return "" if reached is None else f"{reached.value:.3f} ({reached.low:.3f} to {reached.high:.3f})"


def write(
    found: PretrainingTime,
    *,
    json: Path | None = None,
    results: Path | None = None,
    figure: Path | None = None,
) -> str:
    """Write what is asked for; the table in Markdown. See `outputs.write_found`."""
    from .figures import draw_pretraining_time

    text = to_markdown(found)
    write_found(
        found, "pretraining time", text, draw_pretraining_time, json=json, results=results, figure=figure
    )
    return text
