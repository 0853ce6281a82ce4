"""The rows of a data set of the Hub as image files and a table, written once, whole or not at all.

Later stages read files; a file holds the very bytes of its row, nothing is encoded anew.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import DataError
from ...files import write_json
from .folders import has_image_suffix, suffix_of

logger = logging.getLogger(__name__)

RECORD = "hub_dataset.json"
TABLE = "images.parquet"
_BEGINNINGS = {
    b"\xff\xd8": ".jpg", b"\x89PNG": ".png", b"II*\0": ".tif", b"MM\0*": ".tif", b"BM": ".bmp", b"RIFF": ".webp",
}  # fmt: skip
_USUAL_LABELS = ("label", "labels", "cls")


@dataclass(frozen=True)
class Columns:
    """Which subset and columns of a data set are read; None where there is one that it can be."""

    config: str | None
    image: str | None
    label: str | None
    group: str | None


@dataclass
class _Table:
    """What is known of the files written so far."""

    path: list[str] = field(default_factory=list)
    label: list[str] = field(default_factory=list)
    split: list[str] = field(default_factory=list)
    group: list[str | None] = field(default_factory=list)
    unlabelled: Counter[str] = field(default_factory=Counter)


def unpack_rows(
    snapshot: Path, folder: Path, columns: Columns, record: dict[str, Any], most_bytes: int
) -> None:
    """Write every image of a downloaded data set into a new folder, with `images.parquet` and `hub_dataset.json`.

    Args:
        snapshot: All files of a commit. Nothing outside it is read, whatever they say.
        folder: `<LABEL>/<SPLIT>/<ROW>-<NAME>.<SUFFIX>`; its existence means that it is whole.
        columns: Which columns are read.
        record: Kept in `hub_dataset.json`, with what was found.
        most_bytes: The images may not hold more.

    Raises:
        DataError: `datasets` cannot read the files, they lead outside, the columns are not clear, or there is too much.
    """
    from datasets.exceptions import DatasetsError

    _refuse_small_disk(snapshot, folder.parent)
    partial = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
    try:
        found = _write_all(snapshot, partial, columns, most_bytes)
        _write_table(partial / TABLE, found)
        counts = {"splits": dict(Counter(found.split)), "unlabelled": dict(found.unlabelled)}
        write_json(partial / RECORD, record | counts)
        _name(partial, folder)
    except (OSError, ValueError, TypeError, DatasetsError) as error:
        raise DataError(
            f"{record['id']}: its files cannot be read as a data set of images ({type(error).__name__}: {error})"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _name(partial: Path, folder: Path) -> None:
    """Give a whole folder its name, unless another process was quicker: what it made is the same."""
    try:
        os.replace(partial, folder)
    except OSError:
        if not folder.is_dir():
            raise


def _refuse_small_disk(snapshot: Path, folder: Path) -> None:
    """Pictures are packed already: their files take what the download takes, or more."""
    needed = sum(file.stat().st_size for file in snapshot.rglob("*") if file.is_file())
    folder.mkdir(parents=True, exist_ok=True)
    if (free := shutil.disk_usage(folder).free) < needed:
        raise DataError(
            f"{folder}: {free / 1e9:.1f} GB are free, and the image files need {needed / 1e9:.1f} GB; CYTODINO_CACHE "
            "names another folder"
        )


def _write_all(snapshot: Path, folder: Path, columns: Columns, most_bytes: int) -> _Table:
    from datasets import Image
    from tqdm import tqdm

    found, written = _Table(), 0
    for split, rows in _splits(snapshot, columns.config):
        image, label = (
            _image_column(rows.features, columns.image),
            _label_column(rows.features, columns.label),
        )
        if columns.group is not None and columns.group not in rows.features:
            raise DataError(_no_column("group", columns.group, rows.features))
        name_of = getattr(rows.features[label], "int2str", str)
        plain = rows.cast_column(image, Image(decode=False))
        for number, row in enumerate(tqdm(plain, desc=f"unpacking {split}", unit="image", disable=None)):
            if row[label] is None or row[label] == -1:  # what ClassLabel says for "not known"
                found.unlabelled[split] += 1
                continue
            content = row_content(row[image], snapshot)
            written += len(content)
            if written > most_bytes:
                raise DataError(
                    f"{snapshot}: its images hold more than data.hub_dataset.max_gigabytes = {most_bytes / 1e9:g} "
                    "allows; raise it to unpack them all the same"
                )
            path = _path(name_of(row[label]), split, number, row[image].get("path"), content)
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(content)
            found.path.append(path)
            found.label.append(name_of(row[label]))
            found.split.append(split)
            found.group.append(_text(row[columns.group]) if columns.group is not None else None)
    if not found.path:
        raise DataError(f"{snapshot}: holds no image with a label")
    return found


def _splits(snapshot: Path, config: str | None) -> Iterator[tuple[str, Any]]:
    """The splits of the files on this disk, row by row, without a copy of them."""
    for name, rows in safe_reader(snapshot, config).as_streaming_dataset().items():
        if rows.features is None:
            raise DataError(f"{snapshot}: split {name!r} does not say which columns it has")
        yield str(name), rows


def safe_reader(snapshot: Path, config: str | None = None) -> Any:
    """The builder of `datasets` for the files on this disk, once it is known that they lead nowhere else.

    Args:
        snapshot: All files of a commit.
        config: Subset, for a data set that has several.

    Raises:
        DataError: The card or a file leads outside the folder.
    """
    from datasets import load_dataset_builder

    _refuse_card(snapshot)
    builder = load_dataset_builder(str(snapshot), config)
    for files in (builder.config.data_files or {}).values():
        for file in files:
            refuse_outside(str(file), snapshot)
    return builder


def _refuse_card(snapshot: Path) -> None:
    """A card may name any file and any address for its data; looking there is too much already."""
    from huggingface_hub import DatasetCard

    card = snapshot / "README.md"
    if not card.is_file():
        return
    document = DatasetCard.load(card, ignore_metadata_errors=True).data.to_dict()
    for pattern in _texts(document.get("configs")):
        if (
            "://" in pattern
            or "::" in pattern
            or pattern.startswith(("/", "~"))
            or ".." in pattern.split("/")
        ):
            raise DataError(
                f"{snapshot}: its card leads to {pattern!r}, outside the data set; it is not read"
            )


def _texts(document: Any) -> Iterator[str]:
    """Every text in a document of dictionaries and lists."""
    if isinstance(document, str):
        yield document
    elif isinstance(document, dict | list | tuple):
        for part in document.values() if isinstance(document, dict) else document:
            yield from _texts(part)


def refuse_outside(address: str, snapshot: Path) -> Path:
    """The file on this disk behind an address such as `zip://a.jpg::/folder/b.zip`.

    Raises:
        DataError: It lies outside the folder of the data set.
    """
    local = Path(os.path.normpath(address.rsplit("::", 1)[-1].removeprefix("file://")))
    if not (local.is_absolute() and local.is_relative_to(snapshot)):
        raise DataError(f"{snapshot}: leads to {address!r}, outside the data set; it is not read")
    return local


def row_content(image: Any, snapshot: Path) -> bytes:
    """The bytes of one image, empty where the row has none: a later stage refuses it by name.

    Args:
        image: `{"bytes", "path"}` or None.
        snapshot: Folder of the data set.

    Raises:
        DataError: It lies outside the folder, or is too large.
    """
    import fsspec  # type: ignore[import-untyped]

    from ..images import MAX_BYTES

    if image is None:
        return b""
    content = image["bytes"]
    if content is None and image["path"]:
        refuse_outside(image["path"], snapshot)
        with fsspec.open(image["path"], "rb") as file:
            content = file.read(MAX_BYTES + 1)
    if content is not None and len(content) > MAX_BYTES:
        raise DataError(f"{snapshot}: {image['path']} holds more than {MAX_BYTES:,} bytes")
    return content or b""


def _path(label: str, split: str, number: int, given: str | None, content: bytes) -> str:
    """Where an image goes. Names from outside lose all that a path could be made of."""
    name = re.split(r"[/\\]", given or "")[-1]
    suffix = suffix_of(name) if has_image_suffix(name) else ""
    stem = _harmless(name[: -len(suffix)] if suffix else name)
    suffix = suffix or next((s for b, s in _BEGINNINGS.items() if content.startswith(b)), ".bin")
    return (
        f"{_harmless(label) or 'class'}/{_harmless(split)}/{number:07d}{f'-{stem}' if stem else ''}{suffix}"
    )


def _harmless(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]+", "_", text)[:80]


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _image_column(features: Any, wanted: str | None) -> str:
    from datasets import Image

    images = [name for name, feature in features.items() if isinstance(feature, Image)]
    return _one_column("image", wanted, images, features)


def _label_column(features: Any, wanted: str | None) -> str:
    from datasets import ClassLabel

    labels = [name for name, feature in features.items() if isinstance(feature, ClassLabel)]
    if len(labels) != 1:
        labels = [name for name in _USUAL_LABELS if name in features][:1] or labels
    return _one_column("label", wanted, labels, features)


def _one_column(kind: str, wanted: str | None, can_be: list[str], features: Any) -> str:
    if wanted is not None and wanted not in features:
        raise DataError(_no_column(kind, wanted, features))
    if wanted is None and len(can_be) != 1:
        raise DataError(
            f"it is not clear which column is the {kind} (columns: {', '.join(features)}); set "
            f"data.hub_dataset.{kind}_column"
        )
    return wanted if wanted is not None else can_be[0]


def _no_column(kind: str, wanted: str, features: Any) -> str:
    return f"data.hub_dataset.{kind}_column = {wanted!r}: there is no such column (columns: {', '.join(features)})"


def _write_table(path: Path, found: _Table) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {
        name: pa.array(getattr(found, name), pa.string()) for name in ("path", "label", "split", "group")
    }
    pq.write_table(pa.table(columns), path)
