"""Image sets of a pretraining, each read once, and of each image why it must not be drawn."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pydantic import BaseModel

from ..data.inspection.scan import Scan, scan_images
from ..data.loading import leave_out_rejected, refuse_too_many_rejected
from ..data.samples import CellImages
from ..data.sources import SOURCES
from ..data.splits import assign_folds
from ..taxonomy import load_taxonomy
from .mixture_section import NamedEntry

#: Why an image is not drawn, where its own fold does not say it.
NAMED, PROBED, COPY, UNLISTED = (
    "held out by hold_out",
    "held out by the probe",
    "shows the same picture as a held-out image",
    "in no fold of the split",
)


class NamesImages(Protocol):
    """What any section of a recipe says of a set of images."""

    @property
    def source(self) -> str | None:
        """One of the sources."""

    @property
    def root(self) -> str | None:
        """Folder of the images."""

    @property
    def taxonomy(self) -> str:
        """Its classes."""


@dataclass(frozen=True)
class ReadSet:
    """The usable images of a set, in no folds yet.

    Args:
        images: With the folds that the source itself knows.
        scan: Of all rows.
        notes: What a reader of the log should know.
    """

    images: CellImages
    scan: Scan
    notes: tuple[str, ...]


def set_key(section: NamesImages, options: BaseModel) -> Hashable:
    """Equal where two sections name the very same images with the same labels."""
    root = None if section.root is None else Path(section.root).resolve()
    return section.source, root, section.taxonomy, options.model_dump_json()


def read_set(section: NamesImages, options: BaseModel) -> ReadSet:
    """Find the images of a set and look at every file.

    Args:
        section: Names the set.
        options: Of its source.

    Raises:
        DataError: The source finds no images, or none can be read.
    """
    root = None if section.root is None else Path(section.root)
    found = SOURCES[str(section.source)].load(root, load_taxonomy(section.taxonomy), options)
    images, scan, notes = leave_out_rejected(found, scan_images(found))
    return ReadSet(images, scan, tuple(notes))


@dataclass(frozen=True)
class Looked:
    """A set with what its split says of each image.

    Args:
        name: Of the source.
        images, scan: Its usable images and what was found about them.
        why_not: Of each image why it is not drawn: its fold, or a reason; None of those that may be. Reasons are added
            while other sets are compared with it.
        notes: What a reader of the log should know.
    """

    name: str
    images: CellImages
    scan: Scan
    why_not: list[str | None]
    notes: tuple[str, ...]

    def mark(self, row: int, reason: str) -> bool:
        """Hold an image out unless it is already; whether it was not."""
        is_new = self.why_not[row] in (None, UNLISTED)
        if is_new:
            self.why_not[row] = reason
        return is_new


def look_at_source(named: NamedEntry, found: ReadSet) -> Looked:
    """Divide a source of the mixture as its entry says.

    Args:
        named: The source.
        found: Its images.

    Raises:
        DataError: The split cannot be used as asked, or too many files cannot be read.
    """
    entry, images = named.entry, found.images
    refuse_too_many_rejected(
        images, entry.max_rejected_share, f"data.sources.{named.name}.max_rejected_share"
    )
    if entry.split is None:
        # Folds that the source itself knows hold even where nobody asked for a split.
        own = [None if fold == "train" else fold for fold in images.folds]
        return Looked(named.name, images, found.scan, own, found.notes)
    split = assign_folds(
        images,
        split=entry.split,
        fractions=entry.fractions.model_dump(),
        seed=entry.split_seed,
        duplicates=found.scan.duplicates if entry.near_duplicates == "group" else None,
    )
    fold_of = dict(zip(split.images.column("path"), split.images.folds, strict=True))
    folds = [fold_of.get(path, UNLISTED) for path in images.column("path")]
    why_not = [None if fold == "train" else fold for fold in folds]
    return Looked(named.name, images, found.scan, why_not, (*found.notes, *split.notes))
