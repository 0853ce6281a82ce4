"""`cytodino benchmark quality`: ours against as published, on one page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from benchmarks.machine import describe_machine, describe_versions
from benchmarks.results import Part

from .arms import ARMS, Arm, chosen, recipe_of
from .backbones import study_backbone
from .images import StudyImages, load_images
from .outputs import write_found
from .probed import ProbedRow, probed_rows
from .runs import Child, Run, perform
from .scores import DECIDES, ArmScores, score_arms
from .settings import QualitySettings, StudySettings, called, command_line

# Settings that are folders and files of somebody's machine.
_PLACES = {"images", "split", "more", "output", "backbone", "probe"}


class Study(Part):
    """The comparison as it came out.

    Args:
        backbone: What it was called.
        backbone_sha256: Of its weights.
        center_crop_px: Side of the centred square cut out of each picture first; None: none.
        reference: Arm the others are compared with.
        decides: Fold that may choose between arms.
        images: Images of each fold, `more` besides.
        images_sha256: Fingerprint of images, labels and folds without `more`.
        train_classes: Training images of each class, without `more`.
        ours_against_published: Fold -> metric -> ours, published, difference, low, high, is_clear; empty where
            one is missing.
        arms: In the order of the table.
        probed: What frozen features reach on the same images.
    """

    format: Literal[1] = 1
    date: str
    command: str
    machine: dict[str, str | int | float]
    versions: dict[str, str]
    settings: dict[str, Any]
    backbone: str
    backbone_sha256: str
    center_crop_px: int | None
    reference: str
    decides: str
    images_name: str
    images: dict[str, int]
    images_sha256: str
    train_classes: dict[str, int]
    ours_against_published: dict[str, dict[str, dict[str, float | bool]]]
    arms: list[ArmScores]
    probed: list[ProbedRow]

    @property
    def title(self) -> str:
        """What was compared, in words; with the settings that set it apart it names the section of a results file."""
        names = [arm.name for arm in self.arms]
        has_pair = {"ours", "published"} <= set(names)
        ratios = ", classes in natural ratios" if self.settings.get("natural_ratios") else ""
        return f"{'Ours against as published' if has_pair else 'Arms ' + ', '.join(names)}{ratios}"


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
    images = load_images(
        settings.images,
        settings.split_file,
        settings.more,
        settings.output,
        natural_ratios=settings.natural_ratios,
    )
    backbone = study_backbone(settings.output, settings.backbone, settings.center_crop_px)
    probed = probed_rows(settings.probe, images, backbone.sha256)
    runs = {arm.name: runs_of(arm, images, settings) for arm in arms}
    for arm in arms:
        document = recipe_of(arm, images, settings, backbone)
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
        settings=settings.model_dump(mode="json", exclude=_PLACES),
        backbone=called(Path(settings.backbone)) if Path(settings.backbone).is_dir() else settings.backbone,
        backbone_sha256=backbone.sha256,
        center_crop_px=backbone.center_crop_px,
        reference=reference,
        decides=DECIDES,
        images_name=settings.images_name,
        images=images.counts(),
        images_sha256=images.plain.images.fingerprint(),
        train_classes=images.train_classes(),
        ours_against_published=_ours_against_published(scored),
        arms=scored,
        probed=probed,
    )


def runs_of(arm: Arm, images: StudyImages, settings: StudySettings) -> list[Run]:
    """The runs of an arm, one a seed."""
    fingerprint = images.of(with_more=arm.more != "none").images.fingerprint()
    return [Run(arm.name, seed, settings.output, fingerprint, arm.precision) for seed in settings.seeds]


def _ours_against_published(arms: Sequence[ArmScores]) -> dict[str, dict[str, dict[str, float | bool]]]:
    """Ours minus published: the difference of the arm `published`, turned round."""
    by_name = {arm.name: arm for arm in arms}
    if not {"ours", "published"} <= set(by_name):
        return {}
    found: dict[str, dict[str, dict[str, float | bool]]] = {}
    for fold, scores in by_name["published"].folds.items():
        for metric, score in scores.items():
            if score.difference is None or score.low is None or score.high is None:
                continue
            found.setdefault(fold, {})[metric] = {
                "ours": by_name["ours"].folds[fold][metric].mean,
                "published": score.mean,
                "difference": -score.difference,
                "low": -score.high,
                "high": -score.low,
                "is_clear": score.is_clear,
            }
    return found


def write(
    study: Study, *, json: Path | None = None, results: Path | None = None, figure: Path | None = None
) -> str:
    """Write what is asked for; the tables in Markdown. See `outputs.write_found`."""
    from .figures import draw_study
    from .tables import to_markdown

    text = to_markdown(study)
    write_found(study, f"quality: {study.title}", text, draw_study, json=json, results=results, figure=figure)
    return text
