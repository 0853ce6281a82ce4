"""Image files in, pictures of what a backbone sees in them out: `cytodino explain`."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data.images import read_rgb
from ..errors import BadNumbersError, CytoDinoError, DataError
from .frozen_backbones import load_frozen_backbone
from .patch_maps import Components, PatchMaps, patch_maps, principal_components
from .patch_pictures import Explained, draw_page, draw_sheet
from .plots import figure_bytes

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

#: Patches along the longer side unless the user says otherwise: small ones, so that a nucleus shows its outline.
PATCHES_A_SIDE = 32
# Attention takes the fourth power of it: at 64 one block of a large model takes 1 GB.
_MOST_PATCHES_A_SIDE = 64
_SHEET = "sheet"
_MOST_ON_SHEET = 60


@dataclass(frozen=True)
class ExplainedImages:
    """What was drawn.

    Args:
        pictures: One PNG an image, in their order.
        sheet: PNG of all of them; None where no image could be read.
        problems: One line for each image that could not be read.
    """

    pictures: tuple[Path, ...]
    sheet: Path | None
    problems: tuple[str, ...]


def explain_images(
    backbone: str,
    images: Sequence[Path],
    output: Path,
    *,
    image_size_px: int | None = None,
    pca: str = "together",
) -> ExplainedImages:
    """Draw patch features and attention of images; one that cannot be read is named, and the others go on.

    Args:
        backbone: As `load_frozen_backbone` takes it.
        images: Files.
        output: Folder for `<name>.png` and `sheet.png`; made if it is missing, pictures of these names are replaced.
        image_size_px: Longer side of a picture as the backbone sees it, a multiple of its patch; proportions are kept
            to the nearest patch. None takes `PATCHES_A_SIDE` patches.
        pca: "together" gives colours one meaning in all pictures, "each" shows the most of every single one.

    Raises:
        BackboneUnavailableError: The backbone cannot be had or is of another kind.
        BadNumbersError: Its features are not finite.
    """
    import torch
    from tqdm.auto import tqdm

    if pca not in ("together", "each"):
        raise CytoDinoError(f"--pca {pca}: must be together or each")
    frozen = load_frozen_backbone(backbone)
    side = _side(frozen.patch_px, image_size_px, backbone)
    frozen.model.set_attn_implementation("eager")  # type: ignore[operator]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = frozen.model.to(device)
    seen: list[tuple[Path, np.ndarray, PatchMaps]] = []
    problems = []
    for path in tqdm(images, desc="images", unit="image", disable=None):
        try:
            picture = _resized(read_rgb(path), side, frozen.patch_px)
        except DataError as error:
            problems.append(str(error))
            continue
        maps = patch_maps(model, _normalised(picture, frozen.preprocessing).to(device))
        if not (np.isfinite(maps.features).all() and np.isfinite(maps.attention).all()):
            raise BadNumbersError(f"{path}: features of {backbone} are not finite; its weights are damaged")
        seen.append((path, picture, maps))
    pictures, sheet = _draw(seen, output, pca)
    return ExplainedImages(tuple(pictures), sheet, tuple(problems))


def _side(patch: int, image_size_px: int | None, backbone: str) -> int:
    side = image_size_px or PATCHES_A_SIDE * patch
    if side % patch:
        near = " or ".join(str(n * patch) for n in (side // patch, side // patch + 1) if n)
        raise CytoDinoError(
            f"--image-size-px {side} is no multiple of the patch of {patch} of {backbone}; use {near}"
        )
    if side > _MOST_PATCHES_A_SIDE * patch:
        raise CytoDinoError(
            f"--image-size-px {side}: at most {_MOST_PATCHES_A_SIDE * patch} for patches of {patch}"
        )
    return side


def _resized(pixels: np.ndarray, side: int, patch: int) -> np.ndarray:
    """The picture with its longer side `side` and its shorter one the nearest number of patches."""
    from PIL import Image

    high, wide = pixels.shape[:2]
    size = [max(1, round(length * side / max(high, wide) / patch)) * patch for length in (wide, high)]
    return np.asarray(Image.fromarray(pixels).resize((size[0], size[1]), Image.Resampling.BILINEAR))


def _normalised(picture: np.ndarray, preprocessing: Mapping[str, Any]) -> torch.Tensor:
    import torch
    from transformers.utils.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

    mean = np.array(preprocessing.get("image_mean") or IMAGENET_DEFAULT_MEAN)
    std = np.array(preprocessing.get("image_std") or IMAGENET_DEFAULT_STD)
    scaled = (picture / 255 - mean) / std
    return torch.from_numpy(scaled.astype(np.float32)).permute(2, 0, 1)[None]


def _draw(
    seen: Sequence[tuple[Path, np.ndarray, PatchMaps]], output: Path, pca: str
) -> tuple[list[Path], Path | None]:
    if not seen:
        return [], None
    output.mkdir(parents=True, exist_ok=True)
    common = principal_components([maps.features for _, _, maps in seen]) if pca == "together" else None
    pages, pictures = [], []
    taken = {_SHEET}
    for path, picture, maps in seen:
        components: Components = common or principal_components([maps.features])
        page = Explained(path.name, picture, components.colours(maps.features), maps.attention)
        pictures.append(output / f"{_free_name(path.stem, taken)}.png")
        pictures[-1].write_bytes(figure_bytes(draw_page(page, float(components.shares.sum())), "png"))
        pages.append(page)
    if len(pages) > _MOST_ON_SHEET:
        logger.warning("%s.png shows the first %d of %d images", _SHEET, _MOST_ON_SHEET, len(pages))
    sheet = output / f"{_SHEET}.png"
    sheet.write_bytes(figure_bytes(draw_sheet(pages[:_MOST_ON_SHEET]), "png"))
    return pictures, sheet


def _free_name(stem: str, taken: set[str]) -> str:
    """The name, with a number behind it if a picture before has it."""
    name, number = stem, 2
    while name in taken:
        name, number = f"{stem}_{number}", number + 1
    taken.add(name)
    return name
