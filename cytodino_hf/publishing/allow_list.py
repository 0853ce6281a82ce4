"""What a kind of model is: how it is known, and which of its files leave the machine. What no pattern names stays."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..errors import PublishError

Storage = Literal["float32", "bfloat16"]

CONFIG, PROCESSOR = "config.json", "preprocessor_config.json"
CARD, LICENCE = "README.md", "LICENSE.md"
#: Whole weights, in one file or in several; a regular expression.
WHOLE_WEIGHTS = r"model\.safetensors|model\.safetensors\.index\.json|model-\d+-of-\d+\.safetensors"


@dataclass(frozen=True)
class Wish:
    """How a model is to be published.

    Args:
        repo_id: Where it will lie.
        merged: Whole weights instead of an adapter.
        storage: Type of the published weights.
    """

    repo_id: str
    merged: bool = False
    storage: Storage = "float32"


@dataclass(frozen=True)
class Gathered:
    """What is to lie in the repository.

    Args:
        files: Path in the repository -> file; one of them is the card.
        public: Paths whose text is public already and is not looked through.
    """

    files: dict[str, Path]
    public: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Kind:
    """A kind of model that is published.

    Args:
        name: What it is called in messages.
        files: Regular expression of the whole path of each file that is taken from the folder as it is.
        made: Files that are written for the publication.
        is_one: `is_one(folder, config)`: whether a folder with this `config.json` is of the kind.
        gather: `gather(kind, folder, work, wish)` puts the files together. It only reads `folder`; what it makes it
            writes into the empty folder `work`.
        folders: Where in a RUN the model may lie; an empty name is the RUN itself.
    """

    name: str
    files: str
    made: tuple[str, ...]
    is_one: Callable[[Path, Mapping[str, Any]], bool]
    gather: Callable[[Kind, Path, Path, Wish], Gathered]
    folders: tuple[str, ...] = ("",)

    def allows(self, path: str) -> bool:
        """Whether a file of this path may leave the machine."""
        return path in self.made or re.fullmatch(self.files, path) is not None

    def allowed_files(self, folder: Path) -> dict[str, Path]:
        """Path in the repository -> file, for every file of a folder that may leave the machine as it is.

        Raises:
            PublishError: One of them is a link out of the folder.
        """
        found = {}
        for path in sorted(folder.rglob("*")):
            name = path.relative_to(folder).as_posix()
            if re.fullmatch(self.files, name) is None or not path.is_file():
                continue
            if not path.resolve().is_relative_to(folder.resolve()):
                raise PublishError(f"{path} is a link to {path.resolve()}; put the file itself there")
            found[name] = path
        return found
