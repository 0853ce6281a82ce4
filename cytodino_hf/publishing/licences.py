"""Under whose licence the weights stand: that of the base, however often it was trained further."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..backbones import backbone_source
from ..errors import PublishError
from ..files import read_json
from ..recipe_checks import EMBEDDED
from .allow_list import LICENCE

# Beginnings of names on the Hub whose weights hand their licence on.
LICENCES = {
    "facebook/dinov3": (
        "dinov3-license",
        "https://ai.meta.com/resources/models-and-libraries/dinov3-license/",
    ),
    "facebook/dinov2": ("apache-2.0", "https://www.apache.org/licenses/LICENSE-2.0"),
}
#: The one whose text must go along with everything made from it.
_WITH_TEXT = "facebook/dinov3"
_DINOV3_ARCHITECTURE = "dinov3_vit"
_TEXT_FILES = ("LICENSE.md", "LICENSE")


@dataclass(frozen=True)
class Base:
    """The backbone a model was made from.

    Args:
        name: Hub id, or a word for what is not there.
        commit: Of the Hub; else None.
        is_on_hub: Whether `name` is a Hub id.
        history: What `pretraining.json` of a backbone of ours says; None for others.
        licence: Name and address of the licence the weights inherit, None where none is known.
        text_from: Name and commit of the repository that has the text of that licence, where it must go along.
        note: How sure that is, as a sentence; empty where it is recorded.
    """

    name: str
    commit: str | None
    is_on_hub: bool
    history: dict[str, Any] | None
    licence: tuple[str, str] | None
    text_from: tuple[str, str | None] | None = None
    note: str = ""


def inherited_licence(origin: dict[str, Any] | None) -> tuple[str, str, str] | None:
    """Name, licence and its address of published weights these are derived from, over any number of pretrainings.

    Args:
        origin: `{"name", "commit", "origin": ...}` of the weights it began with, None for random ones.
    """
    while origin is not None:
        for start, (licence, link) in LICENCES.items():
            if origin["name"].startswith(start):
                return origin["name"], licence, link
        origin = origin.get("origin")
    return None


def base_of(folder: Path, config: dict[str, Any], recipe: dict[str, Any]) -> Base:
    """What a classifier was made from.

    Args:
        folder: The RUN.
        config: Its `config.json`.
        recipe: Its recipe, by section.
    """
    bound = (config.get("binding") or {}).get("base") or {}
    name = recipe["model"]["backbone"]
    if name is None:
        return Base("none: random weights", None, False, None, None)
    is_on_hub = bound.get("id") is not None
    history = None if is_on_hub else _history(folder, name)
    origin = {"name": name, "commit": bound.get("revision"), "origin": (history or {}).get("origin")}
    shown = name if is_on_hub or name == EMBEDDED else "a folder of the author's"
    return _licensed(
        Base(shown, origin["commit"], is_on_hub, history, None), origin, config["backbone_config"]
    )


def base_of_backbone(record: dict[str, Any], config: dict[str, Any]) -> Base:
    """What a pretrained backbone was made from; see `base_of`.

    Args:
        record: Its `pretraining.json`.
        config: Its `config.json`.
    """
    origin = record["origin"]
    if origin is None:
        return Base("none: random weights", None, False, record, None)
    return _licensed(Base(origin["name"], origin.get("commit"), False, record, None), origin, config)


def add_licence(
    folder: Path, base: Base, hub: dict[str, Any], work: Path, files: dict[str, Path]
) -> frozenset[str]:
    """Put the text of the licence among the files where it must go along.

    Args:
        folder: The RUN.
        base: What the model was made from.
        hub: Arguments of a download.
        work: Where the text is written.
        files: Path in the repository -> file; gets the text.

    Returns:
        Paths of public text.

    Raises:
        PublishError: It cannot be had.
    """
    text = _licence_text(folder, base, hub)
    if text is None:
        return frozenset()
    (work / LICENCE).write_bytes(text)
    files[LICENCE] = work / LICENCE
    return frozenset({LICENCE})


def _licence_text(folder: Path, base: Base, hub: dict[str, Any]) -> bytes | None:
    """The text of the licence that must go along, from the weights it came with; None where none must.

    Args:
        folder: The RUN; a LICENSE.md there or in its base/ comes first.
        base: What the model was made from.
        hub: Arguments of a download.

    Raises:
        PublishError: It cannot be had.
    """
    if base.text_from is None:
        return None
    for place in (folder, folder / "base"):
        for file in _TEXT_FILES:
            if (place / file).is_file():
                return (place / file).read_bytes()
    name, commit = base.text_from
    there = _fetch(name, commit, hub)
    if there is None:
        raise PublishError(
            f"the weights stand under the DINOv3 licence, whose text must go along and is not to be had from {name}: "
            f"save it as {folder / 'LICENSE.md'}, or give this account access to {name} "
            f"(https://huggingface.co/{name}, `hf auth login`) and publish again"
        )
    return there.read_bytes()


def _licensed(base: Base, origin: dict[str, Any], architecture: dict[str, Any]) -> Base:
    found = inherited_licence(origin)
    if found is not None:
        name, licence, link = found
        commit = next((o.get("commit") for o in _chain(origin) if o["name"] == name), None)
        text = (name, commit) if name.startswith(_WITH_TEXT) else None
        return replace(base, licence=(licence, link), text_from=text)
    if base.history is None and architecture.get("model_type") == _DINOV3_ARCHITECTURE:
        licence, link = LICENCES[_WITH_TEXT]
        note = (
            "No record says where these weights come from. They have DINOv3's architecture, so its licence is "
            "taken to hold."
        )
        source = origin["name"] if base.is_on_hub else "facebook/dinov3-vits16-pretrain-lvd1689m"
        return replace(base, licence=(licence, link), text_from=(source, base.commit), note=note)
    return base


def _chain(origin: dict[str, Any] | None) -> list[dict[str, Any]]:
    links = []
    while origin is not None:
        links.append(origin)
        origin = origin.get("origin")
    return links


def _history(folder: Path, name: str) -> dict[str, Any] | None:
    places = [folder / "base"]
    if name == EMBEDDED or Path(name).is_dir():
        places.append(Path(backbone_source(name)))
    for place in places:
        if (place / "pretraining.json").is_file():
            record: dict[str, Any] = read_json(place / "pretraining.json")
            return record
    return None


def _fetch(name: str, commit: str | None, hub: dict[str, Any]) -> Path | None:
    from transformers.utils import cached_file

    for file in _TEXT_FILES:
        try:
            there = cached_file(
                name, file, revision=commit, _raise_exceptions_for_missing_entries=False, **hub
            )
        except OSError:
            return None  # gated, gone or out of reach: the caller says what to do
        if there is not None:
            return Path(there)
    return None
