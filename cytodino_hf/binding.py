"""What is noted while a model is made, so that later nobody runs it with another base, label order or preprocessing.

Begun with the configuration, completed when the base is there, finished when the weights are written; compared in
`model/binding_cytodino.py`, which travels with the model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .backbones import explained, hub_arguments
from .errors import BackboneUnavailableError
from .files import read_json, without_places
from .model.binding_cytodino import PROCESSOR_FILE, digest, kept_sha256, make_binding, weights_digests
from .recipe import Recipe

if TYPE_CHECKING:
    from .model.configuration_cytodino import CytoDinoConfig


def begin_binding(recipe: Recipe, data_fingerprint: str | None) -> dict[str, Any]:
    """What is known before any weight is there: the recipe and the images."""
    return {"recipe": recipe_fingerprint(recipe.to_dict()), "data": data_fingerprint, "base": None}


def recipe_fingerprint(document: dict[str, Any]) -> str:
    """sha256 of what a recipe asks for; where images and results lie, and what is published, do not count.

    Args:
        document: Sections of a recipe, every key with its value.
    """
    sections = {name: dict(keys) for name, keys in document.items() if name != "hub"}
    sections["training"].pop("output_dir", None)
    sections["data"].pop("root", None)
    return digest(without_places(sections))


def bind_base(config: CytoDinoConfig, recipe: Recipe, base_folder: Path | None) -> None:
    """Note the base a model is built on, with the sha256 of its weights.

    Args:
        config: Of the model; gets the note.
        recipe: Names the base.
        base_folder: Where a base that travels with the model is kept; None for one of the Hub.

    Raises:
        BackboneUnavailableError: The base has no safetensors weights.
    """
    name, commit = config.base_model_name_or_path, config.base_model_revision
    if base_folder is not None:
        weights = weights_digests(lambda file: _if_there(base_folder / file))
    else:
        weights = weights_digests(lambda file: _on_hub(recipe, str(name), commit, file))
    if not weights:
        raise BackboneUnavailableError(
            f"backbone {name or base_folder} has no weights as safetensors (a pickle from outside may run code); "
            "convert it with `cytodino convert` and give model.backbone that folder"
        )
    config.binding = (config.binding or {}) | {"base": {"id": name, "revision": commit, "weights": weights}}


def finish_binding(config: CytoDinoConfig, folder: Path, files: list[str], base_folder: str | None) -> None:
    """Complete the binding of a model whose weights and processor are written.

    Args:
        config: Of the model; gets the binding.
        folder: Of the model.
        files: Of the trained part, relative to it.
        base_folder: Name of the folder beside them with the base, where it travels.
    """
    weights = {name: kept_sha256(str(folder / name)) for name in files}
    base = (config.binding or {}).get("base")
    if base_folder is not None and base is not None:
        weights |= {f"{base_folder}/{name}": sha256 for name, sha256 in base["weights"].items()}
    config.binding = make_binding(
        config.binding,
        labels=[config.id2label[label] for label in sorted(config.id2label)],  # type: ignore[index,type-var]
        taxonomy=config.taxonomy,
        preprocessing=read_json(folder / PROCESSOR_FILE),
        weights=weights,
    )


def weights_revision(config: Mapping[str, Any]) -> str | None:
    """Which weights a model has, as its predictions name them: sha256 of the file with what was trained.

    Args:
        config: Content of its `config.json`.

    Returns:
        The sha256, of several files that of their sha256 in the order of their names; None where no weights are bound.
    """
    weights = (config.get("binding") or {}).get("weights") or {}
    adapter = config.get("adapter_subfolder")
    names = sorted(
        name
        for name in weights
        if name.endswith(".safetensors") and (name.startswith(f"{adapter}/") if adapter else "/" not in name)
    )
    if not names:
        return None
    return digest_of_several([weights[name] for name in names])


def digest_of_several(digests: Sequence[str]) -> str:
    """One sha256 for some: itself where there is one, else that of all in their order."""
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def _if_there(path: Path) -> str | None:
    return str(path) if path.is_file() else None


def _on_hub(recipe: Recipe, name: str, commit: str | None, file: str) -> str | None:
    from transformers.utils import cached_file

    with explained(recipe.model):
        there: str | None = cached_file(
            name,
            file,
            revision=commit,
            _raise_exceptions_for_missing_entries=False,
            **hub_arguments(recipe.hub),
        )
    return there
