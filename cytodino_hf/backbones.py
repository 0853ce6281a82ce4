"""Where a backbone comes from: the Hub, a local folder, or a configuration; and what to do when it is not to be had."""

from __future__ import annotations

import logging
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import BackboneUnavailableError
from .recipe import BackboneSection, HubSection, Recipe
from .recipe_checks import BACKBONE_TYPES, EMBEDDED, EMBEDDED_FOLDER

if TYPE_CHECKING:
    from .model.configuration_cytodino import CytoDinoConfig

logger = logging.getLogger(__name__)
#: Files of a backbone's folder that say where it came from and under which licence it stands.
ABOUT_BASE = ("pretraining.json", "LICENSE.md", "LICENSE")

# Beginnings of names that are known to be gated, so that it can be said without asking the Hub.
_GATED = ("facebook/dinov3-",)


def backbone_source(name: str) -> str:
    """What `from_pretrained` takes for a name: `embedded` is a folder of the package, all others stay as they are.

    Raises:
        BackboneUnavailableError: `embedded` is asked for and this installation has no such folder.
    """
    if name != EMBEDDED:
        return name
    if not (EMBEDDED_FOLDER / "model.safetensors").is_file():
        raise BackboneUnavailableError(
            f"backbone {EMBEDDED!r}: its weights are missing in {EMBEDDED_FOLDER}; install the package anew"
        )
    return str(EMBEDDED_FOLDER)


def is_on_hub(model: BackboneSection) -> bool:
    """Whether the backbone is one of the Hub: neither a folder, nor the embedded one, nor built from scratch."""
    return model.backbone is not None and model.backbone != EMBEDDED and not Path(model.backbone).is_dir()


def hub_arguments(hub: HubSection) -> dict[str, Any]:
    """Arguments of `from_pretrained` that the hub section sets."""
    return {"cache_dir": hub.cache_dir, "local_files_only": hub.local_files_only}


def read_backbone_config(
    model: BackboneSection, hub: HubSection, side: int, key: str = "data.image_size_px"
) -> tuple[Any, str | None]:
    """Configuration of the backbone, and its commit where it lies on the Hub; only the configuration is fetched.

    Args:
        model, hub: Sections of the recipe.
        side: Of the pictures, in pixels.
        key: What the recipe calls it.

    Raises:
        BackboneUnavailableError: It cannot be had, or the size of the pictures is no multiple of its patch.
    """
    from transformers import CONFIG_MAPPING, AutoConfig
    from transformers.utils import cached_file
    from transformers.utils.hub import extract_commit_hash

    if model.backbone_config is not None:
        values = dict(model.backbone_config)
        return CONFIG_MAPPING[values.pop("model_type", "dinov3_vit")](**values), None
    with explained(model):
        fetched = {"revision": model.revision, **hub_arguments(hub)}
        source = backbone_source(str(model.backbone))
        config = AutoConfig.from_pretrained(source, **fetched)
        commit = extract_commit_hash(cached_file(source, "config.json", **fetched), None)
    if config.model_type not in BACKBONE_TYPES:
        raise BackboneUnavailableError(
            f"backbone {model.backbone} is a {config.model_type!r} model; it must be one of {', '.join(BACKBONE_TYPES)}"
        )
    patch = config.patch_size
    if side % patch:
        raise BackboneUnavailableError(
            f"{key} = {side} is no multiple of the patch of {patch} of {model.backbone}; "
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
            backbone = AutoModel.from_pretrained(backbone_source(recipe.model.backbone), dtype="float32")
    backbone.config._name_or_path = ""  # where it was found means nothing elsewhere
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    backbone.save_pretrained(partial)
    for file in _about(recipe.model.backbone):
        shutil.copyfile(file, partial / file.name)
    os.replace(partial, folder)  # a folder of this name is always whole


def _about(name: str | None) -> list[Path]:
    """What a local backbone says of its origin and licence; a card needs it as long as the model lives."""
    if name is None:
        return []
    folder = Path(backbone_source(name))
    return [file for known in ABOUT_BASE if (file := folder / known).is_file()]


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
def explained(section: BackboneSection) -> Iterator[None]:
    """Turn the many ways a download can fail into one message with the remedy."""
    from safetensors import SafetensorError

    client = logging.getLogger("huggingface_hub.utils._http")
    retries = _OneLineForRetries()
    client.addFilter(retries)
    try:
        yield
    except (OSError, ValueError, SafetensorError) as error:
        name, revision = section.backbone, section.revision
        raise BackboneUnavailableError(_remedy(error, str(name), revision)) from error
    finally:
        client.removeFilter(retries)


class _OneLineForRetries(logging.Filter):
    """One line instead of two for each of the Hub client's attempts; what comes of them the error says."""

    def __init__(self) -> None:
        super().__init__()
        self.is_told = False

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        if "thrown while requesting" not in text and not text.startswith("Retrying in"):
            return True
        if not self.is_told:
            logger.warning("the Hub does not answer; trying again for up to half a minute")
            self.is_told = True
        return False


def _remedy(error: BaseException, name: str, revision: str | None) -> str:
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    from .model.binding_cytodino import causes_of

    causes = causes_of(error)
    fallback = "or use an open backbone such as facebook/dinov2-large (patch 14: data.image_size_px 252)"
    if any(isinstance(c, GatedRepoError) for c in causes):
        return f"backbone {name} is gated and this account has no access: {_licence(name)}; {fallback}"
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
    access = f" It is gated: {_licence(name)}." if name.startswith(_GATED) else ""
    return (
        f"backbone {name} cannot be fetched ({_obstacle(causes)}) and is not in the local cache.{access} Fetch it once "
        f"with a connection (`hf download {name}`), or give model.backbone a local folder, or build one from scratch "
        "with model.backbone_config."
    )


def _licence(name: str) -> str:
    return f"accept its licence on https://huggingface.co/{name}, then `hf auth login` or set HF_TOKEN"


def _obstacle(causes: list[BaseException]) -> str:
    """Why the Hub gave nothing, in words."""
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

    if any(isinstance(c, OfflineModeIsEnabled) for c in causes):
        return "HF_HUB_OFFLINE is set"
    if any(isinstance(c, (socket.gaierror, ConnectionError, TimeoutError)) for c in causes):
        return "no connection"
    if any(isinstance(c, LocalEntryNotFoundError) for c in causes):
        return "hub.local_files_only or HF_HUB_OFFLINE forbids asking the Hub"
    return str(causes[-1])
