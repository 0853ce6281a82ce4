"""What `cytodino predict` is given (files, folders, tables, a data set of the Hub) becomes one list of images.

| input | id and path of an image | group, label, fold |
|---|---|---|
| file, folder | path from the folder that holds all files and folders given | none |
| `.csv`, `.parquet` with `path` | column `id`, else the path, relative to the table's folder | columns of that name |
| `.parquet` with `image` or `bytes` | column `id`, else the picture's path, else `TABLE#ROW` | the same |
| `hf://datasets/OWNER/NAME[@REVISION]` | column `id`, else `SPLIT/` and that path, else `SPLIT#ROW` | the same |

A label is kept where the model has a class of that code; others are unknown to it.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ..data.sources.folders import index_all_images
from ..data.tables import first_few, read_table
from ..errors import DataError
from .pictures import Picture, TableRow

if TYPE_CHECKING:
    from datasets import Dataset

HUB_PREFIX = "hf://datasets/"
TABLE_SUFFIXES = (".csv", ".parquet")
# Where the pictures themselves lie in a table, the first that is there.
_PICTURE_COLUMNS = ("image", "bytes")


@dataclass
class InputImages:
    """Images to score; one entry of every list is one image.

    Args:
        ids: Unique names.
        paths: What a person finds the image by.
        sources: `files`, the name of a table, or `OWNER/NAME@COMMIT`.
        groups, folds, labels: Texts, or None where none is known.
        pictures: Where the pixels come from.
        unreadable: Path -> reason, for files with an image's name that are not tried.
    """

    ids: list[str] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    groups: list[str | None] = field(default_factory=list)
    folds: list[str | None] = field(default_factory=list)
    labels: list[str | None] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    unreadable: dict[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    def add(
        self,
        ids: Sequence[str],
        paths: Sequence[str],
        pictures: Sequence[Picture],
        source: str,
        columns: Mapping[str, Sequence[str | None]] | None = None,
    ) -> None:
        """Append images; `columns` may hold `group`, `fold` and `label`."""
        nothing: list[str | None] = [None] * len(ids)
        known = columns or {}
        self.ids += ids
        self.paths += paths
        self.pictures += pictures
        self.sources += [source] * len(ids)
        self.groups += known.get("group", nothing)
        self.folds += known.get("fold", nothing)
        self.labels += known.get("label", nothing)


def find_inputs(inputs: Sequence[str], *, cache_dir: str | None = None) -> InputImages:
    """List the images; no pixel is read.

    Args:
        inputs: As on the command line; see the table of this module.
        cache_dir: Of the Hub's files.

    Raises:
        DataError: Something is missing or no list of images, an id occurs twice, or there is no image at all.
    """
    found = InputImages()
    places = []
    for name in inputs:
        if name.startswith(HUB_PREFIX):
            from .hub_inputs import add_hub_dataset

            add_hub_dataset(found, name.removeprefix(HUB_PREFIX), cache_dir)
        elif not Path(name).exists():
            raise DataError(
                f"{name}: no such file or folder; a data set of the Hub is {HUB_PREFIX}OWNER/NAME"
            )
        elif Path(name).is_file() and Path(name).suffix.lower() in TABLE_SUFFIXES:
            _add_table(found, Path(name))
        else:
            places.append(Path(name))
    if places:
        _add_files(found, places)
    if not found.ids:
        why = first_few(f"{path} ({reason})" for path, reason in found.unreadable.items())
        raise DataError(f"no images in {', '.join(inputs)}" + (f"; not read: {why}" if why else ""))
    if twice := [name for name, count in Counter(found.ids).items() if count > 1]:
        raise DataError(
            f"{len(twice)} ids occur more than once among the inputs: {first_few(twice)}; give every image an id of "
            "its own (column `id` of a table)"
        )
    return found


def _add_files(found: InputImages, places: Sequence[Path]) -> None:
    folders = [place if place.is_dir() else place.parent for place in places]
    # Ids do not say where on this machine the images lie: moved together, they stay the same images.
    root = Path(os.path.commonpath([folder.absolute() for folder in folders]))
    listed: dict[str, Path] = {}
    for place in places:
        if not place.is_dir():
            listed[_within(root, place)] = place
            continue
        inside = index_all_images(place)
        listed |= {_within(root, place / path): place / path for path in sorted(inside.paths)}
        found.unreadable |= {_within(root, place / image.path): image.reason for image in inside.rejected}
    found.add(list(listed), list(listed), list(listed.values()), "files")


def _within(root: Path, path: Path) -> str:
    return path.absolute().relative_to(root).as_posix()


def _add_table(found: InputImages, file: Path) -> None:
    if file.suffix.lower() == ".parquet" and (column := _picture_column(file)):
        add_rows(found, _read_pictures(file, column), file.name, numbered_as=file.name)
        return
    columns = read_table(file)
    if "path" not in columns:
        raise DataError(
            f"{file}: has no column `path` (found: {', '.join(columns)}); with pictures inside, the column of a "
            f"Parquet file is called {' or '.join(_PICTURE_COLUMNS)}"
        )
    for needed in {"path", "id"} & set(columns):
        if empty := [f"line {i}" for i, cell in enumerate(columns[needed], start=2) if cell is None]:
            raise DataError(f"{file}: {len(empty)} rows without {needed}: {first_few(empty)}")
    paths = [str(path) for path in columns["path"]]
    ids = [str(name) for name in columns.get("id", paths)]
    found.add(ids, paths, [file.parent / path for path in paths], file.name, columns)


def _picture_column(file: Path) -> str | None:
    """The column that holds encoded pictures, or None where the file names paths."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(file)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{file}: cannot be read as Parquet ({error})") from error

    def holds_bytes(kind: pa.DataType) -> bool:
        return pa.types.is_struct(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)

    names = [n for n in _PICTURE_COLUMNS if n in schema.names and holds_bytes(schema.field(n).type)]
    return names[0] if names else None


