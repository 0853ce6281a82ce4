"""Any image-classification set of the Hugging Face Hub, by id and commit: downloaded once, then read as files."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from ...errors import DataError
from ...files import read_json
from ...taxonomy import Taxonomy
from ..samples import FOLDS, CellImages, RejectedImage, build_cell_images
from ..tables import first_few
from ..user_cache import user_cache
from . import mll
from .base import Source, SourceOptions
from .folders import find_class_root, index_class_folders
from .hub_download import Asked, fetch_commit, licence_of, newest_commit
from .hub_unpack import RECORD, TABLE, Columns, unpack_rows

#: The MLL set as Parquet, labelled by the codes of taxonomy `mll`, with folds of its own (137,093 / 17,146 / 17,135).
MLL_ON_HUB = "ekim15/bone_marrow_cell_dataset"
# Pinned so that a run can be repeated: a branch may hold other images tomorrow.
_PINNED = {MLL_ON_HUB: "a9c0cf3bf5ea1f0b502f50de40fece30a82f3aed"}
_SPLIT_TO_FOLD = {
    **{fold: fold for fold in FOLDS},
    "val": "validation",
    "valid": "validation",
    "dev": "validation",
}
_GROUP_KIND = "group"  # where the user does not say what a group is


class Options(SourceOptions):
    """What a recipe may choose about a set of the Hub."""

    id: str = Field(default=MLL_ON_HUB, min_length=1, description="owner/name of the data set.")
    revision: str | None = Field(
        default=None,
        description="Commit of the data set, 40 hexadecimal digits. None takes the pinned one of the default set; "
        "for any other set it must be given.",
    )
    config: str | None = Field(default=None, description="Subset, for a data set that has several.")
    image_column: str | None = Field(default=None, description="Column of the images. None: the only one.")
    label_column: str | None = Field(default=None, description="Column of the labels. None: the only one.")
    group_column: str | None = Field(default=None, description="Column that says what an image belongs to.")
    group_kind: str | None = Field(
        default=None,
        min_length=1,
        description='What a group is: "patient", "slide", ... Only "patient" makes a split patient-safe.',
    )
    label_map: dict[str, str] | None = Field(
        default=None,
        description="Label of the data set -> class code of the taxonomy. Labels not in it are codes.",
    )
    max_gigabytes: float = Field(
        default=50.0,
        gt=0,
        description="A set with more is refused before it is downloaded, or while it is unpacked.",
    )

    @field_validator("revision")
    @classmethod
    def _is_a_commit(cls, revision: str | None) -> str | None:
        if revision is not None and not re.fullmatch("[0-9a-f]{40}", revision):
            raise ValueError(
                "must be a commit, 40 hexadecimal digits: what a branch or a tag names can change"
            )
        return revision

    @property
    def commit(self) -> str | None:
        """The commit asked for, or the pinned one."""
        return self.revision or _PINNED.get(self.id)


@dataclass(frozen=True)
class _Found:
    """Columns of the table of images, before it is one."""

    paths: Sequence[str]
    labels: Sequence[str]
    groups: Sequence[str | None] | None
    folds: Sequence[str | None] | None
    attribution: str
    rejected: list[RejectedImage]


def load(root: Path | None, taxonomy: Taxonomy, options: Options) -> CellImages:
    """Index a data set of the Hub.

    Args:
        root: A folder that `cytodino data get hub_dataset` made, or class folders with the same images. None takes
            the one in the user's cache, and downloads it where it is not there.
        taxonomy: Classes allowed; the set may hold fewer.
        options: See `Options`.

    Returns:
        Images with the folds of the set's own splits, for `data.split` "source", and groups where a column is named.

    Raises:
        DataError: A failed download, unclear columns, an unknown class, or a root that holds another set.
    """
    _check_options(taxonomy, options)
    folder = root if root is not None else fetch(options)
    found = _from_record(folder, options) if (folder / RECORD).is_file() else None
    if found is None:
        folder, found = _from_class_folders(folder, taxonomy, options)
    return build_cell_images(
        found.paths,
        found.labels,
        root=folder,
        source="hub_dataset",
        taxonomy=taxonomy,
        groups=found.groups,
        group_kind=None if found.groups is None else options.group_kind or _GROUP_KIND,
        folds=found.folds,
        attribution=found.attribution,
        rejected=found.rejected,
    )


def fetch(options: Options) -> Path:
    """Folder of the data set's image files in the user's cache; downloaded and unpacked where it is not there.

    The files of the download stay in the Hub's own cache; they are not needed any more (`hf cache rm`).

    Raises:
        DataError: No commit is named, or the download or the unpacking failed; says what to do.
    """
    most_bytes = int(options.max_gigabytes * 1e9)
    asked = Asked(
        options.id, options.commit, "data.hub_dataset.id", "data.hub_dataset.revision",
        most_bytes, "data.hub_dataset.max_gigabytes",
    )  # fmt: skip
    if options.commit is None:
        raise DataError(
            f"data set {options.id} has no pinned commit: set {asked.revision_in} (now it would be "
            f"{newest_commit(asked)})"
        )
    columns = Columns(options.config, options.image_column, options.label_column, options.group_column)
    chosen = {"id": options.id, "revision": options.commit, "columns": asdict(columns)}
    key = hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()[:16]
    folder = user_cache("hub_datasets") / f"{options.id.replace('/', '--')}-{key}"
    if not folder.is_dir():
        snapshot = fetch_commit(asked)
        unpack_rows(snapshot, folder, columns, chosen | {"licence": licence_of(snapshot)}, most_bytes)
    return folder


def _check_options(taxonomy: Taxonomy, options: Options) -> None:
    if unknown := sorted(set((options.label_map or {}).values()) - set(taxonomy.codes)):
        raise DataError(
            f"data.hub_dataset.label_map names classes unknown to taxonomy {taxonomy.name!r}: {', '.join(unknown)}. "
            f"Known: {', '.join(taxonomy.codes)}."
        )
    if options.group_kind is not None and options.group_column is None:
        raise DataError(
            f"data.hub_dataset.group_kind is {options.group_kind!r}, but nothing gives groups: set "
            "data.hub_dataset.group_column"
        )


def _from_record(folder: Path, options: Options) -> _Found:
    record = _read_record(folder, options)
    columns = _read_columns(folder)
    rejected = [
        RejectedImage(split, f"{count} images without a label", on_purpose=True)
        for split, count in record["unlabelled"].items()
    ]
    kept = []
    is_mll = options.id == MLL_ON_HUB
    for row, path in enumerate(columns["path"]):
        if is_mll and Path(path).stem.partition("-")[2] in mll.DAMAGED:
            rejected.append(RejectedImage(path, "known to be damaged in the published set", on_purpose=True))
        else:
            kept.append(row)
    taken = {name: [values[row] for row in kept] for name, values in columns.items()}
    codes = options.label_map or {}
    _refuse_unused(options.label_map, set(taken["label"]), folder)
    return _Found(
        paths=taken["path"],
        labels=[codes.get(label, label) for label in taken["label"]],
        groups=taken["group"] if options.group_column is not None else None,
        folds=[_SPLIT_TO_FOLD.get(split) for split in taken["split"]],
        attribution=_attribution(record),
        rejected=rejected,
    )


def _read_record(folder: Path, options: Options) -> Mapping[str, Any]:
    columns = Columns(options.config, options.image_column, options.label_column, options.group_column)
    try:
        record = read_json(folder / RECORD)
        there = record["id"], record["revision"], record["columns"]
        _ = record["licence"], record["unlabelled"].items()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{folder}: its {RECORD} cannot be read ({error}); get the data set anew") from error
    if there != (asked := (options.id, options.commit, asdict(columns))):
        raise DataError(
            f"{folder}: holds {_in_words(*there)}; asked for is {_in_words(*asked)}. Change data.root or "
            "data.hub_dataset."
        )
    return dict(record)


def _in_words(name: str, commit: str | None, columns: Mapping[str, str | None]) -> str:
    chosen = ", ".join(f"{kind} {value!r}" for kind, value in columns.items() if value is not None)
    return f"{name} at {commit}" + (f" ({chosen})" if chosen else "")


def _read_columns(folder: Path) -> dict[str, list[Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        columns: dict[str, list[Any]] = pq.read_table(folder / TABLE).to_pydict()
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{folder / TABLE}: cannot be read ({error}); get the data set anew") from error
    return columns


def _from_class_folders(root: Path, taxonomy: Taxonomy, options: Options) -> tuple[Path, _Found]:
    if options.group_column is not None:
        raise DataError(f"{root}: class folders have no columns; leave data.hub_dataset.group_column out")
    folder, above = find_class_root(root, {*taxonomy.codes, *(options.label_map or ())}) or (root, [])
    found = index_class_folders(folder, taxonomy, options.label_map)
    _refuse_unused(options.label_map, {path.split("/", 1)[0] for path in found.paths}, folder)
    rejected = sorted([*found.rejected, *above], key=lambda image: image.path)
    return folder, _Found(found.paths, found.labels, None, None, "", rejected)


def _refuse_unused(label_map: Mapping[str, str] | None, found: set[str], folder: Path) -> None:
    if unused := sorted(set(label_map or {}) - found):
        raise DataError(
            f"{folder}: labels named in data.hub_dataset.label_map do not occur: {first_few(unused)} "
            f"(found: {first_few(sorted(found))})"
        )


def _attribution(record: Mapping[str, Any]) -> str:
    where = f"{record['id']} on the Hugging Face Hub at {record['revision'][:12]}"
    if record["id"] == MLL_ON_HUB:
        return f"{mll.ATTRIBUTION}; as {where}"
    return f"{where}, licence {record['licence'] or 'not stated'}"


SOURCE = Source(
    summary="image-classification set of the Hugging Face Hub, by id and commit; MLL's bone-marrow cells by default",
    options=Options,
    load=load,
    fetch=fetch,
)
