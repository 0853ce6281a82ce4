"""`cytodino benchmark quality`: ours against as published, on one page."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from benchmarks.machine import describe_machine, describe_versions
from benchmarks.results import Part
from cytodino_hf.errors import CytoDinoError
from cytodino_hf.files import write_json

from .arms import ARMS, Arm, chosen, recipe_of
from .images import load_images
from .outputs import write_found
from .runs import Child, Run, perform
from .scores import DECIDES, ArmScores, score_arms
from .settings import QualitySettings, called, command_line

_BACKBONE = "backbone.json"


class Study(Part):
    """The comparison as it came out.

    Args:
        backbone: What it was called.
        backbone_sha256: Of its weights.
        reference: Arm the others are compared with.
        decides: Fold that may choose between arms.
        images: Images of each fold, `more` besides.
        ours_against_published: Fold -> metric -> ours, published, difference, low, high; empty where one is missing.
        arms: In the order of the table.
    """

    format: Literal[1] = 1
    date: str
    command: str
    machine: dict[str, str | int | float]
    versions: dict[str, str]
    settings: dict[str, Any]
    backbone: str
    backbone_sha256: str
    reference: str
    decides: str
    images_name: str
    images: dict[str, int]
    ours_against_published: dict[str, dict[str, dict[str, float]]]
    arms: list[ArmScores]


def run(settings: QualitySettings, start: Callable[[Run], Child] | None = None) -> Study:
    """Train what is not trained yet, and compare.

    Args:
        settings: Checked.
        start: See `perform`.

    Raises:
        CytoDinoError: The images, the backbone or a run.
    """
    machine = describe_machine()  # the load before any of ours
    arms = chosen(settings.only)
    reference = next(iter(ARMS))
    images = load_images(settings.images, settings.split_file, settings.more, settings.output)
    sha256 = same_backbone(settings.output, settings.backbone)
    runs = {arm.name: runs_of(arm, settings) for arm in arms}
    for arm in arms:
        document = recipe_of(arm, images, settings, settings.backbone)
        for one in runs[arm.name]:
            one.write_recipe(document)
    # Seed by seed: a study that is stopped has all arms with the seeds it has.
    perform(
        [runs[arm.name][i] for i in range(len(settings.seeds)) for arm in arms],
        jobs=settings.jobs,
        start=start,
    )
    scored = score_arms(
        runs, {arm.name: arm.title for arm in arms}, draws=settings.draws, reference=reference
    )
    return Study(
        date=datetime.now(UTC).strftime("%Y-%m-%d"),
        command=command_line("quality", settings),
        machine=machine,
        versions=describe_versions(),
        settings=settings.model_dump(mode="json", exclude={"images", "split", "more", "output", "backbone"}),
        backbone=called(Path(settings.backbone)) if Path(settings.backbone).is_dir() else settings.backbone,
        backbone_sha256=sha256,
        reference=reference,
        decides=DECIDES,
        images_name=settings.images_name,
        images=images.counts() | ({"more": images.more} if images.more else {}),
        ours_against_published=_ours_against_published(scored),
        arms=scored,
    )


def runs_of(arm: Arm, settings: QualitySettings) -> list[Run]:
    """The runs of an arm, one a seed."""
    return [Run(arm.name, seed, settings.output, arm.precision) for seed in settings.seeds]


def same_backbone(output: Path, name: str) -> str:
    """sha256 of the weights; a study keeps to those it began with.

    Raises:
        CytoDinoError: The folder holds a study of other weights, whatever they were called.
    """
    from cytodino_hf.evaluation.frozen_backbones import load_frozen_backbone

    sha256 = load_frozen_backbone(name).sha256()
    file = output / _BACKBONE
    known = json.loads(file.read_text(encoding="utf-8"))["sha256"] if file.is_file() else sha256
    if known != sha256:
        raise CytoDinoError(
            f"{output}: holds a study of another backbone ({known[:12]}; {name} has {sha256[:12]}); "
            "give another --output or delete it"
        )
    write_json(file, {"name": name, "sha256": sha256})
    return sha256


def _ours_against_published(arms: Sequence[ArmScores]) -> dict[str, dict[str, dict[str, float]]]:
    """Ours minus published: the difference of the arm `published`, turned round."""
    by_name = {arm.name: arm for arm in arms}
    if not {"ours", "published"} <= set(by_name):
        return {}
    found: dict[str, dict[str, dict[str, float]]] = {}
    for fold, scores in by_name["published"].folds.items():
        for metric, score in scores.items():
            assert score.difference is not None
            assert score.low is not None
            assert score.high is not None
            found.setdefault(fold, {})[metric] = {
                "ours": by_name["ours"].folds[fold][metric].mean,
                "published": score.mean,
                "difference": -score.difference,
                "low": -score.high,
                "high": -score.low,
            }
    return found


def write(
    study: Study, *, json: Path | None = None, results: Path | None = None, figure: Path | None = None
) -> str:
    """Write what is asked for; the tables in Markdown. See `outputs.write_found`."""
    from .figures import draw_study
    from .tables import to_markdown

    text = to_markdown(study)
    write_found(study, "quality", text, draw_study, json=json, results=results, figure=figure)
    return text
