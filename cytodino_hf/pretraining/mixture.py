"""The images of a pretraining: found, looked at, freed of all that is held out, mixed; and a record of them.

No image of a validation, calibration or test fold is drawn, nor one that shows the same picture, whichever source
brings it. The list of what is drawn has the sha256 of every file, so that anybody can look an image up.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..data.cache import pack_images
from ..data.pictures import pictures_of
from ..data.samples import CellImages
from ..data.splits import safe_cell
from ..errors import DataError
from .held_out import hold_out_listed, leave_out_copies
from .history import LIST_COLUMNS, LIST_FILE, History, digest_of
from .labelled import LabelledImages
from .looked import Looked, look_at_source, read_set, set_key
from .mixture_section import MixturePlan, NamedEntry
from .view_dataset import DrawMasks, MixtureSampler, ViewDataset, shares_to_draws
from .views import ViewsSection

_PROMISE = (
    "no image of a validation, calibration or test fold of these sources{}, none that `hold_out` names, and none that "
    "shows the same picture as one of them that is in {}"
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
            "images_sha256": digest_of(sha256 for _, _, sha256 in self.listed()),
        }


@dataclass(frozen=True)
class Mixture:
    """The images of a pretraining.

    Args:
        sources: In the order of the recipe.
        notes: What a reader of the log should know.
        labelled: The labelled set of the probe, of which only the training fold may be drawn; None without a probe.
        history: What the backbone that is gone on from has seen; None where it starts from random weights.
    """

    sources: tuple[MixtureSource, ...]
    notes: tuple[str, ...] = ()
    labelled: LabelledImages | None = None
    history: History | None = None

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
        """Changes with the images that are drawn, their content, their order and the draws from each source.

        So it does with the folds that the probe reads.
        """
        digest = hashlib.sha256()
        for source in self.sources:
            digest.update(json.dumps([source.plan.name, source.draws]).encode())
            digest.update("".join(source.sha256[row] for row in source.rows).encode())
        if self.labelled is not None:
            digest.update(self.labelled.identity().encode())
        return digest.hexdigest()

    def record(self) -> dict[str, Any]:
        """What was pretrained on, without folders of this machine: plain values for JSON.

        `images_sha256` is the sha256 of the sorted third column of `write_list`, a line an image of this pretraining.
        """
        draws = sum(source.draws for source in self.sources)
        return {
            "images": self.images,
            "draws_per_epoch": draws,
            "held_out": self._promise(),
            "images_sha256": digest_of(row[-1] for source in self.sources for row in source.listed()),
            "notes": list(self.notes),
            "sources": [source.record(draws) for source in self.sources],
        }

    def _promise(self) -> str:
        if self.labelled is None:
            return _PROMISE.format("", "a source")
        return _PROMISE.format(" or of the probe's labelled set", "a source or in that set")

    def write_lists(self, folder: Path) -> None:
        """Write `images.csv` and `left_out.csv`."""
        self.write_list(folder / LIST_FILE)
        left_out = [row for source in self.sources for row in source.left_out()]
        rejected = [row for source in self.sources for row in source.rejected()]
        _write_csv(folder / "left_out.csv", ("source", "id", "reason"), [*left_out, *rejected])

    def write_list(self, path: str | Path) -> None:
        """Write `source,id,sha256,pretraining` of every image that is drawn, after those the backbone saw before.

        The sum is that of the file; the pretrainings are counted from 1, the first that is listed.
        """
        earlier = list(self.history.seen or ()) if self.history is not None else []
        number = str(1 + max((int(row[-1]) for row in earlier), default=0))
        listed = [row for source in self.sources for row in source.listed()]
        _write_csv(Path(path), LIST_COLUMNS, [*earlier, *((*row, number) for row in listed)])


def load_mixture(
    plan: MixturePlan, labelled: LabelledImages | None = None, history: History | None = None
) -> Mixture:
    """Find and read every image once, and leave out what is held out.

    Args:
        plan: The data section of the recipe.
        labelled: The labelled set of the probe: what it does not train on is held out too.
        history: What the backbone that is gone on from has seen: no image that is held out now may be in it.

    Raises:
        DataError: Images or a split cannot be used as asked, too many files cannot be read, a source has no image
            left, or a held-out image was pretrained on before.
    """
    looked = [_look(named, labelled) for named in plan.entries]
    notes = [f"{source.name}: {note}" for source in looked for note in source.notes]
    if labelled is not None:
        keys = [set_key(named.entry, named.options) for named in plan.entries]
        notes += [note] if (note := labelled.hold_out(looked, keys)) is not None else []
    notes += [hold_out_listed(Path(file).expanduser(), looked) for file in plan.section.hold_out]
    leave_out_copies(looked)
    notes += [history.compare(looked)] if history is not None else []
    sources = [
        MixtureSource(
            named,
            _packed(source.images, named),
            tuple(value.hex() for value in source.scan.column("file_sha256")),
            tuple(source.why_not),
        )
        for named, source in zip(plan.entries, looked, strict=False)  # the probe's set may come after them
    ]
    drawn = _with_draws(sources, plan.section.images_per_epoch)
    return Mixture(drawn, tuple(notes), labelled, history)


def _look(named: NamedEntry, labelled: LabelledImages | None) -> Looked:
    try:
        if labelled is not None and labelled.key == set_key(named.entry, named.options):
            return look_at_source(named, labelled.whole)
        return look_at_source(named, read_set(named.entry, named.options))
    except DataError as error:
        raise DataError(f"data.sources.{named.name}: {error}") from error


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


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows([safe_cell(cell) for cell in row] for row in rows)
