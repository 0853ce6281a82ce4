"""What is compared: backbones, trained or not, and classical features; each gives features of all images of a probe.

Features are kept in the output folder, by the weights, the content of the images and all that decides their pixels:
a second probe of the same computes none, one that was killed goes on with the first system it had not finished.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..data.dataset import CellDataset
from ..data.images import decoder_versions
from ..errors import BackboneUnavailableError
from ..evaluation.features import Pooling, frozen_features
from ..evaluation.frozen_backbones import UNTRAINED, FrozenBackbone, load_frozen_backbone
from ..files import whole_file
from ..model_builder import build_processor
from ..recipe import DataSection
from .classical import DESCRIPTION_VERSION, WIDTHS, classical_features
from .images import ImageTable, ProbeImages

#: Name of the classical features among backbones.
CLASSICAL = "classical"
_SLUG_LENGTH = 60
# Of how features are computed: another one, and kept features are computed anew.
_FEATURES_VERSION = 1


@dataclass(frozen=True)
class FeatureSettings:
    """How features are computed.

    Args:
        data: Says how pictures are cut; the size and the statistics where they are set there, else the backbone's.
        pooling: What is taken of a backbone's tokens.
        precision: What backbones compute in.
        batch_size: Pictures at once.
        workers: Processes that read pictures.
    """

    data: DataSection
    pooling: Pooling = "cls"
    precision: Literal["float32", "bfloat16"] = "float32"
    batch_size: int = 64
    workers: int = 0


@dataclass(frozen=True)
class SystemFeatures:
    """Features of one system with one seed.

    Args:
        seed: Of fresh weights; None where the weights are trained, or there are none.
        features: float32 (images, width), the stacked rows of `ProbeImages.tables`.
        about: Weights, size of pictures, parameters.
    """

    seed: int | None
    features: np.ndarray
    about: dict[str, Any]


def system_features(
    name: str, seeds: tuple[int, ...], images: ProbeImages, settings: FeatureSettings, folder: Path
) -> Iterator[SystemFeatures]:
    """Features of a system: once, or of untrained weights one seed after the other.

    Args:
        name: Hub id, folder, `random:` and one of them, or `classical`.
        seeds: Of untrained weights.
        images: What to describe.
        settings: How.
        folder: Where features are kept.

    Raises:
        BackboneUnavailableError: The backbone cannot be had, is of another kind, or its patch does not divide the
            pictures.
    """
    if name == CLASSICAL:
        features = _stacked(images, folder, name, _classical_key(settings.data), _classical(settings))
        about = {"width": features.shape[1], "kinds": dict(WIDTHS)}
        yield SystemFeatures(None, features, about)
        return
    for seed in seeds if name.startswith(UNTRAINED) else (None,):
        backbone = load_frozen_backbone(name, seed=seed or 0)
        data = pictures_for(backbone, settings.data)
        about = {
            "sha256": backbone.sha256(),
            "parameters": backbone.parameters(),
            "image_size_px": data.image_size_px,
            "image_mean": data.image_mean,
            "image_std": data.image_std,
        }
        key = about | {
            "version": _FEATURES_VERSION,
            "center_crop_px": data.center_crop_px,
            "hide_center_px": data.hide_center_px,
            "pooling": settings.pooling,
            "precision": settings.precision,
        }
        features = _stacked(images, folder, name, key, _of_backbone(backbone, data, settings))
        yield SystemFeatures(seed, features, about | {"width": features.shape[1]})


def pictures_for(backbone: FrozenBackbone, data: DataSection) -> DataSection:
    """The data section with the backbone's own size and statistics where the user set none.

    Raises:
        BackboneUnavailableError: The size is no multiple of the backbone's patch.
    """
    own = {
        "image_size_px": backbone.side_px,
        "image_mean": backbone.preprocessing.get("image_mean"),
        "image_std": backbone.preprocessing.get("image_std"),
    }
    left = {
        key: value for key, value in own.items() if value is not None and key not in data.model_fields_set
    }
    data = data.model_copy(update=left)
    side, patch = data.image_size_px, backbone.patch_px
    if side % patch:
        raise BackboneUnavailableError(
            f"data.image_size_px = {side} is no multiple of the patch of {patch} of {backbone.name}; use "
            f"{max(side // patch, 1) * patch} or {(side // patch + 1) * patch}, or leave it out: each backbone then "
            "gets pictures of its own size"
        )
    return data


def _of_backbone(
    backbone: FrozenBackbone, data: DataSection, settings: FeatureSettings
) -> Callable[[ImageTable], np.ndarray]:
    import torch

    def compute(table: ImageTable) -> np.ndarray:
        backbone.model.to("cuda" if torch.cuda.is_available() else "cpu")
        return frozen_features(
            backbone.model,
            CellDataset(table.images, build_processor(data)),
            batch_size=settings.batch_size,
            workers=settings.workers,
            precision=settings.precision,
            pooling=settings.pooling,
            description=backbone.name,
        )

    return compute


def _classical(settings: FeatureSettings) -> Callable[[ImageTable], np.ndarray]:
    from tqdm.auto import tqdm

    def compute(table: ImageTable) -> np.ndarray:
        with tqdm(total=len(table.sha256), desc=CLASSICAL, unit="image") as bar:
            return classical_features(
                table.images,
                center_crop_px=settings.data.center_crop_px,
                hide_center_px=settings.data.hide_center_px,
                tick=bar.update,
            )

    return compute


def _classical_key(data: DataSection) -> dict[str, Any]:
    return {
        "description": DESCRIPTION_VERSION,
        "scikit-image": version("scikit-image"),
        "center_crop_px": data.center_crop_px,
        "hide_center_px": data.hide_center_px,
    }


def _stacked(
    images: ProbeImages,
    folder: Path,
    name: str,
    key: Mapping[str, Any],
    compute: Callable[[ImageTable], np.ndarray],
) -> np.ndarray:
    """Features of all tables, from the folder where they are there."""
    parts = []
    for table in images.tables:
        content = hashlib.sha256(b"".join(table.sha256)).hexdigest()
        whole = {**key, "images": content, "decoder": decoder_versions()}
        digest = hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()
        file = folder / f"{slug(name)}-{digest[:16]}.npy"
        if not file.is_file():
            features = compute(table)
            with whole_file(file) as stream:
                np.save(stream, features)
        parts.append(np.load(file, allow_pickle=False))
    return np.concatenate(parts)


def slug(name: str) -> str:
    """A name as a file name, of the end of a path, which tells more than its beginning; other names, other slugs."""
    short = re.sub(r"[^\w.-]+", "_", name).strip("_.")[-_SLUG_LENGTH:]
    return short if short == name else f"{short}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"
