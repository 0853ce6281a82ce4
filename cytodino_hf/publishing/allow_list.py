"""Which files of which kind of model leave the machine. What no pattern names stays, whatever it is."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from ..errors import PublishError

CARD, LICENCE, CONFUSION = "README.md", "LICENSE.md", "confusion_matrix.png"
RECIPE, ENVIRONMENT = "recipe.json", "environment.json"
_WHOLE = r"model\.safetensors|model\.safetensors\.index\.json|model-\d+-of-\d+\.safetensors"


@dataclass(frozen=True)
class Kind:
    """A kind of model that is published.

    Args:
        name: What it is called in messages.
        files: Regular expression of the whole path of each file that is taken from the folder as it is.
        made: Files that are written for the publication.
    """

    name: str
    files: str
    made: tuple[str, ...]

    def allows(self, path: str) -> bool:
        """Whether a file of this path may leave the machine."""
        return path in self.made or re.fullmatch(self.files, path) is not None


KINDS = {
    "classifier": Kind(
        "classifier",
        rf"config\.json|preprocessor_config\.json|(?:binding|configuration|image_processing|modeling)_cytodino\.py"
        rf"|adapter/(?:adapter_config\.json|adapter_model\.safetensors|trained\.safetensors)"
        rf"|base/(?:config\.json|{_WHOLE})|{_WHOLE}",
        (CARD, LICENCE, CONFUSION, RECIPE, ENVIRONMENT),
    ),
    "backbone": Kind(
        "backbone",
        rf"config\.json|preprocessor_config\.json|README\.md|pretraining\.json|pretraining\.png|images\.csv|{_WHOLE}",
        (LICENCE,),
    ),
}


def find_model(run: Path) -> tuple[Path, Kind]:
    """The folder that is published and what it is: a RUN itself, or the backbone a pretraining left in it.

    Raises:
        PublishError: There is no finished model.
    """
    if not run.is_dir():
        raise PublishError(f"{run}: no such folder; give the RUN of a finished training")
    state = run / "run.json"
    if state.is_file() and json.loads(state.read_text(encoding="utf-8")).get("state") != "finished":
        raise PublishError(f"{run}: its training has not come to its end; start the same command again first")
    for folder in (run, run / "backbone"):
        config = folder / "config.json"
        if not config.is_file():
            continue
        kind = json.loads(config.read_text(encoding="utf-8")).get("model_type")
        if kind == "cytodino":
            return folder, KINDS["classifier"]
        if (folder / "pretraining.json").is_file():
            return folder, KINDS["backbone"]
    raise PublishError(f"{run}: holds no model of ours; give the RUN of a fine-tuning or a pretraining")


def allowed_files(folder: Path, kind: Kind) -> dict[str, Path]:
    """Path in the repository -> file, for every file of a folder that may leave the machine as it is.

    Raises:
        PublishError: One of them is a link out of the folder.
    """
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if re.fullmatch(kind.files, name) is None or not path.is_file():
            continue
        if not path.resolve().is_relative_to(folder.resolve()):
            raise PublishError(f"{path} is a link to {path.resolve()}; put the file itself there")
        found[name] = path
    return found
