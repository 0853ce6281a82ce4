"""The images of a probe: three folds of one set, and more images for the training fold where they are given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel

from ..data.cache import pack_images
from ..data.inspection.near_duplicates import find_duplicates
from ..data.inspection.scan import Scan, scan_images
from ..data.loading import divide, index_images, leave_out_rejected, refuse_too_many_rejected
from ..data.samples import CellImages
from ..errors import DataError
from ..recipe import DataSection
from ..taxonomy import Taxonomy

#: Folds a probe uses: fit, choose, score once. The calibration fold is left alone.
FOLDS = ("train", "validation", "test")


@dataclass(frozen=True)
class ImageTable:
    """Some images, and what decides their pixels.

    Args:
        images: The rows.
        sha256: Of each row's file.
    """

    images: CellImages
    sha256: tuple[bytes, ...]


@dataclass(frozen=True)
class ProbeImages:
    """All images of a probe.

    Args:
        own: Rows of `FOLDS`, each with its fold.
        more: Images for the training fold only, labelled in the same taxonomy; None where none were given.
        promise: What kind of leak the split excludes.
        notes: Sentences about images left out.
    """

    own: ImageTable
    more: ImageTable | None
    promise: str
    notes: tuple[str, ...]

    @property
    def taxonomy(self) -> Taxonomy:
        """The classes."""
        return self.own.images.taxonomy

    @property
    def tables(self) -> tuple[ImageTable, ...]:
        """The sets, in the order their features are stacked."""
        return (self.own,) if self.more is None else (self.own, self.more)

    def rows(self, fold: str) -> np.ndarray:
        """Rows of one fold among the stacked rows of `tables`; more images belong to the training fold."""
        folds: list[str | None] = list(self.own.images.folds)
        if self.more is not None:
            folds += ["train"] * len(self.more.sha256)
        return np.flatnonzero(np.array(folds, dtype=object) == fold)

    @property
    def labels(self) -> np.ndarray:
        """Label of every stacked row, int64."""
        return np.array([label for table in self.tables for label in table.images.labels], dtype=np.int64)

    def record(self) -> dict[str, Any]:
        """What was used, for a report."""
        own = self.own.images
        counts = {fold: own.fold(fold).counts() for fold in FOLDS}
        more = None
        if self.more is not None:
            added = self.more.images
            more = {
                "root": str(added.root),
                "images": added.counts(),
                "attribution": added.attribution,
                "fingerprint": added.fingerprint(),
            }
        return {
            "root": str(own.root),
            "source": own.source,
            "taxonomy": own.taxonomy.name,
            "attribution": own.attribution,
            "is_drawn": own.is_drawn,
            "fingerprint": own.fingerprint(),
            "images": counts,
            "more": more,
            "promise": self.promise,
            "notes": list(self.notes),
        }


def load_probe_images(
    data: DataSection, source_options: Mapping[str, BaseModel], more: Path | None = None
) -> ProbeImages:
    """Read and divide the images of a data section as a training would, and add more to the training fold.

    Args:
        data: Which images, and how they are divided.
        source_options: Options of every source.
        more: Folder read by the same source. An image that shows a picture of the validation, calibration or test fold
            is left out; so are classes that the set does not have.

    Raises:
        DataError: Images or split cannot be used as asked, or no image is left to choose or to score by.
    """
    images, scan, notes = _read(data, source_options)
    split = divide(images, scan, data, needs_validation=True)
    packed = _packed(images, data)
    divided = replace(split.images, pack=packed.pack)
    if not divided.fold("test").labels:
        raise DataError(
            f"{images.root}: the split leaves no image to test on; change data.split or data.fractions"
        )
    sha256 = dict(zip(images.column("path"), scan.column("file_sha256"), strict=True))
    kept = divided.select([row for row, fold in enumerate(divided.folds) if fold in FOLDS])
    own = ImageTable(kept, tuple(sha256[path] for path in kept.column("path")))
    notes += split.notes
    added = None
    if more is not None:
        held_out = scan.select(
            _rows_of(
                images,
                [p for p, f in zip(divided.column("path"), divided.folds, strict=True) if f != "train"],
            )
        )
        added, found = _load_more(data, source_options, more, kept.taxonomy, held_out)
        notes += found
    return ProbeImages(own, added, split.promise, tuple(notes))


def _read(data: DataSection, source_options: Mapping[str, BaseModel]) -> tuple[CellImages, Scan, list[str]]:
    found = index_images(data, source_options)
    images, scan, notes = leave_out_rejected(found, scan_images(found))
    refuse_too_many_rejected(images, data.max_rejected_share)
    return images, scan, list(notes)


def _packed(images: CellImages, data: DataSection) -> CellImages:
    return images if data.cache == "none" else pack_images(images, data.cache)


def _rows_of(images: CellImages, paths: Sequence[str]) -> list[int]:
    wanted = set(paths)
    return [row for row, path in enumerate(images.column("path")) if path in wanted]


def _load_more(
    data: DataSection,
    source_options: Mapping[str, BaseModel],
    root: Path,
    taxonomy: Taxonomy,
    held_out: Scan,
) -> tuple[ImageTable, list[str]]:
    """More training images in the labels of the first set, without what it holds out."""
    options = dict(source_options)
    if "image_folder" in options:
        # The table of the first set names its own files.
        options["image_folder"] = options["image_folder"].model_copy(update={"table": None})
    images, scan, notes = _read(data.model_copy(update={"root": str(root)}), options)
    codes = [images.taxonomy.codes[label] for label in images.labels]
    known = np.array([code in taxonomy.codes for code in codes])
    repeats = _shown_in(scan, held_out)
    rows = np.flatnonzero(known & ~repeats)
    if not len(rows):
        raise DataError(
            f"{root}: no image of it can be added: none is of the classes {', '.join(taxonomy.codes)}"
        )
    if not known.all():
        notes.append(f"{root}: {int((~known).sum())} images of other classes were left out")
    if repeats.any():
        notes.append(
            f"{root}: {int(repeats.sum())} images that show a picture of a held-out fold were left out"
        )
    kept = _packed(images, data).select(rows.tolist())
    relabelled = _in_taxonomy(kept, [taxonomy.index(codes[row]) for row in rows], taxonomy)
    sha256 = scan.select(rows.tolist()).column("file_sha256")
    return ImageTable(relabelled, tuple(sha256)), notes


def _shown_in(scan: Scan, others: Scan) -> np.ndarray:
    """Which images of a scan are one picture with an image of another scan, bool (images,)."""
    count = len(scan)
    together = find_duplicates(
        scan.column("file_sha256") + others.column("file_sha256"),
        scan.column("pixel_sha256") + others.column("pixel_sha256"),
        np.concatenate([scan.numbers("hash"), others.numbers("hash")]),
        np.concatenate([scan.thumbnails(), others.thumbnails()]),
        np.concatenate([scan.numbers("detail"), others.numbers("detail")]),
    )
    of_others = together.cluster_of[count:]
    return np.isin(together.cluster_of[:count], of_others[of_others >= 0])


def _in_taxonomy(images: CellImages, labels: Sequence[int], taxonomy: Taxonomy) -> CellImages:
    """The same rows with labels of another taxonomy."""
    from datasets import ClassLabel

    feature = ClassLabel(names=list(taxonomy.codes))
    dataset = images.dataset.remove_columns("label").add_column("label", list(labels), feature=feature)
    return replace(images, dataset=dataset, taxonomy=taxonomy)
