"""The backbone of a study: which weights it keeps to, and how much of a picture they are meant to see."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cytodino_hf.errors import CytoDinoError
from cytodino_hf.files import write_json

if TYPE_CHECKING:
    from cytodino_hf.evaluation.frozen_backbones import FrozenBackbone

#: What `cytodino pretrain` writes beside the weights.
RECORD = "pretraining.json"
_KEPT = "backbone.json"


@dataclass(frozen=True)
class StudyBackbone:
    """What the runs of a study train on.

    Args:
        name: Hub id, folder or `embedded`.
        sha256: Of its weights.
        center_crop_px: Side of the square that is cut out of the centre of a picture first; None keeps all.
    """

    name: str
    sha256: str
    center_crop_px: int | None


def study_backbone(output: Path, name: str, center_crop_px: int | None) -> StudyBackbone:
    """The backbone of a study, which keeps to the weights it began with.

    Args:
        output: Folder of the study.
        name: As it was asked for.
        center_crop_px: See `crop_for`.

    Raises:
        CytoDinoError: The folder holds a study of other weights, whatever they were called.
    """
    from cytodino_hf.evaluation.frozen_backbones import load_frozen_backbone

    backbone = load_frozen_backbone(name)
    sha256 = backbone.sha256()
    file = output / _KEPT
    known = json.loads(file.read_text(encoding="utf-8"))["sha256"] if file.is_file() else sha256
    if known != sha256:
        raise CytoDinoError(
            f"{output}: holds a study of another backbone ({known[:12]}; {name} has {sha256[:12]}); "
            "give another --output or delete it"
        )
    write_json(file, {"name": name, "sha256": sha256})
    return StudyBackbone(name, sha256, crop_for(backbone, center_crop_px))


def crop_for(backbone: FrozenBackbone, asked: int | None) -> int | None:
    """Side of the square to cut out first, in pixels of the file; None keeps the whole picture.

    Args:
        backbone: Its own way counts where nothing is asked: that of its preprocessor where that cuts before it resizes
            (others cut the resized picture, which is no size on the slide), else that of its pretraining.
        asked: Of the command line; 0 keeps the whole picture.
    """
    if asked is not None:
        return asked or None
    own = backbone.preprocessing
    if own.get("do_center_crop") and own.get("image_processor_type") == "CytoDinoImageProcessor":
        return int(own["crop_size"]["height"])
    views = pretraining_record(backbone.name).get("recipe", {}).get("views", {})
    crop: int | None = views.get("center_crop_px")
    return crop


def pretraining_record(name: str) -> Mapping[str, Any]:
    """What a pretraining says of itself in its folder; empty where the backbone has none."""
    from cytodino_hf.backbones import backbone_source
    from cytodino_hf.evaluation.frozen_backbones import UNTRAINED

    file = Path(backbone_source(name.removeprefix(UNTRAINED))) / RECORD
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
