"""The images of a pretraining: found, looked at, freed of all that is held out, mixed; and a record of them.

No image of a validation, calibration or test fold is drawn, nor one that shows the same picture, whichever source
brings it. The list of what is drawn has the sha256 of every file, so that anybody can look an image up.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..data.cache import pack_images
from ..data.inspection.scan import Scan, scan_images
from ..data.loading import leave_out_rejected, refuse_too_many_rejected
from ..data.pictures import pictures_of
from ..data.samples import CellImages
from ..data.sources import SOURCES
from ..data.split_files import held_out_names
from ..data.splits import assign_folds, safe_cell
from ..errors import DataError
from ..taxonomy import load_taxonomy
from .held_out import rows_named, shows_held_out
from .mixture_section import MixturePlan, NamedEntry
from .view_dataset import DrawMasks, MixtureSampler, ViewDataset, shares_to_draws
from .views import ViewsSection

_PROMISE = (
    "no image of a validation, calibration or test fold of these sources, none that `hold_out` names, and none that "
    "shows the same picture as one of them that is in a source"
)
_NAMED, _COPY, _UNLISTED = (
    "held out by hold_out",
    "shows the same picture as a held-out image",
    "in no fold of the split",
)


@dataclass(frozen=True)
class MixtureSource:
    """A source and what is drawn from it.

    Args:
        plan: What the recipe says.
        images: All its usable images.
        sha256: Of each image's file.
        why_not: Of each image why it is not drawn: its fold, or a reason; None of those that are drawn.
        draws: Images it gives to an epoch.
    """

    plan: NamedEntry
    images: CellImages
    sha256: tuple[str, ...]
    why_not: tuple[str | None, ...]
    draws: int = 0

    @cached_property
    def rows(self) -> npt.NDArray[np.int64]:
        """Rows of `images` that are drawn; none where the weight is 0."""
        if self.plan.entry.weight == 0:
            return np.empty(0, np.int64)
        return np.array([row for row, why in enumerate(self.why_not) if why is None], np.int64)

    def listed(self) -> list[tuple[str, str, str]]:
        """(source, id, sha256 of the file) of the images that are drawn, sorted by id."""
        ids = self.images.column("id")
        return sorted((self.plan.name, ids[row], self.sha256[row]) for row in self.rows)

    def left_out(self) -> list[tuple[str, str, str]]:
        """(source, id, fold or reason) of the usable images that are not drawn."""
        ids = self.images.column("id")
        return [(self.plan.name, ids[row], why) for row, why in enumerate(self.why_not) if why is not None]

    def rejected(self) -> list[tuple[str, str, str]]:
        """(source, path, reason) of the files that cannot be used."""
        return [(self.plan.name, image.path, image.reason) for image in self.images.rejected]

    def record(self, draws: int) -> dict[str, Any]:
        """What the record of the mixture says of this source.

        Args:
            draws: Images of an epoch, of all sources.
        """
        entry = self.plan.entry
        return {
            "name": self.plan.name,
            "source": entry.source,
            "attribution": entry.attribution or self.images.attribution,
            "is_drawn": self.images.is_drawn,
            "split": None if entry.split is None else Path(entry.split).name,
            "images": len(self.rows),
            "share_of_draws": self.draws / draws,
            "left_out": dict(sorted(Counter(why for why in self.why_not if why is not None).items())),
            "unusable_files": len(self.images.rejected),
            "images_sha256": _digest(self.listed()),
        }


@dataclass(frozen=True)
class Mixture:
    """The images of a pretraining.

    Args:
        sources: In the order of the recipe.
        notes: What a reader of the log should know.
    """

    sources: tuple[MixtureSource, ...]
    notes: tuple[str, ...] = ()

    @property
    def images(self) -> int:
        """Images that are drawn."""
        return sum(len(source.rows) for source in self.sources)

    @property
    def weights(self) -> dict[str, float]:
        """Share of the draws of each source, by its name."""
        whole = sum(source.draws for source in self.sources)
        return {source.plan.name: source.draws / whole for source in self.sources}

    @property
    def ids(self) -> list[str]:
        """`source/id` of every row of `dataset_for`."""
        names = []
        for source in self.sources:
            ids = source.images.column("id")
            names += [f"{source.plan.name}/{ids[row]}" for row in source.rows]
        return names

    def dataset_for(self, views: ViewsSection, masks: DrawMasks, seed: int) -> ViewDataset:
        """The data set of the training.

        Args:
            views: How a picture becomes views.
            masks: Draws the masks of the global views of one picture.
            seed: Of both.
        """
        pictures = [pictures_of(source.images) for source in self.sources]
        return ViewDataset(pictures, [source.rows for source in self.sources], views, masks, seed=seed)

    def sampler(self, seed: int) -> MixtureSampler:
        """Draws the keys of `dataset_for`."""
        sizes = [len(source.rows) for source in self.sources]
        return MixtureSampler(sizes, [source.draws for source in self.sources], seed=seed)

    def fingerprint(self) -> str:
        """Changes with the images that are drawn, their content, their order and the draws from each source."""
        digest = hashlib.sha256()
        for source in self.sources:
            digest.update(json.dumps([source.plan.name, source.draws]).encode())
            digest.update("".join(source.sha256[row] for row in source.rows).encode())
        return digest.hexdigest()

    def record(self) -> dict[str, Any]:
        """What was pretrained on, without folders of this machine: plain values for JSON.

        `images_sha256` is the sha256 of the sorted third column of `write_list`, a line an image.
        """
        draws = sum(source.draws for source in self.sources)
        return {
            "images": self.images,
            "draws_per_epoch": draws,
            "held_out": _PROMISE,
            "images_sha256": _digest([row for source in self.sources for row in source.listed()]),
            "notes": list(self.notes),
            "sources": [source.record(draws) for source in self.sources],
        }

    def write_lists(self, folder: Path) -> None:
        """Write `images.csv` and `left_out.csv`."""
        self.write_list(folder / "images.csv")
        left_out = [row for source in self.sources for row in source.left_out()]
        rejected = [row for source in self.sources for row in source.rejected()]
        _write_csv(folder / "left_out.csv", ("source", "id", "reason"), [*left_out, *rejected])

    def write_list(self, path: str | Path) -> None:
        """Write `source,id,sha256` of every image that is drawn; the sum is that of its file."""
        listed = [row for source in self.sources for row in source.listed()]
        _write_csv(Path(path), ("source", "id", "sha256"), listed)


@dataclass(frozen=True)
class _Looked:
    """A source whose files were read, with what its split says of each image."""

    plan: NamedEntry
    images: CellImages
    scan: Scan
    why_not: list[str | None]
    notes: tuple[str, ...]


def load_mixture(plan: MixturePlan) -> Mixture:
    """Find and read every image once, and leave out what is held out.

    Args:
        plan: The data section of the recipe.

    Raises:
        DataError: Images or a split cannot be used as asked, too many files cannot be read, or a source has no image
            left.
    """
    looked = []
    for named in plan.entries:
        try:
            looked.append(_look(named))
        except DataError as error:
            raise DataError(f"data.sources.{named.name}: {error}") from error
    notes = [f"{source.plan.name}: {note}" for source in looked for note in source.notes]
    for file in plan.section.hold_out:
        notes.append(_hold_out(Path(file).expanduser(), looked))
    _leave_out_copies(looked)
    sources = [
        MixtureSource(
            source.plan,
            _packed(source.images, source.plan),
            tuple(value.hex() for value in source.scan.column("file_sha256")),
            tuple(source.why_not),
        )
        for source in looked
    ]
    return Mixture(_with_draws(sources, plan.section.images_per_epoch), tuple(notes))


def _look(named: NamedEntry) -> _Looked:
    entry = named.entry
    root = Path(entry.root) if entry.root is not None else None
    found = SOURCES[entry.source].load(root, load_taxonomy(entry.taxonomy), named.options)
    images, scan, notes = leave_out_rejected(found, scan_images(found))
    refuse_too_many_rejected(images, entry.max_rejected_share)
    if entry.split is None:
        # Folds that the source itself knows hold even where nobody asked for a split.
        own = [None if fold == "train" else fold for fold in images.folds]
        return _Looked(named, images, scan, own, tuple(notes))
    split = assign_folds(
        images,
        split=entry.split,
        fractions=entry.fractions.model_dump(),
        seed=entry.split_seed,
        duplicates=scan.duplicates if entry.near_duplicates == "group" else None,
    )
    fold_of = dict(zip(split.images.column("path"), split.images.folds, strict=True))
    folds = [fold_of.get(path, _UNLISTED) for path in images.column("path")]
    why_not = [None if fold == "train" else fold for fold in folds]
    return _Looked(named, images, scan, why_not, (*notes, *split.notes))


def _hold_out(file: Path, looked: list[_Looked]) -> str:
    """Mark what a split file names outside its training fold, and say how much of it was found."""
    names, found = held_out_names(file), 0
    for source in looked:
        for row in rows_named(names, source.images.column("path")):
            found += 1
            source.why_not[row] = source.why_not[row] or _NAMED
    if names and not found:
        raise DataError(
            f"data.hold_out: none of the {len(names)} images that {file} names outside its training fold is in a "
            "source, so copies of them could not be told; add their folder as a source of weight 0, or leave the file "
            "out"
        )
    return (
        f"hold_out: {file.name} names {len(names)} images outside its training fold; {found} images fit them"
    )


def _leave_out_copies(looked: list[_Looked]) -> None:
    """Mark images that show the same picture as a held-out one, whichever source that is in."""
    why_not = [why for source in looked for why in source.why_not]
    held_out = np.array([why not in (None, _UNLISTED) for why in why_not])
    copies = shows_held_out([source.scan for source in looked], held_out)
    start = 0
    for source in looked:
        for row in np.flatnonzero(copies[start : start + len(source.why_not)]):
            source.why_not[row] = source.why_not[row] or _COPY
        start += len(source.why_not)


def _packed(images: CellImages, named: NamedEntry) -> CellImages:
    cache = named.entry.cache
    # The file holds the whole set, so that a fine-tuning on it reads the same one.
    return images if cache == "none" else pack_images(images, cache)


def _with_draws(sources: list[MixtureSource], images_per_epoch: int | None) -> tuple[MixtureSource, ...]:
    weights = [source.plan.entry.weight for source in sources]
    for source, weight in zip(sources, weights, strict=True):
        if not len(source.rows) and weight != 0:
            raise DataError(
                f"data.sources.{source.plan.name}: no image of {source.images.root} is left to pretrain on "
                f"({_in_words(source)}); leave it out, or set its weight to 0 if it is there for what it holds out"
            )
    sizes = [len(source.rows) for source in sources]
    shares = [float(size if weight is None else weight) for size, weight in zip(sizes, weights, strict=True)]
    whole = sum(sizes) if images_per_epoch is None else images_per_epoch
    draws = shares_to_draws(shares, whole)
    for source, share, count in zip(sources, shares, draws, strict=True):
        if share and not count:
            raise DataError(
                f"data.sources.{source.plan.name}: an epoch of {whole} images draws none of it; raise its weight or "
                "data.images_per_epoch"
            )
    return tuple(replace(source, draws=count) for source, count in zip(sources, draws, strict=True))


def _in_words(source: MixtureSource) -> str:
    return ", ".join(f"{why}: {count}" for why, count in Counter(source.why_not).items())


def _write_csv(path: Path, header: tuple[str, str, str], rows: list[tuple[str, str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows((source, safe_cell(name), last) for source, name, last in rows)


def _digest(listed: list[tuple[str, str, str]]) -> str:
    return hashlib.sha256(
        "".join(f"{sha}\n" for sha in sorted(sha for _, _, sha in listed)).encode()
    ).hexdigest()
