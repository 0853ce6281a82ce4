"""A user's own images: class folders, or a table that says what each image is and what it belongs to."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from ...errors import DataError
from ...taxonomy import CellClass, Taxonomy
from ..samples import FOLDS, CellImages, build_cell_images
from ..tables import first_few, read_table
from .base import Source, SourceOptions
from .folders import (
    IMAGE_SUFFIXES,
    FoundImages,
    find_class_root,
    index_all_images,
    index_class_folders,
    list_folder,
)

#: The one class of images without labels.
UNLABELLED = Taxonomy("unlabelled", (CellClass("unlabelled", "no label", "unlabelled"),))

_NEEDED = ("path", "label")
_OPTIONAL = ("group", "fold", "id")
_GROUP_KIND = "group"  # where the user does not say what a group is


class Options(SourceOptions):
    """What a recipe may choose about a folder of images."""

    table: str | None = Field(
        default=None,
        description="CSV or Parquet file, relative to the root (or absolute), with the columns path "
        "(relative to the root), label and, if wanted, group, fold, id. None: the folder is the class.",
    )
    labels: Literal["given", "none"] = Field(
        default="given",
        description="`none`: every image below the root, whatever its folder, and a table needs no label "
        "column. Such images can be pretrained on, not fine-tuned.",
    )
    group_kind: str | None = Field(
        default=None,
        min_length=1,
        description='What a group is: "patient", "slide", ... Only "patient" makes a split patient-safe.',
    )
    group_pattern: str | None = Field(
        default=None,
        description="Regular expression searched in each path; its first bracketed part is the group, such "
        'as "^[^/]+/([^/]+)/" for <CLASS>/<PATIENT>/image.png.',
    )
    label_map: dict[str, str] | None = Field(
        default=None,
        description="Folder or label name -> class code of the taxonomy. Names not in it are codes.",
    )

    @field_validator("group_pattern")
    @classmethod
    def _has_one_group(cls, pattern: str | None) -> str | None:
        if pattern is None:
            return None
        try:
            groups = re.compile(pattern).groups
        except re.error as error:
            raise ValueError(f"no regular expression: {error}") from error
        if groups < 1:
            raise ValueError("needs a part in brackets ( ) that is the group")
        return pattern


def load(root: Path | None, taxonomy: Taxonomy, options: Options) -> CellImages:
    """Index a folder of images.

    Args:
        root: The folder the paths are relative to; without `table`, the folder of the class folders.
        taxonomy: Classes allowed; the set may hold fewer. Of no effect on images without labels, which all are of
            the one class of `UNLABELLED`.
        options: See `Options`.

    Returns:
        Images, with groups where the table or `group_pattern` gives them and folds where the table gives
        them.

    Raises:
        DataError: No root; an unknown or empty class; a mistake in the table or the options. Mistakes of one
            kind are collected, counted, and the first five named.
    """
    if root is None:
        raise DataError("source 'image_folder' needs the folder of the images: set data.root")
    if options.labels == "none":
        taxonomy = UNLABELLED
        if options.label_map is not None:
            raise DataError(
                f"{root}: data.image_folder.labels is 'none', and label_map is set: leave one out"
            )
    _check_label_map(options.label_map, taxonomy)
    if options.table is None:
        found = _unlabelled(root) if options.labels == "none" else _class_folders(root, taxonomy, options)
        return build_cell_images(
            found.paths,
            found.labels,
            root=root,
            source="image_folder",
            taxonomy=taxonomy,
            groups=_groups_from_paths(found.paths, options.group_pattern, root),
            group_kind=_group_kind(options, options.group_pattern is not None, root),
            rejected=sorted(found.rejected, key=lambda image: image.path),
        )
    return _load_table(root, taxonomy, options, root / options.table)


def _class_folders(root: Path, taxonomy: Taxonomy, options: Options) -> FoundImages:
    _refuse_wrapper(root, {*taxonomy.codes, *(options.label_map or ())})
    found = index_class_folders(root, taxonomy, options.label_map)
    _refuse_unused(options.label_map, {path.split("/", 1)[0] for path in found.paths}, f"{root}: folders")
    return found


def _unlabelled(root: Path) -> FoundImages:
    found = index_all_images(root)
    found.labels = list(UNLABELLED.codes) * len(found.paths)
    return found


def _load_table(root: Path, taxonomy: Taxonomy, options: Options, path: Path) -> CellImages:
    columns = read_table(path)
    if options.labels == "none":
        columns["label"] = [UNLABELLED.codes[0]] * len(next(iter(columns.values())))
    _check_columns(columns, path)
    _check_cells(columns, root, path)
    paths = [str(name) for name in columns["path"]]
    names = [str(label) for label in columns["label"]]
    _refuse_unused(options.label_map, set(names), f"{path}: labels")
    if "group" in columns and options.group_pattern is not None:
        raise DataError(
            f"{path}: has a group column, and data.image_folder.group_pattern is set: leave one out"
        )
    has_groups = "group" in columns or options.group_pattern is not None
    return build_cell_images(
        paths,
        [(options.label_map or {}).get(name, name) for name in names],
        root=root,
        source="image_folder",
        taxonomy=taxonomy,
        groups=columns.get("group") or _groups_from_paths(paths, options.group_pattern, root),
        group_kind=_group_kind(options, has_groups, path),
        folds=columns.get("fold"),
        ids=[str(name) for name in columns["id"]] if "id" in columns else None,
    )


def _check_columns(columns: dict[str, list[str | None]], path: Path) -> None:
    if missing := [name for name in _NEEDED if name not in columns]:
        raise DataError(
            f"{path}: columns missing: {', '.join(missing)} (found: {', '.join(columns)}). Needed: "
            f"{', '.join(_NEEDED)}; optional: {', '.join(_OPTIONAL)}; separated by commas, named in line 1."
        )
    absent = [name for name in _OPTIONAL if name not in columns]
    for name in columns:
        # Other columns are a user's own business, but `groups` for `group` would silently cost the promise.
        if name not in _NEEDED + _OPTIONAL and (near := difflib.get_close_matches(name, absent, 1, 0.75)):
            raise DataError(
                f"{path}: column {name!r} is not known; rename it to {near[0]!r}, or to something else"
            )


def _check_cells(columns: dict[str, list[str | None]], root: Path, path: Path) -> None:
    problems = []

    def collect(what: str, wrong: Sequence[str]) -> None:
        if wrong:
            problems.append(f"{len(wrong)} {what}: {first_few(wrong)}")

    for name in (*_NEEDED, "id"):
        # The header is line 1 of a CSV; in Parquet these are rows counted from 2 as well.
        empty = [f"line {i}" for i, cell in enumerate(columns.get(name, ()), start=2) if cell is None]
        collect(f"rows without {name}", empty)
    folds = {fold for fold in columns.get("fold", ()) if fold is not None and fold not in FOLDS}
    collect(f"unknown folds (allowed: {', '.join(FOLDS)}, or empty)", sorted(folds))
    paths = [cell for cell in columns["path"] if cell is not None]
    outside = {name for name in paths if name.startswith("/") or ".." in name.split("/")}
    collect(f"paths not relative to {root}", sorted(outside))
    collect(f"files not found in {root}", _missing_files(root, [p for p in paths if p not in outside]))
    if problems:
        raise DataError("\n".join([f"{path}: the table cannot be used", *(f"  - {p}" for p in problems)]))


def _missing_files(root: Path, paths: Sequence[str]) -> list[str]:
    """Paths without a file. Each folder is listed once: asking for every file is slow on network disks."""
    wanted: dict[str, list[str]] = {}
    for path in paths:
        folder, _, name = path.rpartition("/")
        wanted.setdefault(folder, []).append(name)
    missing = []
    for folder, names in wanted.items():
        there = {entry.name for entry in list_folder(root / folder)} if (root / folder).is_dir() else set()
        missing += [
            f"{folder}/{name}".lstrip("/")
            for name in names
            # A hidden file is not listed, but a table may name it on purpose.
            if name not in there and not (root / folder / name).is_file()
        ]
    return sorted(missing)


def _check_label_map(label_map: dict[str, str] | None, taxonomy: Taxonomy) -> None:
    if unknown := sorted(set((label_map or {}).values()) - set(taxonomy.codes)):
        raise DataError(
            f"data.image_folder.label_map names classes unknown to taxonomy {taxonomy.name!r}: {', '.join(unknown)}. "
            f"Known: {', '.join(taxonomy.codes)}."
        )


def _refuse_wrapper(root: Path, names: set[str]) -> None:
    """A root that is a level too high would make its one folder a class."""
    place = find_class_root(root, names)
    if place is not None and place[0] != root:
        raise DataError(f"{root}: its class folders lie further down; set data.root to {place[0]}")


def _refuse_unused(label_map: dict[str, str] | None, found: set[str], where: str) -> None:
    if unused := sorted(set(label_map or {}) - found):
        raise DataError(
            f"{where} named in data.image_folder.label_map do not occur: {first_few(unused)} "
            f"(found: {first_few(sorted(found))})"
        )


def _groups_from_paths(paths: Sequence[str], pattern: str | None, root: Path) -> list[str | None] | None:
    if pattern is None:
        return None
    matches = [re.search(pattern, path) for path in paths]
    groups = [match.group(1) if match else None for match in matches]
    if without := sorted(path for path, group in zip(paths, groups, strict=True) if not group):
        raise DataError(
            f"{root}: data.image_folder.group_pattern {pattern!r} finds no group in {len(without)} of "
            f"{len(paths)} paths: {first_few(without)}"
        )
    return groups


def _group_kind(options: Options, has_groups: bool, where: Path) -> str | None:
    if options.group_kind is not None and not has_groups:
        raise DataError(
            f"{where}: data.image_folder.group_kind is {options.group_kind!r}, but nothing gives groups: add a "
            "group column to the table, or set data.image_folder.group_pattern"
        )
    return (options.group_kind or _GROUP_KIND) if has_groups else None


SOURCE = Source(
    summary=f"your own images ({' '.join(sorted(IMAGE_SUFFIXES))}): class folders, a table, or without labels",
    options=Options,
    load=load,
)
