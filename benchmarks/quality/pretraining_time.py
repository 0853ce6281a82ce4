"""`cytodino benchmark pretraining`: quality of backbones over the seconds they were pretrained."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from benchmarks.machine import describe_machine, describe_versions
from benchmarks.results import Part
from cytodino_hf.environment import hardware
from cytodino_hf.errors import CytoDinoError
from cytodino_hf.evaluation.comparison import bootstrap_intervals
from cytodino_hf.evaluation.frozen_backbones import UNTRAINED
from cytodino_hf.evaluation.neighbours import NEIGHBOURS
from cytodino_hf.evaluation.predictions import Predictions
from cytodino_hf.evaluation.seeds import over_seeds
from cytodino_hf.probing.methods import METHODS
from cytodino_hf.taxonomy import load_taxonomy

from .arms import ARMS, recipe_of
from .backbones import RECORD, pretraining_record, study_backbone
from .frozen import Said, frozen_answers, hidden_px
from .images import StudyImages, load_images
from .outputs import write_found
from .runs import Child, Run, perform
from .scores import DECIDES, FOLDS, metrics_of
from .settings import PretrainingTimeSettings, called, command_line
from .study import runs_of

_MONITORED = f"knn{NEIGHBOURS[-1]}_balanced_accuracy"
#: Method -> in words.
WORDS = {name: METHODS[name][0] for name in (*(f"knn_{k}" for k in NEIGHBOURS), "logistic")} | {
    "fine_tuned": "fine-tuned"
}
_METRIC = "balanced_accuracy"


class Reached(Part):
    """Balanced accuracy of a fold: mean over seeds, 95 % interval over images, SD over seeds; None of one seed."""

    value: float
    low: float
    high: float
    spread: float | None = None
    seeds: int = 1


class PretrainedBackbone(Part):
    """One backbone.

    Args:
        name: What it is called.
        seconds: It was pretrained, on the wall; 0 for the untrained one.
        images_seen: In pretraining.
        hardware: It was pretrained on.
        monitored: (seconds, balanced accuracy by 20 neighbours) of the pretraining's own probe, while it trained.
        center_crop_px: Side of the centred square cut out of each picture first; None: none.
        scores: Fold -> method -> what was reached.
    """

    name: str
    seconds: float
    images_seen: int
    hardware: str
    monitored: list[tuple[float, float]]
    center_crop_px: int | None
    scores: dict[str, dict[str, Reached]]


class PretrainingTime(Part):
    """Quality over pretraining as it came out.

    Args:
        decides: Fold that may choose between backbones.
        hide_center_px: Side of the square that is painted over in the centre of every picture.
        images_sha256: Fingerprint of images, labels and folds.
    """

    format: Literal[1] = 1
    date: str
    command: str
    machine: dict[str, str | int | float]
    versions: dict[str, str]
    settings: dict[str, Any]
    images_name: str
    decides: str
    hide_center_px: int
    images: dict[str, int]
    images_sha256: str
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
        said, crop = frozen_answers(settings, images, str(folder), (0,))
        if folder in tuned:
            said["fine_tuned"] = tuned[folder]
        found.append(_backbone(called(folder), record, crop, _scores(said, settings.draws)))
    return PretrainingTime(
        date=datetime.now(UTC).strftime("%Y-%m-%d"),
        command=command_line("pretraining", settings),
        machine=machine,
        versions=describe_versions(),
        settings=settings.model_dump(mode="json", exclude={"images", "split", "backbones", "output"}),
        images_name=settings.images_name,
        decides=DECIDES,
        hide_center_px=hidden_px(),
        images=images.counts(),
        images_sha256=images.plain.images.fingerprint(),
        backbones=sorted(found, key=lambda one: one.seconds),
    )


def _read_record(folder: Path) -> Mapping[str, Any]:
    if not (record := pretraining_record(str(folder))):
        raise CytoDinoError(
            f"{folder}: has no {RECORD}; --backbones takes folders that `cytodino pretrain` wrote (RUN/backbone)"
        )
    return record


def _backbone(
    name: str, record: Mapping[str, Any], crop: int | None, scores: dict[str, dict[str, Reached]]
) -> PretrainedBackbone:
    training = record["training"]
    return PretrainedBackbone(
        name=name,
        seconds=training["seconds"],
        images_seen=training["images_seen"],
        hardware=hardware(record["environment"]),
        monitored=[
            (row["seconds"], row[_MONITORED])
            for row in training["log_history"]
            if _MONITORED in row and "seconds" in row
        ],
        center_crop_px=crop,
        scores=scores,
    )


def _untrained(settings: PretrainingTimeSettings, images: StudyImages) -> PretrainedBackbone:
    """The first backbone's architecture with fresh weights: where the curve begins."""
    name = f"{UNTRAINED}{settings.backbones[0]}"
    said, crop = frozen_answers(settings, images, name, settings.seeds)
    return PretrainedBackbone(
        name="untrained",
        seconds=0.0,
        images_seen=0,
        hardware="",
        monitored=[],
        center_crop_px=crop,
        scores=_scores(said, settings.draws),
    )


