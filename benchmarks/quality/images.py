"""The images of a study: one set with given folds, and for some arms more labelled images in its training fold."""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from cytodino_hf.errors import CytoDinoError

if TYPE_CHECKING:
    from cytodino_hf.data.samples import CellImages

_TABLE = "images_with_more.csv"


@dataclass(frozen=True)
class StudyImages:
    """What every arm trains on and is scored on.

    Args:
        folds: The images with their folds.
        split_file: Where the folds stand.
        table: Table of these images and more, or None.
        common_root: What the paths in the table begin at.
        more: Images in the table besides these; all in the training fold.
    """

    folds: CellImages
    split_file: Path
    table: Path | None = None
    common_root: Path | None = None
    more: int = 0

    def counts(self) -> dict[str, int]:
        """Images of each fold."""
        return dict(Counter(str(fold) for fold in self.folds.folds))

    def train_of(self, with_more: bool) -> int:
        """Images of the training fold."""
        return self.counts()["train"] + (self.more if with_more else 0)

    def section(self, *, with_more: bool) -> dict[str, Any]:
        """Keys of a recipe's data section."""
        if not with_more:
            return {"source": "mll", "root": str(self.folds.root), "split": str(self.split_file.absolute())}
        if self.table is None:
            raise CytoDinoError("arms with more labels need the images: name their folder with --more")
        return {
            "source": "image_folder",
            "root": str(self.common_root),
            "split": "source",
            "image_folder": {"table": str(self.table.absolute())},
        }


def load_images(root: Path, split_file: Path, more: Sequence[Path], output: Path) -> StudyImages:
    """Find the images, and write the table of the arms with more labels into the study's folder.

    Args:
        root: Folder of class folders.
        split_file: CSV `path,label,fold`.
        more: Folders of class folders for the training fold; empty writes no table.
        output: The study's folder.

    Raises:
        DataError: The images or the split cannot be used.
        CytoDinoError: A folder of `more` holds images of the set itself, or one that shows the same picture as an
            image of another fold.
    """
    from cytodino_hf.data.sources.mll import Options

    folds = _divided({"source": "mll", "root": str(root), "split": str(split_file)}, Options())
    if not folds.fold("test").labels:
        raise CytoDinoError(f"{split_file}: no image is in the test fold; there would be nothing to compare")
    if not more:
        return StudyImages(folds, split_file)
    from cytodino_hf.data.sources.image_folder import Options as TableOptions

    study = _with_more(folds, split_file, more, output)
    # Here and not hours later: none of the new images shows what is in another fold.
    section = study.section(with_more=True)
    _divided(section, TableOptions(**section.pop("image_folder")))
    return study


def _divided(section: dict[str, Any], options: BaseModel) -> CellImages:
    """Images of a data section with their folds, as a run would find them."""
    from cytodino_hf.data.inspection.scan import scan_images
    from cytodino_hf.data.loading import divide, index_images, leave_out_rejected
    from cytodino_hf.recipe import DataSection

    data = DataSection(**section)
    found = index_images(data, {data.source: options})
    images, scan, _ = leave_out_rejected(found, scan_images(found))
    return divide(images, scan, data, needs_validation=True).images


def _with_more(folds: CellImages, split_file: Path, more: Sequence[Path], output: Path) -> StudyImages:
    from cytodino_hf.data.sources.mll import Options, load

    home = folds.root.resolve()
    sets = [load(folder, folds.taxonomy, Options()) for folder in more]
    for extra in sets:
        place = extra.root.resolve()
        if place.is_relative_to(home) or home.is_relative_to(place):
            raise CytoDinoError(
                f"--more {extra.root}: lies in the set that is tested, or around it; give images of their own"
            )
    common = Path(os.path.commonpath([home, *(extra.root.resolve() for extra in sets)]))
    rows = _rows(folds, common, "")
    for number, extra in enumerate(sets, start=1):
        rows += _rows(extra, common, f"more{number}/")
    table = output / _TABLE
    output.mkdir(parents=True, exist_ok=True)
    with open(table, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "label", "fold", "id"))
        writer.writerows(rows)
    return StudyImages(folds, split_file, table, common, len(rows) - len(folds.labels))


def _rows(images: CellImages, common: Path, prefix: str) -> list[tuple[str, str, str, str]]:
    """Path, label, fold and id of a set; of more images the fold is always train.

    The ids of the set itself are those it has by its own source, so that runs with and without more images can be
    compared image by image.
    """
    codes = images.taxonomy.codes
    place = os.path.relpath(images.root.resolve(), common)
    columns = (images.column("path"), images.labels, images.folds, images.column("id"))
    return [
        (Path(place, path).as_posix(), codes[label], "train" if prefix else str(fold), prefix + name)
        for path, label, fold, name in zip(*columns, strict=True)
    ]
