"""Divide an image set into folds, and say in words what the division promises."""

from __future__ import annotations

import csv
import difflib
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError
from .allotment import draw_folds
from .inspection.near_duplicates import Duplicates
from .kept_together import duplicate_notes, refuse_divided_duplicates, united_groups
from .samples import FOLDS, CellImages
from .split_files import read_split_file
from .tables import first_few

#: Ways to split that need no file.
SPLITS = ("stratified", "source")


@dataclass(frozen=True)
class Split:
    """Images with a fold each, and what may be said about them.

    Args:
        images: Every row has a fold; rows without one are gone, and classes without a row too.
        promise: One sentence for the report: what kind of leak the split excludes.
        notes: Sentences for the report: classes missing from folds, images left out.
        duplicates: Clusters of rows of `images` that show one picture; empty too where nobody looked.
    """

    images: CellImages
    promise: str
    notes: tuple[str, ...]
    duplicates: tuple[tuple[int, ...], ...] = ()

    def fingerprint(self) -> str:
        """Changes where an image, a label, a group or a fold does."""
        return self.images.fingerprint()

    def write_lists(self, folder: Path) -> None:
        """Write `split.csv`, `rejected.csv` and `near_duplicates.csv`."""
        self.to_csv(folder / "split.csv")
        self.rejected_to_csv(folder / "rejected.csv")
        self.duplicates_to_csv(folder / "near_duplicates.csv")

    def counts(self) -> dict[str, dict[str, int]]:
        """Images per fold and class code; all folds and classes named."""
        codes = self.images.taxonomy.codes
        found = Counter(zip(self.images.folds, self.images.labels, strict=True))
        return {fold: {code: found[fold, label] for label, code in enumerate(codes)} for fold in FOLDS}

    def to_csv(self, path: str | Path) -> None:
        """Write `path, label, fold, group`, sorted by path: a file that `assign_folds` takes as a split."""
        codes = self.images.taxonomy.codes
        columns = (self.images.column(name) for name in ("path", "label", "fold", "group"))
        rows = sorted(zip(*columns, strict=True))
        _write_csv(
            Path(path),
            ("path", "label", "fold", "group"),
            ((name, codes[label], fold, group) for name, label, fold, group in rows),
        )

    def rejected_to_csv(self, path: str | Path) -> None:
        """Write `path, reason` of every file that was left out."""
        rows = sorted((safe_cell(image.path), image.reason) for image in self.images.rejected)
        _write_csv(Path(path), ("path", "reason"), rows)

    def duplicates_to_csv(self, path: str | Path) -> None:
        """Write `cluster, path, label, fold` of every image that shows the same picture as another one."""
        codes, labels = self.images.taxonomy.codes, self.images.labels
        paths, folds = self.images.column("path"), self.images.folds
        _write_csv(
            Path(path),
            ("cluster", "path", "label", "fold"),
            (
                (number, safe_cell(paths[row]), codes[labels[row]], folds[row])
                for number, cluster in enumerate(self.duplicates, start=1)
                for row in cluster
            ),
        )


def safe_cell(path: str) -> str:
    """The same path, never begun by a sign that a spreadsheet takes for a formula."""
    return f"./{path}" if path[:1] in "=+-@\t\r" else path


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


def assign_folds(
    images: CellImages,
    *,
    split: str,
    fractions: Mapping[str, float],
    seed: int,
    duplicates: Duplicates | None = None,
) -> Split:
    """Give every image one fold.

    Args:
        images: The image set. Its groups, where it has any, are never divided.
        split: "stratified": drawn, class by class. "source": the folds the source came with. Otherwise a
            file: a CSV `path, label, fold`, or a list of test images (the other folds are then drawn from
            the rest).
        fractions: Share of each fold in a draw, sum 1. Without effect where the folds are given.
        seed: Of the draw.
        duplicates: Rows of `images` that show one picture: they are never divided either. None where nobody looked.

    Returns:
        The split. A class with fewer images than folds goes to train first, then to test, validation,
        calibration.

    Raises:
        DataError: No such split; a file that does not fit the images; a group or the images of one picture in two
            folds; an empty training fold; fractions that are no shares of one whole.
    """
    if split == "stratified":
        _check_fractions(fractions)
        nothing = [None] * len(images.dataset)
        folds, notes = _draw(images, nothing, united_groups(images, duplicates), fractions, seed), []
        if any(images.folds):
            notes.append("the folds that the source gives are not used (split 'stratified')")
    elif split == "source":
        folds, notes = images.folds, []
        if not any(folds):
            raise DataError(
                f"source {images.source!r} gives no folds for split 'source': add a fold column to its "
                "table, or choose split 'stratified' or a file"
            )
        if unlisted := folds.count(None):
            notes.append(f"{unlisted} images without a fold were left out")
    else:
        folds, notes = _folds_from_file(images, split, fractions, seed, duplicates)
    _refuse_divided_groups(images, folds, split)
    refuse_divided_duplicates(images, folds, duplicates, split)
    return _finish(images, folds, [*notes, *duplicate_notes(images, duplicates)], duplicates)


def _draw(
    images: CellImages,
    folds: Sequence[str | None],
    groups: Sequence[str] | None,
    fractions: Mapping[str, float],
    seed: int,
) -> list[str | None]:
    """Draw a fold for the rows that have none."""
    drawn = list(folds)
    rows = [row for row, fold in enumerate(folds) if fold is None]
    if not rows:
        return drawn
    paths, labels = images.column("path"), images.labels
    indices = draw_folds(
        [paths[row] for row in rows],
        np.array([labels[row] for row in rows]),
        None if groups is None else [groups[row] for row in rows],
        fractions,
        seed,
    )
    for row, index in zip(rows, indices, strict=True):
        drawn[row] = FOLDS[index]
    return drawn


