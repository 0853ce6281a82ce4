"""Where a backbone comes from: the Hub, a local folder, or a configuration; and what to do when it is not to be had."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import BackboneUnavailableError
from .recipe import ModelSection, Recipe
from .recipe_checks import BACKBONE_TYPES

if TYPE_CHECKING:
    from .model.configuration_cytodino import CytoDinoConfig


def hub_arguments(recipe: Recipe) -> dict[str, Any]:
    """Arguments of `from_pretrained` that the hub section sets."""
    return {"cache_dir": recipe.hub.cache_dir, "local_files_only": recipe.hub.local_files_only}


def read_backbone_config(recipe: Recipe) -> tuple[Any, str | None]:
    """Configuration of the backbone, and its commit where it lies on the Hub; only the configuration is fetched.

    Raises:
        BackboneUnavailableError: It cannot be had, or the size of the pictures is no multiple of its patch.
    """
    from transformers import CONFIG_MAPPING, AutoConfig
    from transformers.utils import cached_file
    from transformers.utils.hub import extract_commit_hash

    model = recipe.model
    if model.backbone_config is not None:
        values = dict(model.backbone_config)
        return CONFIG_MAPPING[values.pop("model_type", "dinov3_vit")](**values), None
    with explained(model):
        fetched = {"revision": model.revision, **hub_arguments(recipe)}
        config = AutoConfig.from_pretrained(model.backbone, **fetched)
        commit = extract_commit_hash(cached_file(model.backbone, "config.json", **fetched), None)
    if config.model_type not in BACKBONE_TYPES:
        raise BackboneUnavailableError(
            f"backbone {model.backbone} is a {config.model_type!r} model; it must be one of {', '.join(BACKBONE_TYPES)}"
        )
    patch, side = config.patch_size, recipe.data.image_size_px
    if side % patch:
        raise BackboneUnavailableError(
            f"data.image_size_px = {side} is no multiple of the patch of {patch} of {model.backbone}; "
            f"use {side // patch * patch} or {(side // patch + 1) * patch}"
        )
    return config, commit


def keep_base(recipe: Recipe, config: CytoDinoConfig, folder: Path) -> None:
    """Write the backbone into the RUN, once: the model is always built from there, so that a run started again builds
    the very same one."""
    from transformers import AutoModel, set_seed

    if folder.is_dir():
        return
    set_seed(recipe.training.seed)
    if recipe.model.backbone is None:
        backbone = AutoModel.from_config(config.backbone_config)
    else:
        with explained(recipe.model):
            backbone = AutoModel.from_pretrained(recipe.model.backbone, dtype="float32")
    backbone.config._name_or_path = ""  # where it was found means nothing elsewhere
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    backbone.save_pretrained(partial)
    os.replace(partial, folder)  # a folder of this name is always whole


@contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' loading report."""
    # The loader lists every tensor of the fresh head as missing: true, and expected.
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(level)


@contextmanager
def explained(section: ModelSection) -> Iterator[None]:
    """Turn the many ways a download can fail into one message with the remedy."""
    try:
        yield
    except (OSError, ValueError) as error:
        name, revision = section.backbone, section.revision
        raise BackboneUnavailableError(_remedy(error, str(name), revision)) from error


def _remedy(error: BaseException, name: str, revision: str | None) -> str:
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    causes = []
    link: BaseException | None = error
    while link is not None and link not in causes:
        causes.append(link)
        link = link.__cause__ or link.__context__
    fallback = "or use an open backbone such as facebook/dinov2-large (patch 14: data.image_size_px 252)"
    if any(isinstance(c, GatedRepoError) for c in causes):
        return (
            f"backbone {name} is gated and this account has no access: accept its licence on "
            f"https://huggingface.co/{name}, then `hf auth login` or set HF_TOKEN; {fallback}"
        )
    if any(isinstance(c, RevisionNotFoundError) for c in causes):
        return (
            f"backbone {name} has no revision {revision!r}; give a commit of it or leave model.revision out"
        )
    if any(isinstance(c, RepositoryNotFoundError) for c in causes):
        return (
            f"backbone {name} does not exist on the Hub, or is private and no token is set: check model.backbone, "
            f"`hf auth login` or set HF_TOKEN; {fallback}"
        )
    if Path(name).is_dir():
        return f"backbone folder {name} cannot be loaded: {error}"
    return (
        f"backbone {name} cannot be fetched ({type(causes[-1]).__name__}): without a connection it must be in the "
        "local cache; fetch it once with a connection (`hf download "
        + name
        + "`), or give model.backbone a local "
        f"folder, or build one from scratch with model.backbone_config. First cause: {causes[-1]}"
    )
