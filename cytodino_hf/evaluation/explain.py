"""Image files in, pictures of what a backbone or a classifier sees in them out: `cytodino explain`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..data.images import read_rgb
from ..errors import CytoDinoError, DataError
from .lookers import load_looker
from .patch_maps import Components, PatchMaps, principal_components
from .patch_pictures import Explained, draw_page, draw_sheet
from .plots import figure_bytes

logger = logging.getLogger(__name__)

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
        backbone: As `load_looker` takes it: a backbone, or a classifier such as a RUN.
        images: Files.
        output: Folder for `<name>.png` and `sheet.png`; made if it is missing, pictures of these names are replaced.
        image_size_px: Longer side of a picture as the model sees it, a multiple of its patch; None: see `load_looker`.
            A backbone keeps proportions to the nearest patch, a classifier cuts as its image processor does.
        pca: "together" gives colours one meaning in all pictures, "each" shows the most of every single one.

    Raises:
        CytoDinoError: The model cannot be had, is of another kind, or the size does not fit its patches.
        BadNumbersError: Its features are not finite.
    """
    from tqdm.auto import tqdm

    if pca not in ("together", "each"):
        raise CytoDinoError(f"--pca {pca}: must be together or each")
    looker = load_looker(backbone, image_size_px)
    seen: list[tuple[str, Path, np.ndarray, PatchMaps]] = []
    problems = []
    for path in tqdm(images, desc="images", unit="image", disable=None):
        try:
            picture = looker.picture(read_rgb(path))
        except DataError as error:
            problems.append(str(error))
            continue
        maps, answer = looker.look(picture)
        seen.append((path.name + answer, path, picture, maps))
    pictures, sheet = _draw(seen, output, pca, looker.attention_words)
    return ExplainedImages(tuple(pictures), sheet, tuple(problems))


def _draw(
    seen: Sequence[tuple[str, Path, np.ndarray, PatchMaps]], output: Path, pca: str, words: str
) -> tuple[list[Path], Path | None]:
    if not seen:
        return [], None
    output.mkdir(parents=True, exist_ok=True)
    common = principal_components([maps.features for *_, maps in seen]) if pca == "together" else None
    pages, pictures = [], []
    taken = {_SHEET}
    for caption, path, picture, maps in seen:
        components: Components = common or principal_components([maps.features])
        page = Explained(caption, picture, components.colours(maps.features), maps.attention, words)
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
