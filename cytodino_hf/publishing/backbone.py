"""A pretrained backbone, published as it is, with the card its pretraining wrote."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import PublishError
from ..files import file_sha256, read_json
from .allow_list import CONFIG, LICENCE, WHOLE_WEIGHTS, Gathered, Kind, Wish
from .licences import add_licence, base_of_backbone

_RECORD, _WEIGHTS = "pretraining.json", "model.safetensors"


def _is_backbone(folder: Path, config: Mapping[str, Any]) -> bool:
    return (folder / _RECORD).is_file()


def _gather(kind: Kind, folder: Path, work: Path, wish: Wish) -> Gathered:
    if wish.merged or wish.storage != "float32":
        raise PublishError(f"{folder} is a backbone: it is published as it is, without --merged or --storage")
    record = read_json(folder / _RECORD)
    wanted, found = record.get("weights_sha256"), file_sha256(folder / _WEIGHTS)
    if wanted not in (None, found):
        raise PublishError(f"{folder / _WEIGHTS} has sha256 {found}, the pretraining wrote {wanted}")
    files = kind.allowed_files(folder)
    base = base_of_backbone(record, read_json(folder / CONFIG))
    return Gathered(files, add_licence(folder, base, {}, work, files))


BACKBONE = Kind(
    "backbone",
    rf"config\.json|preprocessor_config\.json|README\.md|pretraining\.json|pretraining\.png|images\.csv|{WHOLE_WEIGHTS}",
    (LICENCE,),
    _is_backbone,
    _gather,
    ("", "backbone"),
)
