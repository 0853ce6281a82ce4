"""The images of a study: one set with given folds; for some arms more labelled images in its training fold."""

from __future__ import annotations

import csv
import io
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cytodino_hf.errors import CytoDinoError
from cytodino_hf.files import whole_file
from cytodino_hf.taxonomy import MLL_IMAGE_COUNTS

if TYPE_CHECKING:
    from cytodino_hf.data.samples import CellImages

_TABLE, _TABLE_WITH_MORE = "images.csv", "images_with_more.csv"
#: Seed of the draw that thins the training fold, and the images a rare class keeps at least.
THINNING_SEED, FEWEST_OF_A_CLASS = 0, 10

_Row = tuple[str, str, str, str]  # path, label, fold, id


@dataclass(frozen=True)
class DividedImages:
    """Images with their folds, as a run finds them.

    Args:
        images: The images.
        section: Keys of a recipe's data section that lead to them.
    """

    images: CellImages
    section: Mapping[str, Any]

    def counts(self) -> dict[str, int]:
        """Images of each fold."""
        return dict(Counter(str(fold) for fold in self.images.folds))


@dataclass(frozen=True)
class StudyImages:
    """What the arms train on and are scored on.

    Args:
        plain: Of most arms.
        with_more: With more images in the training fold; None where none were given.
        is_thinned: The training folds were thinned to the class ratios of the full MLL set.
    """

    plain: DividedImages
    with_more: DividedImages | None = None
    is_thinned: bool = False

    def of(self, *, with_more: bool) -> DividedImages:
        """The images of an arm.

        Raises:
            CytoDinoError: It takes more labels, and none were given.
        """
        if not with_more:
            return self.plain
        if self.with_more is None:
            raise CytoDinoError("arms with more labels need the images: name their folder with --more")
        return self.with_more

    def train_of(self, with_more: bool) -> int:
        """Images of the training fold."""
        return self.of(with_more=with_more).counts()["train"]

    def counts(self) -> dict[str, int]:
        """Images of each fold, and how many more the training fold of some arms has."""
        added = {} if self.with_more is None else {"more": self.train_of(True) - self.train_of(False)}
        return self.plain.counts() | added

    def train_classes(self) -> dict[str, int]:
        """Training images of each class."""
        return self.plain.images.fold("train").counts()


def load_images(
    root: Path, split_file: Path, more: Sequence[Path], output: Path, *, natural_ratios: bool = False
) -> StudyImages:
    """Find the images; where they are more or fewer than the set's, a table of them is written into the study's folder.

    Args:
        root: Folder of class folders.
        split_file: CSV `path,label,fold`.
        more: Folders of class folders for the training fold.
        output: The study's folder.
        natural_ratios: Thin every training fold to the class ratios of the full MLL set, see `natural_counts`. The
            images that stay are drawn once for all arms and seeds; the other folds are left as they are.

    Raises:
        DataError: The images or the split cannot be used.
        CytoDinoError: A folder of `more` holds images of the set itself, or one that shows the same picture as an
            image of another fold; a class has no natural ratio.
    """
    plain = _divided({"source": "mll", "root": str(root), "split": str(split_file.absolute())})
    if not plain.images.fold("test").labels:
        raise CytoDinoError(f"{split_file}: no image is in the test fold; there would be nothing to compare")
    home = plain.images.root.resolve()
    own = _rows(plain.images, home, "")
    if natural_ratios:
        table = _write_table(output / _TABLE, _thinned(own))
        plain = _divided(_table_section(table, home))
    if not more:
        return StudyImages(plain, None, natural_ratios)
    sets = _more_sets(more, plain.images)
    common = Path(os.path.commonpath([home, *(extra.root.resolve() for extra in sets)]))
    place = os.path.relpath(home, common)
    rows = [(Path(place, path).as_posix(), label, fold, name) for path, label, fold, name in own]
    for number, extra in enumerate(sets, start=1):
        rows += _rows(extra, common, f"more{number}/")
    table = _write_table(output / _TABLE_WITH_MORE, _thinned(rows) if natural_ratios else rows)
    # Divided here and not hours later: none of the new images shows what is in another fold.
    return StudyImages(plain, _divided(_table_section(table, common)), natural_ratios)


