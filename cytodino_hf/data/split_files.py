"""Read a split from a file: path and fold of every image, or only the names of the test images."""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import DataError
from .samples import FOLDS, CellImages
from .sources.folders import has_image_suffix
from .tables import first_few, read_lines, read_table

_PATH_COLUMNS = ("path", "image_path", "image", "file_name", "filename", "file", "name")


@dataclass(frozen=True)
class ListedFolds:
    """What a split file says about the images at hand.

    Args:
        folds: Fold of every row of the table of images; None where the file does not list it.
        is_test_list: The file names test images only; the other folds are to be drawn from the rest.
        notes: What a reader of the report should know.
    """

    folds: list[str | None]
    is_test_list: bool
    notes: tuple[str, ...]


@dataclass
class _Matches:
    """Row of every listed name (None: no image of the table), and the names that need a word."""

    rows: list[int | None] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unclear: list[str] = field(default_factory=list)
    rejected: list[str] = field(default_factory=list)
    by_name_alone: int = 0


def read_split_file(path: Path, images: CellImages) -> ListedFolds:
    """Read a split file.

    A table with `path, label, fold` gives every image its fold; its paths are exactly those of the images. A
    table without `fold`, or one name per line, lists test images by path or by file name. The label may be
    missing; other columns are ignored.

    Raises:
        DataError: A listed image is not there, is listed twice, or has another label; names the first five.
    """
    columns = _read_columns(path)
    names = [name or "" for name in columns[_path_column(columns, path)]]
    is_test_list = "fold" not in columns
    matches = _match_names(names, images) if is_test_list else _match_paths(names, images)
    _refuse_mismatches(matches, images, path)
    _refuse_other_labels(matches.rows, names, columns.get("label"), images, path)
    folds: list[str | None] = [None] * len(images.dataset)
    for row, fold in zip(matches.rows, columns.get("fold", ["test"] * len(names)), strict=True):
        if fold not in FOLDS:
            raise DataError(f"{path}: unknown fold {fold or ''!r}; folds are {', '.join(FOLDS)}")
        if row is not None:
            folds[row] = fold
    unlisted = 0 if is_test_list else folds.count(None)
    return ListedFolds(folds, is_test_list, tuple(_notes(matches, path.name, unlisted)))


def held_out_names(path: Path) -> list[str]:
    """What a split file names outside the training fold; of a list of test images all of it.

    Args:
        path: As for `read_split_file`; it is not compared with any images.

    Raises:
        DataError: It cannot be read, has no column with paths, or names an unknown fold.
    """
    columns = _read_columns(path)
    names = columns[_path_column(columns, path)]
    folds = columns.get("fold", ["test"] * len(names))
    if unknown := {fold or "" for fold in folds if fold not in FOLDS}:
        raise DataError(f"{path}: unknown fold {min(unknown)!r}; folds are {', '.join(FOLDS)}")
    return [name for name, fold in zip(names, folds, strict=True) if name and fold != "train"]


def _path_column(columns: Mapping[str, Sequence[str | None]], path: Path) -> str:
    for name in _PATH_COLUMNS:
        if name in columns:
            return name
    raise DataError(
        f"{path}: no column with paths (found: {', '.join(columns)}). A split has the columns path, "
        "label, fold; a list of test images has one path or file name per line."
    )


def _read_columns(path: Path) -> dict[str, list[str | None]]:
    if path.suffix.lower() == ".parquet":
        return read_table(path)
    lines = read_lines(path)
    if not lines:
        raise DataError(f"{path}: has no rows")
    if "," in lines[0] or ";" in lines[0]:
        return read_table(path)
    names = [line.strip('"') for line in lines]
    # A column of names may have a heading; names of images have a suffix, headings have none.
    has_heading = not has_image_suffix(names[0]) and any(map(has_image_suffix, names))
    return {"path": list(names[1:] if has_heading else names)}


def _match_paths(names: Sequence[str], images: CellImages) -> _Matches:
    """Rows by path and nothing else."""
    row_of_path = {path: row for row, path in enumerate(images.column("path"))}
    rejected = {image.path for image in images.rejected}
    matches = _Matches(rows=[row_of_path.get(name) for name in names])
    for name, row in zip(names, matches.rows, strict=True):
        if row is None:
            (matches.rejected if name in rejected else matches.missing).append(name)
    return matches


def _match_names(names: Sequence[str], images: CellImages) -> _Matches:
    """Rows by path, else by file name, else by file name without suffix.

    Published lists carry the paths of another machine and other folders (no buckets, `test/`), so that often
    the file name alone can be compared; a name that fits several images is refused.
    """
    paths = images.column("path")
    row_of_path = {path: row for row, path in enumerate(paths)}
    rows_of_name: dict[str, list[int]] = {}
    for row, path in enumerate(paths):
        name = posixpath.basename(path)
        for key in {name, posixpath.splitext(name)[0]}:
            rows_of_name.setdefault(key, []).append(row)
    rejected = {posixpath.basename(image.path) for image in images.rejected}
    rejected |= {posixpath.splitext(name)[0] for name in rejected}
    matches = _Matches()
    for listed in names:
        name = posixpath.basename(listed)
        is_path = listed in row_of_path
        candidates = [row_of_path[listed]] if is_path else rows_of_name.get(name, [])
        matches.rows.append(candidates[0] if len(candidates) == 1 else None)
        if len(candidates) > 1:
            matches.unclear.append(listed)
        elif not candidates:
            (matches.rejected if name in rejected else matches.missing).append(listed)
        elif not is_path and name != listed:
            matches.by_name_alone += 1
    return matches


def _refuse_mismatches(matches: _Matches, images: CellImages, path: Path) -> None:
    missing = [name or "(empty)" for name in matches.missing]
    _refuse(missing, f"{path}: %d listed images are not among the images in {images.root}")
    _refuse(
        matches.unclear, f"{path}: %d file names fit several images; give paths relative to the data root"
    )
    counts = Counter(matches.rows)
    counts.pop(None, None)
    if max(counts.values(), default=0) > 1:
        paths = images.column("path")
        repeated = [paths[row] for row, count in counts.items() if row is not None and count > 1]
        _refuse(repeated, f"{path}: %d images are listed more than once")


def _refuse_other_labels(
    rows: Sequence[int | None],
    names: Sequence[str],
    labels: Sequence[str | None] | None,
    images: CellImages,
    path: Path,
) -> None:
    if labels is None:
        return
    codes = images.taxonomy.codes
    own = images.labels
    wrong = [
        f"{name} ({label}, here {codes[own[row]]})"
        for row, name, label in zip(rows, names, labels, strict=True)
        if row is not None and label != codes[own[row]]
    ]
    _refuse(wrong, f"{path}: %d images have another label than in {images.root}")


def _refuse(names: Sequence[str], what: str) -> None:
    if names:
        raise DataError(f"{what % len(names)}: {first_few(names)}")


def _notes(matches: _Matches, file: str, unlisted: int) -> list[str]:
    notes = []
    if matches.rejected:
        few = first_few(matches.rejected)
        notes.append(f"{len(matches.rejected)} images listed in {file} were left out by the source: {few}")
    if matches.by_name_alone:
        whole = len(matches.rows)
        notes.append(f"{matches.by_name_alone} of {whole} paths in {file} were recognised by file name alone")
    if unlisted:
        notes.append(f"{unlisted} images are not listed in {file} and were left out")
    return notes
