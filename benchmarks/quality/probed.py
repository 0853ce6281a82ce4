"""Rows of `cytodino probe` beside those of a study: what frozen features reach on the same images."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.results import Part
from cytodino_hf.errors import CytoDinoError
from cytodino_hf.files import without_places

from .images import StudyImages
from .settings import called


class ProbedScore(Part):
    """One metric of the test fold: mean over seeds, 95 % interval over images, SD over seeds; None of one seed."""

    value: float
    low: float
    high: float
    spread: float | None


class ProbedRow(Part):
    """One method on the frozen features of one system.

    Args:
        system: What it is called.
        is_of_study: Its weights are those the study trains on.
        method: In words.
        command: That wrote it, without the places of a machine.
        more: Training images besides those of the study's plain training fold.
        scores: Metric -> score.
    """

    system: str
    is_of_study: bool
    method: str
    command: str
    more: int
    scores: dict[str, ProbedScore]


def probed_rows(files: Sequence[Path], images: StudyImages, backbone_sha256: str) -> list[ProbedRow]:
    """The rows of some probes, in their order.

    Args:
        files: `probe.json` of each.
        images: Of the study.
        backbone_sha256: Of the study.

    Raises:
        CytoDinoError: A file is not of `cytodino probe`, or of other images or folds.
    """
    from cytodino_hf.probing.images import FOLDS

    plain = images.plain.images
    own = plain.select([row for row, fold in enumerate(plain.folds) if fold in FOLDS]).fingerprint()
    found = []
    for file in files:
        document = _read(file)
        if document["data"]["fingerprint"] != own:
            raise CytoDinoError(
                f"--probe {file}: is of other images or folds than this study; probe the same ones: "
                f"{' '.join(_data_options(images))}"
            )
        found += _rows(document, backbone_sha256)
    return found


def _read(file: Path) -> dict[str, Any]:
    try:
        document: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CytoDinoError(f"--probe {file}: cannot be read ({error}); name a probe.json") from error
    if not isinstance(document, dict) or not {"command", "data", "systems", "features"} <= set(document):
        raise CytoDinoError(f"--probe {file}: was not written by `cytodino probe`; name its probe.json")
    return document


def _rows(document: Mapping[str, Any], backbone_sha256: str) -> list[ProbedRow]:
    from cytodino_hf.probing.methods import METHODS

    more = document["data"]["more"]
    command = shlex.join(without_places(shlex.split(document["command"])))
    return [
        ProbedRow(
            system=_system(system["name"]),
            is_of_study=any(run.get("sha256") == backbone_sha256 for run in system["runs"]),
            method=METHODS[method][0],
            command=command,
            more=sum(more["images"].values()) if more else 0,
            scores={
                name: ProbedScore(**{key: score[key] for key in ProbedScore.model_fields})
                for name, score in answers["metrics"].items()
            },
        )
        for system in document["systems"]
        for method, answers in system["methods"].items()
    ]


def _system(name: str) -> str:
    from cytodino_hf.evaluation.frozen_backbones import UNTRAINED
    from cytodino_hf.probing.systems import CLASSICAL

    if name == CLASSICAL:
        return "classical features"
    if name.startswith(UNTRAINED):
        return f"untrained {_system(name.removeprefix(UNTRAINED))}"
    return called(Path(name)) if name.startswith(("/", ".", "~")) or name.count("/") > 1 else name


def _data_options(images: StudyImages) -> list[str]:
    """What `cytodino probe` is to be told."""
    section = dict(images.plain.section)
    source = section["source"]
    options = {key: value for key, value in section.items() if key != source}
    words = [word for key, value in options.items() for word in (f"--data.{key}", str(value))]
    return words + [
        word
        for key, value in section.get(source, {}).items()
        for word in (f"--data.{source}.{key}", str(value))
    ]
