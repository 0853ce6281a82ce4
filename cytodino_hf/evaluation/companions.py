"""What lies beside a model besides its weights: its calibration, its detector of strange images, its images' looks.

`binding.companions` in config.json names the files with their sha256, and the weights they were fitted for. A model
that is published merged or in a narrower type has other weights that give the same answers within the stated bound, so
that these files go on belonging to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..binding import weights_revision
from ..data.appearance import APPEARANCE_FILE
from ..errors import ModelUnavailableError
from ..files import file_sha256, read_json, write_json
from .calibration.artifact import CALIBRATION_FILE
from .ood.detector import OOD_FILE

#: Names of the files.
COMPANIONS = (CALIBRATION_FILE, OOD_FILE, APPEARANCE_FILE)
_CONFIG = "config.json"


@dataclass(frozen=True)
class BoundCompanions:
    """What a configuration says of the files beside its model.

    Args:
        revision: The weights they were fitted for, as predictions name them; None where no file is bound.
        sha256: Name of each file -> its sha256.
    """

    revision: str | None = None
    sha256: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> BoundCompanions:
        """Those of a model.

        Args:
            config: Content of its `config.json`.
        """
        bound = (config.get("binding") or {}).get("companions") or {}
        return cls(bound.get("revision"), dict(bound.get("files") or {}))

    def check(self, model: str, name: str, file: Path) -> None:
        """Refuse a file that is not the one that was bound; one that never was is left to its own checks.

        Args:
            model: What messages call the model.
            name: Of the file.
            file: Where it lies.

        Raises:
            ModelUnavailableError: It is another file; names both sha256.
        """
        wanted = self.sha256.get(name)
        if wanted is not None and (found := file_sha256(file)) != wanted:
            raise ModelUnavailableError(
                f"{model}: {name} has sha256 {found}, the model was bound to {wanted}; take all files of the model "
                "from one place and one revision"
            )


def bind_companions(folder: Path) -> None:
    """Note in config.json which of these files lie beside a model; call it each time one of them was written.

    A file that is not noted is not published.

    Args:
        folder: Of a saved model, whose weights are bound.

    Raises:
        ModelUnavailableError: The configuration does not say which weights belong to the model.
    """
    config = read_json(folder / _CONFIG)
    revision = weights_revision(config)
    if revision is None:
        raise ModelUnavailableError(
            f"{folder / _CONFIG} does not say which weights belong to it (`binding`): an earlier version wrote it; "
            "run the recipe again into another folder"
        )
    files = {name: file_sha256(folder / name) for name in COMPANIONS if (folder / name).is_file()}
    companions = {"revision": revision, "files": files} if files else None
    bound = {key: value for key, value in config["binding"].items() if key != "companions"}
    if companions is not None:
        bound["companions"] = companions
    if bound != config["binding"]:
        write_json(folder / _CONFIG, config | {"binding": bound})