def _folds_from_file(
    images: CellImages,
    split: str,
    fractions: Mapping[str, float],
    seed: int,
    duplicates: Duplicates | None,
) -> tuple[list[str | None], list[str]]:
    path = Path(split).expanduser()
    if not path.is_file():
        near = difflib.get_close_matches(split, SPLITS, 1)
        raise DataError(
            f"split {split!r} is neither {' nor '.join(map(repr, SPLITS))} nor a file that exists"
            + (f"; did you mean {near[0]!r}?" if near else "")
        )
    listed = read_split_file(path, images)
    if not listed.is_test_list:
        return listed.folds, list(listed.notes)
    _check_fractions(fractions)
    rest = {fold: share for fold, share in fractions.items() if fold != "test"}
    whole = math.fsum(rest.values())
    # A group with a test image has no other fold to go to: its unlisted images are refused below, not drawn.
    groups = images.groups
    if groups is not None:
        tested = {group for group, fold in zip(groups, listed.folds, strict=True) if fold is not None}
        divided = {g for g, fold in zip(groups, listed.folds, strict=True) if fold is None and g in tested}
        _refuse_groups(divided, images, split)
    refuse_divided_duplicates(images, listed.folds, duplicates, split, unlisted="not listed")
    shares = {fold: share / whole for fold, share in rest.items()}
    folds = _draw(images, listed.folds, united_groups(images, duplicates), shares, seed)
    return folds, [*listed.notes, f"test images are those named in {path.name}; the other folds are drawn"]


def _check_fractions(fractions: Mapping[str, float]) -> None:
    if unknown := sorted(set(fractions) - set(FOLDS)):
        raise DataError(f"fractions of unknown folds: {', '.join(unknown)}; folds are {', '.join(FOLDS)}")
    total = math.fsum(fractions.values())
    if not all(0 <= share <= 1 for share in fractions.values()) or abs(total - 1) > 1e-6:
        raise DataError(f"fractions must lie in 0..1 and sum to 1, not {total:g}: {dict(fractions)}")
    if fractions.get("train", 0) <= 0:
        raise DataError("the fraction of train must be above 0")


def _refuse_divided_groups(images: CellImages, folds: Sequence[str | None], split: str) -> None:
    if images.groups is None:
        return
    pairs = {pair for pair in zip(images.groups, folds, strict=True) if pair[1] is not None}
    counts = Counter(group for group, _ in pairs)
    _refuse_groups({group for group, count in counts.items() if count > 1}, images, split)


def _refuse_groups(divided: set[str], images: CellImages, split: str) -> None:
    if divided:
        raise DataError(
            f"split {split!r} puts {len(divided)} groups ({images.group_kind}) into more than one fold: "
            f"{first_few(sorted(divided))}. Give all images of a group one fold."
        )


def _finish(
    images: CellImages, folds: Sequence[str | None], notes: list[str], duplicates: Duplicates | None
) -> Split:
    rows = [row for row, fold in enumerate(folds) if fold is not None]
    if "train" not in folds:
        raise DataError(
            f"the split leaves no image for training (folds used: {sorted({fold for fold in folds if fold})})"
        )
    kept = images.with_folds(folds)
    if len(rows) < len(folds):
        kept = kept.select(rows).narrowed()
        if gone := sorted(set(images.taxonomy.codes) - set(kept.taxonomy.codes)):
            notes.append(f"classes without an image in any fold were left out: {', '.join(gone)}")
    promise, promise_notes = _promise(kept)
    if duplicates is not None:
        promise += "; near-duplicates share a fold"
    split = Split(kept, promise, (), _clusters_of_rows(duplicates, rows))
    return replace(split, notes=(*notes, *promise_notes, *_missing(split.counts())))


def _clusters_of_rows(duplicates: Duplicates | None, rows: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """Clusters among some rows, counted from 0 among these; what is left alone is in none."""
    if duplicates is None:
        return ()
    place = {row: number for number, row in enumerate(rows)}
    clusters = ([place[row] for row in cluster if row in place] for cluster in duplicates.clusters())
    return tuple(tuple(cluster) for cluster in clusters if len(cluster) > 1)


def _missing(counts: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Name the folds without images, and the classes missing from the other folds."""
    filled = [fold for fold in FOLDS if any(counts[fold].values())]
    notes = [f"the fold {fold} has no images" for fold in FOLDS if fold not in filled]
    small = []
    for code in counts["train"]:
        if absent := [fold for fold in filled if not counts[fold][code]]:
            total = sum(counts[fold][code] for fold in FOLDS)
            small.append(f"{code} ({total} image{'s' * (total > 1)}: none in {', '.join(absent)})")
    if small:
        notes.append(f"classes missing from a fold: {'; '.join(small)}")
    return notes


def _promise(images: CellImages) -> tuple[str, list[str]]:
    kind = images.group_kind
    if kind is None:
        return "not patient-safe: no patient ids are known for these images", []
    unknown = images.column("group").count(None)
    notes = [f"{unknown} images have no {kind} id; each counts as a {kind} of its own"] if unknown else []
    if kind != "patient":
        return f"by {kind}: no {kind} is in two folds; not by patient", notes
    if unknown:
        return (
            f"by patient where the patient is known ({unknown} of {len(images.dataset)} images: unknown)",
            notes,
        )
    return "by patient: no patient is in two folds", notes
