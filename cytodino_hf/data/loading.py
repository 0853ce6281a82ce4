"""The data section of a recipe becomes images with folds: indexed, looked at, freed of bad files, divided."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from pydantic import BaseModel

from ..errors import DataError
from ..recipe import DataSection, Recipe
from ..taxonomy import load_taxonomy
from .cache import pack_images
from .inspection.scan import Scan, scan_images
from .samples import CellImages, RejectedImage
from .sources import SOURCES
from .splits import Split, assign_folds
from .tables import first_few


def load_split(recipe: Recipe) -> Split:
    """The images of a recipe with their folds.

    Every file is read once beforehand (what was found is kept for the next start), so that training never meets one
    it cannot read.

    Raises:
        DataError: Images or split cannot be used as asked, or too many files cannot be read.
    """
    data = recipe.data
    found = index_images(data, recipe.source_options)
    images, scan, notes = leave_out_rejected(found, scan_images(found))
    refuse_too_many_rejected(images, data.max_rejected_share)
    split = divide(images, scan, data, needs_validation=recipe.training.eval_strategy != "no")
    if data.cache != "none":
        # The file holds the whole set, so that another split of it reads the same one.
        pack = pack_images(images, data.cache).pack
        split = replace(split, images=replace(split.images, pack=pack))
    return replace(split, notes=(*notes, *split.notes))


def index_images(data: DataSection, source_options: Mapping[str, BaseModel]) -> CellImages:
    """The images of a data section as their source names them; no file is read.

    Raises:
        DataError: The source finds no images, or not as asked.
    """
    root = Path(data.root) if data.root is not None else None
    return SOURCES[data.source].load(root, load_taxonomy(data.taxonomy), source_options[data.source])


def divide(images: CellImages, scan: Scan, data: DataSection, *, needs_validation: bool) -> Split:
    """Give readable images their folds, images of one picture the same.

    Args:
        images, scan: From `leave_out_rejected`.
        data: Says how.
        needs_validation: The validation fold must not be empty.

    Raises:
        DataError: There is one class only; the split does not fit the images, or leaves a fold empty that must not be.
    """
    if len(images.taxonomy) < 2:
        raise DataError(
            f"{images.root}: all images are of one class ({images.taxonomy.codes[0]}); there is nothing to tell apart"
        )
    looks = data.near_duplicates == "group"
    split = assign_folds(
        images,
        split=data.split,
        fractions=data.fractions.model_dump(),
        seed=data.split_seed,
        duplicates=scan.duplicates if looks else None,
    )
    if not split.images.fold("train").labels:
        raise DataError(f"{images.root}: the split leaves no image to train on")
    if needs_validation and not split.images.fold("validation").labels:
        raise DataError(
            f"{images.root}: the split leaves no image for the validation fold, which chooses the model; "
            "change data.split or data.fractions, or set training.eval_strategy and save_strategy to 'no'"
        )
    note = "nobody looked for near-duplicates (data.near_duplicates 'ignore')"
    return split if looks else replace(split, notes=(note, *split.notes))


def leave_out_rejected(images: CellImages, scan: Scan) -> tuple[CellImages, Scan, list[str]]:
    """The images that can be read and their scan; the others join `rejected`.

    Args:
        images: As a source gave them.
        scan: Of all their rows.

    Returns:
        Images, their scan, and notes: classes that lost all their images, files that are read in part only.

    Raises:
        DataError: No image can be read.
    """
    reasons = scan.rejected()
    if not reasons:
        return images, scan, scan.notes()
    paths = images.column("path")
    rejected = [RejectedImage(paths[row], reason) for row, reason in reasons.items()]
    kept = [row for row in range(len(scan)) if row not in reasons]
    if not kept:
        raise DataError(f"{images.root}: none of {len(scan)} images can be used: {_first_reasons(rejected)}")
    everything = sorted((*images.rejected, *rejected), key=lambda image: image.path)
    rest = replace(images.select(kept).narrowed(), rejected=tuple(everything))
    gone = sorted(set(images.taxonomy.codes) - set(rest.taxonomy.codes))
    lost = [f"classes of which no image can be used were left out: {', '.join(gone)}"] if gone else []
    return rest, scan.select(kept), [*lost, *scan.notes()]


def refuse_too_many_rejected(
    images: CellImages, max_share: float, key: str = "data.max_rejected_share"
) -> None:
    """Stop where too large a share of the files is of no use: then something is wrong with the set, not with a file.

    Args:
        images: The set without the rejected files, which it lists. Files left out on purpose do not count.
        max_share: Largest share of files with an image's name that may be rejected.
        key: Which key of the recipe says so.

    Raises:
        DataError: More are; names the first few with their reasons.
    """
    bad = [image for image in images.rejected if not image.on_purpose]
    whole = len(bad) + len(images.dataset)
    if len(bad) > max_share * whole:
        raise DataError(
            f"{images.root}: {len(bad)} of {whole} files cannot be used, more than {key} {max_share:g} allows: "
            f"{_first_reasons(bad)}. Mend or remove them (`cytodino data check` lists all), "
            f"or allow a share of {len(bad) / whole:.2g}."
        )


def _first_reasons(rejected: list[RejectedImage]) -> str:
    return first_few(f"{image.path} ({image.reason})" for image in rejected)