def _fine_tune(
    settings: PretrainingTimeSettings, images: StudyImages, start: Callable[[Run], Child] | None
) -> dict[Path, list[dict[str, Predictions]]]:
    """Ours on every backbone with every seed; each backbone has a folder of its own."""
    runs: dict[Path, list[Run]] = {}
    arm = ARMS["ours"]
    for folder in settings.backbones:
        study = settings.output / called(folder)
        backbone = study_backbone(study, str(folder), settings.center_crop_px)
        document = recipe_of(arm, images, settings, backbone)
        runs[folder] = runs_of(arm, images, settings.model_copy(update={"output": study}))
        for one in runs[folder]:
            one.write_recipe(document)
    perform([runs[f][i] for i in range(len(settings.seeds)) for f in runs], jobs=settings.jobs, start=start)
    return {
        folder: [
            {fold: Predictions.from_parquet(one.folder.predictions / f"{fold}.parquet") for fold in FOLDS}
            for one in own
        ]
        for folder, own in runs.items()
    }


def _scores(said: Said, draws: int) -> dict[str, dict[str, Reached]]:
    return {
        fold: {method: _reached([one[fold] for one in each], draws) for method, each in said.items()}
        for fold in FOLDS
    }


def _reached(predictions: Sequence[Predictions], draws: int) -> Reached:
    taxonomy = load_taxonomy("mll").subset(predictions[0].classes)
    found = bootstrap_intervals(predictions, taxonomy, (_METRIC,), draws)[_METRIC]
    each = [metrics_of(one, taxonomy)[_METRIC] for one in predictions]
    return Reached(
        value=found.value, low=found.low, high=found.high, spread=over_seeds(each)[1], seeds=len(each)
    )


def to_markdown(found: PretrainingTime) -> str:
    """The tables with what a reader needs to judge them."""
    lines = [
        f"### Quality against the time of pretraining, on {found.images_name}",
        "",
        f"`{found.command}`",
        "",
    ]
    for fold in FOLDS:
        lines += [*_table(found, fold), ""]
    return "\n".join([*lines, *(f"- {line}" for line in _circumstances(found))])


def _table(found: PretrainingTime, fold: str) -> list[str]:
    methods = [name for name in WORDS if any(name in one.scores[fold] for one in found.backbones)]
    word = f"{fold} fold (it decides)" if fold == found.decides else f"{fold} fold"
    heads = [word, "minutes of pretraining", "images seen", *(WORDS[method] for method in methods)]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for one in found.backbones:
        cells = [_cell(one.scores[fold].get(method)) for method in methods]
        lines.append(f"| {one.name} | {one.seconds / 60:.1f} | {one.images_seen:,} | {' | '.join(cells)} |")
    return lines


def _circumstances(found: PretrainingTime) -> list[str]:
    hardware = dict.fromkeys(one.hardware for one in found.backbones if one.hardware)
    crops = dict.fromkeys(one.center_crop_px for one in found.backbones)
    cut = ", ".join("the whole picture" if crop is None else f"the middle {crop} px" for crop in crops)
    return [
        f"Balanced accuracy of the {found.images[DECIDES]:,} validation and {found.images['test']:,} test images with "
        "a 95 % interval over images (stratified bootstrap); means over seeds with their SD where a method has some "
        "(fine-tuning, untrained weights). Neighbours and logistic regression choose nothing on either fold; "
        "fine-tuning chooses its checkpoints on the validation fold.",
        f"Pictures: {cut} of the file at {found.settings['image_size_px']} px, the middle {found.hide_center_px} px "
        "painted over.",
        f"Pretrained on: {'; '.join(hardware)}. The time is that of the pretraining run alone, on the wall.",
        "Logistic regression by DinoBloom's protocol; fine-tuned: ours, as compared with the published way.",
        f"{found.date}; measured on {found.machine['cpu']}; images {found.images_sha256[:16]}; "
        + ", ".join(f"{name} {number}" for name, number in found.versions.items())
        + ".",
    ]


def _cell(reached: Reached | None) -> str:
    if reached is None:
        return ""
    spread = "" if reached.spread is None else f" (SD {reached.spread:.3f})"
    return f"{reached.value:.3f}{spread} ({reached.low:.3f} to {reached.high:.3f})"


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