def _read_pictures(file: Path, column: str) -> Dataset:
    from datasets import Dataset

    table = Dataset.from_parquet(str(file))
    return table if column == "image" else table.rename_column(column, "image")


def add_rows(
    found: InputImages,
    table: Dataset,
    source: str,
    *,
    numbered_as: str,
    inside: str = "",
    name_of_file: Callable[[str], str] = str,
    root: Path | None = None,
) -> None:
    """Append the rows of a table with a column `image`.

    Args:
        found: Where to.
        table: Images inside, other columns as in the table of this module.
        source: Of every row.
        numbered_as: Stands before the row number in the id of a picture without a path of its own.
        inside: Stands before the path in the id of one that has it.
        name_of_file: What a file that a row names, and does not hold, is called.
        root: Folder that such a file must lie in; None for a table of the user's own.
    """
    from datasets import Image

    table = table.cast_column("image", Image(decode=False))
    columns = {
        name: _texts(table, name) for name in ("id", "group", "fold", "label") if name in table.features
    }
    own = _own_paths(table, name_of_file)
    numbered = [f"{numbered_as}#{row}" for row in range(len(table))]
    paths = [path or name for path, name in zip(own, numbered, strict=True)]
    are_unique = None not in own and len(set(own)) == len(own)
    ids = columns.get("id") or ([f"{inside}{path}" for path in paths] if are_unique else numbered)
    if empty := [f"row {row}" for row, name in enumerate(ids) if name is None]:
        raise DataError(f"{source}: {len(empty)} rows without id: {first_few(empty)}")
    small = table.select_columns(["image"])
    pictures = [TableRow(small, row, root) for row in range(len(table))]
    found.add([str(name) for name in ids], paths, pictures, source, columns)


def _own_paths(table: Dataset, name_of_file: Callable[[str], str]) -> list[str | None]:
    """The `path` of each picture; its bytes stay on the disk."""
    images = table.select_columns(["image"]).with_format("arrow")[:]["image"]
    own: list[str | None] = []
    for chunk in images.chunks:
        are_files = chunk.field("bytes").is_null().to_pylist()
        paths = chunk.field("path").to_pylist()
        own += [name_of_file(p) if p and is_file else p for p, is_file in zip(paths, are_files, strict=True)]
    return own


def _texts(table: Dataset, name: str) -> list[str | None]:
    values = table.select_columns([name]).with_format("arrow")[:][name].to_pylist()
    names = getattr(table.features[name], "names", None)  # of a ClassLabel
    if names:
        return [names[v] if v is not None and 0 <= v < len(names) else None for v in values]
    return [None if v is None else str(v) for v in values]