def natural_counts(counts: Mapping[str, int]) -> dict[str, int]:
    """How many images of each class stay so that classes are in the ratios of the full MLL set.

    As many as there can be; a class keeps `FEWEST_OF_A_CLASS` at least, where it has them.

    Args:
        counts: Images of each class.

    Raises:
        CytoDinoError: A class is none of the MLL set.
    """
    if unknown := sorted(set(counts) - set(MLL_IMAGE_COUNTS)):
        raise CytoDinoError(
            f"--natural-ratios: {', '.join(unknown)} are no classes of the MLL set; leave it out for these images"
        )
    scale = min(n / MLL_IMAGE_COUNTS[code] for code, n in counts.items() if n)
    return {
        code: min(n, max(round(scale * MLL_IMAGE_COUNTS[code]), FEWEST_OF_A_CLASS))
        for code, n in counts.items()
    }


def _thinned(rows: Sequence[_Row]) -> list[_Row]:
    """Rows whose training fold is thinned; images of the set itself stay before more images do.

    The draw of a class depends on its own images alone, so that a fold with more images holds all of the smaller one.
    """
    train: dict[str, list[_Row]] = {}
    for row in sorted(rows, key=lambda row: row[3]):
        if row[2] == "train":
            train.setdefault(row[1], []).append(row)
    keep = natural_counts({code: len(own) for code, own in train.items()})
    kept: set[_Row] = set()
    for code, own in train.items():
        drawn: list[_Row] = []
        for is_more in (False, True):
            part = [row for row in own if row[3].startswith("more") == is_more]
            rng = np.random.default_rng([THINNING_SEED, *code.encode()])
            drawn += [part[i] for i in rng.permutation(len(part))]
        kept.update(drawn[: keep[code]])
    return [row for row in rows if row[2] != "train" or row in kept]


def _divided(section: dict[str, Any]) -> DividedImages:
    """Images of a data section with their folds, as a run would find them."""
    from cytodino_hf.data.inspection.scan import scan_images
    from cytodino_hf.data.loading import divide, index_images, leave_out_rejected
    from cytodino_hf.data.sources import SOURCES
    from cytodino_hf.recipe import DataSection

    keys = dict(section)
    options = SOURCES[keys["source"]].options(**keys.pop(keys["source"], {}))
    data = DataSection(**keys)
    found = index_images(data, {data.source: options})
    images, scan, _ = leave_out_rejected(found, scan_images(found))
    return DividedImages(divide(images, scan, data, needs_validation=True).images, section)


def _table_section(table: Path, root: Path) -> dict[str, Any]:
    return {
        "source": "image_folder",
        "root": str(root),
        "split": "source",
        "image_folder": {"table": str(table.absolute())},
    }


def _more_sets(more: Sequence[Path], images: CellImages) -> list[CellImages]:
    from cytodino_hf.data.sources.mll import Options, load

    home = images.root.resolve()
    sets = [load(folder, images.taxonomy, Options()) for folder in more]
    for extra in sets:
        place = extra.root.resolve()
        if place.is_relative_to(home) or home.is_relative_to(place):
            raise CytoDinoError(
                f"--more {extra.root}: lies in the set that is tested, or around it; give images of their own"
            )
    return sets


def _write_table(table: Path, rows: Sequence[_Row]) -> Path:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("path", "label", "fold", "id"))
    writer.writerows(rows)
    with whole_file(table) as file:
        file.write(text.getvalue().encode())
    return table


def _rows(images: CellImages, common: Path, prefix: str) -> list[_Row]:
    """Path, label, fold and id of a set; of more images the fold is always train.

    The ids of the set itself are those it has by its own source, so that runs with and without more images can be
    compared image by image. Images of no fold are left out.
    """
    codes = images.taxonomy.codes
    place = os.path.relpath(images.root.resolve(), common)
    folds = ["train"] * len(images.labels) if prefix else images.folds
    columns = zip(images.column("path"), images.labels, folds, images.column("id"), strict=True)
    return [
        (Path(place, path).as_posix(), codes[label], fold, prefix + name)
        for path, label, fold, name in columns
        if fold is not None
    ]
