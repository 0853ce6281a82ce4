"""The table of images every source gives: which image, where, what it is, what it belongs to. No pixels.

One row is one image. `CellImages.dataset` is a `datasets.Dataset` whose `image` column is decoded only when a
row is read (`cytodino_hf.data.images.read_rgb`).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DataError
from ..taxonomy import Taxonomy

if TYPE_CHECKING:
    from datasets import Dataset

    from .pictures import Pack

#: A set with this file beside its class folders was drawn by `cytodino data draw`, whatever source reads it.
DRAWN_RECORD = "drawn.json"
_DRAWN_ATTRIBUTION = "Drawn by cytodino_hf: synthetic cells, no real patient"

#: Folds and what each is for: fit; model choice; temperature, thresholds, conformal; scored once.
FOLDS = ("train", "validation", "calibration", "test")


@dataclass(frozen=True)
class RejectedImage:
    """An image left out, and why.

    Args:
        path: Path relative to the data root.
        reason: One sentence.
        on_purpose: Named in a list of files to leave out, not found to be unusable.
    """

    path: str
    reason: str
    on_purpose: bool = False


@dataclass(frozen=True)
class CellImages:
    """An image set as every later stage sees it.

    Args:
        dataset: Columns `id` (unique text), `path` (relative to `root`, with forward slashes), `source`,
            `group` (text or null), `fold` (one of `FOLDS` or null), `label` (ClassLabel over
            `taxonomy.codes`), `image` (`{"path", "bytes"}`, undecoded).
        taxonomy: The classes present, in label order.
        root: Folder the paths are relative to.
        source: Name of the source.
        group_kind: What a group is ("patient", "slide", ...); None where the set has no groups.
        attribution: Whose images these are and under which licence, one line, for reports and cards.
        is_drawn: The images are synthetic.
        rejected: Images left out, with reasons.
        pack: One file all pictures are read from (`data.cache`); None reads each from its own.
    """

    dataset: Dataset
    taxonomy: Taxonomy
    root: Path
    source: str
    group_kind: str | None = None
    attribution: str = ""
    is_drawn: bool = False
    rejected: tuple[RejectedImage, ...] = ()
    pack: Pack | None = None

    @property
    def labels(self) -> list[int]:
        """Label of every row."""
        return self.column("label")

    @property
    def groups(self) -> list[str] | None:
        """Group of every row, or None where the set has no groups. A row without group is its own group."""
        if self.group_kind is None:
            return None
        rows = zip(self.column("group"), self.column("id"), strict=True)
        return [group if group is not None else f"image:{name}" for group, name in rows]

    @property
    def folds(self) -> list[str | None]:
        """Fold of every row."""
        return self.column("fold")

    def column(self, name: str) -> list[Any]:
        """One column as a list, for all columns but `image`."""
        # 171,000 rows take 0.01 s this way; iterating over `dataset[name]` takes more than a second.
        values: list[Any] = self.dataset.select_columns([name]).with_format("arrow")[:][name].to_pylist()
        return values

    def with_folds(self, folds: Sequence[str | None]) -> CellImages:
        """The same images with another `fold` column (one of `FOLDS` or None for each row)."""
        from datasets import Value

        if len(folds) != len(self.dataset):
            raise DataError(f"{len(folds)} folds for {len(self.dataset)} images")
        if unknown := sorted({str(f) for f in folds if f is not None and f not in FOLDS}):
            raise DataError(f"unknown folds {', '.join(unknown)}; folds are {', '.join(FOLDS)}")
        return replace(self, dataset=_with_column(self.dataset, "fold", list(folds), Value("string")))

    def fold(self, name: str) -> CellImages:
        """Only the rows of one fold, in their order."""
        return self.select([i for i, fold in enumerate(self.folds) if fold == name])

    def select(self, rows: Sequence[int]) -> CellImages:
        """Only some rows, in the order given; the taxonomy and the labels stay."""
        return replace(self, dataset=_taken(self.dataset, rows))

    def narrowed(self) -> CellImages:
        """The same images without the classes that have none: a narrower taxonomy, labels counted anew."""
        from datasets import ClassLabel

        counts = self.counts()
        present = self.taxonomy.subset([code for code, count in counts.items() if count])
        if len(present) == len(self.taxonomy):
            return self
        renumbered = {self.taxonomy.index(code): label for label, code in enumerate(present.codes)}
        labels = [renumbered[label] for label in self.labels]
        dataset = _with_column(self.dataset, "label", labels, ClassLabel(names=list(present.codes)))
        return replace(self, dataset=dataset, taxonomy=present)

    def counts(self) -> dict[str, int]:
        """Images per class code, every class of the taxonomy named."""
        found = Counter(self.labels)
        return {code: found.get(label, 0) for label, code in enumerate(self.taxonomy.codes)}

    def fingerprint(self) -> str:
        """sha256 over id, path, label, group and fold of every row, whatever the order of the rows.

        The content of the files is not read; a renamed, added, removed or relabelled image changes it.
        """
        ids = self.column("id")
        order = sorted(range(len(ids)), key=ids.__getitem__)
        columns = [ids, *(self.column(name) for name in ("path", "label", "group", "fold"))]
        digest = hashlib.sha256(json.dumps(self.taxonomy.codes).encode())
        for values in columns:
            digest.update(json.dumps([values[i] for i in order]).encode())
        return digest.hexdigest()


def build_cell_images(
    paths: Sequence[str],
    labels: Sequence[str],
    *,
    root: Path,
    source: str,
    taxonomy: Taxonomy,
    groups: Sequence[str | None] | None = None,
    group_kind: str | None = None,
    folds: Sequence[str | None] | None = None,
    ids: Sequence[str] | None = None,
    attribution: str = "",
    rejected: Sequence[RejectedImage] = (),
) -> CellImages:
    """Make the table from plain columns, sorted by path: the order never depends on the disk.

    Args:
        paths: Paths relative to `root`, forward slashes.
        labels: Class code of each path.
        taxonomy: Taxonomy the codes come from; narrowed to the classes present.
        ids: Unique names; by default the path without its suffix, with it where two would be the same.
        attribution: Whose images these are. A drawn set (`DRAWN_RECORD` in `root`) says so itself.

    Raises:
        DataError: No image, a class the taxonomy does not know (names them all), or a path or an id that
            occurs twice.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    _refuse_odd_root(root)
    if not paths:
        raise DataError(f"no images found in {root} by source {source!r}")
    if unknown := sorted(set(labels) - set(taxonomy.codes)):
        raise DataError(
            f"{root}: classes unknown to taxonomy {taxonomy.name!r}: {', '.join(unknown)}. "
            f"Known: {', '.join(taxonomy.codes)}. Rename the classes or give a taxonomy file (data.taxonomy)."
            + _case_hint(unknown, taxonomy)
        )
    present = taxonomy.subset(set(labels))
    path = _text(paths)
    own_ids = _ids_from_paths(path) if ids is None else _text(ids)
    for what, values in (("paths", path), ("ids", own_ids)):
        _refuse_repeats(values, f"{root}: image {what}")
    nothing = pa.nulls(len(path), pa.string())
    columns = {
        "id": own_ids,
        "path": path,
        "source": pa.repeat(pa.scalar(source), len(path)),
        "group": nothing if groups is None else _text(groups),
        "fold": nothing if folds is None else _text(folds),
        "label": pc.index_in(_text(labels), _text(present.codes)),
    }
    order = pc.sort_indices(path)
    is_drawn = (Path(root) / DRAWN_RECORD).is_file()
    return CellImages(
        dataset=_dataset({name: values.take(order) for name, values in columns.items()}, present, root),
        taxonomy=present,
        root=Path(root),
        source=source,
        group_kind=group_kind,
        attribution=_DRAWN_ATTRIBUTION if is_drawn else attribution,
        is_drawn=is_drawn,
        rejected=tuple(rejected),
    )


def _refuse_odd_root(root: Path) -> None:
    try:
        str(Path(root).absolute()).encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{os.fsencode(root)!r}: the path of the data is not UTF-8; rename the folder"
        ) from error


def _case_hint(unknown: Sequence[str], taxonomy: Taxonomy) -> str:
    """Folders `BLA` and `bla` are two on one computer and one on another, so that case is never ignored."""
    codes = {code.lower(): code for code in taxonomy.codes}
    pairs = [f"{name} for {codes[name.lower()]}" for name in unknown if name.lower() in codes]
    return f" Only the case differs: {', '.join(pairs)}." if pairs else ""


def _ids_from_paths(path: Any) -> Any:
    import pyarrow.compute as pc

    # The suffix goes, a dot in a folder's name stays.
    short = pc.replace_substring_regex(path, r"\.[^./]*$", "")
    if pc.count_distinct(short).as_py() == len(short):
        return short
    counts = Counter(short.to_pylist())
    repeated = pc.is_in(short, value_set=_text([name for name, count in counts.items() if count > 1]))
    return pc.if_else(repeated, path, short)


def _text(values: Sequence[str | None]) -> Any:
    import pyarrow as pa

    return pa.array(values, pa.string())


def _refuse_repeats(values: Any, what: str) -> None:
    import pyarrow.compute as pc

    if pc.count_distinct(values).as_py() == len(values):
        return
    twice = sorted(name for name, count in Counter(values.to_pylist()).items() if count > 1)
    raise DataError(
        f"{what} must be unique, {len(twice)} occur more than once, such as {', '.join(twice[:5])}. "
        "Remove or rename the repeated images."
    )


def _taken(dataset: Dataset, rows: Sequence[int]) -> Dataset:
    """Some rows as a table of their own.

    `Dataset.select` keeps the whole table and a list of rows, which makes every later reading of a column ten times
    slower; only where the table holds the bytes of the images is that the better bargain.
    """
    import numpy as np

    if _holds_bytes(dataset):
        return dataset.select(rows)
    table = _table(dataset).take(np.asarray(rows, dtype=np.int64))
    return _from_table(table, dataset.features)


def _with_column(dataset: Dataset, name: str, values: list[Any], feature: Any) -> Dataset:
    """The same rows with other values in one column."""
    import pyarrow as pa

    if _holds_bytes(dataset):
        return dataset.remove_columns(name).add_column(name, values, feature=feature)
    # `Dataset.add_column` would write a selection of rows anew, one by one: seconds for 100,000.
    table = _table(dataset)
    place = table.column_names.index(name)
    array = pa.array(values, feature.pa_type)
    return _from_table(table.set_column(place, name, array), dataset.features | {name: feature})


def _holds_bytes(dataset: Dataset) -> bool:
    """Whether the images themselves are in the table, not only their paths."""
    chunks = dataset.data.column("image").chunks
    return any(chunk.field("bytes").null_count < len(chunk) for chunk in chunks)


def _table(dataset: Dataset) -> Any:
    """The rows as an Arrow table."""
    return dataset.with_format("arrow")[:]


def _from_table(table: Any, features: Any) -> Dataset:
    from datasets import Dataset, Features

    columns = {name: table[name].combine_chunks() for name in table.column_names}
    return Dataset.from_dict(columns, features=Features(features))


def _dataset(columns: dict[str, Any], taxonomy: Taxonomy, root: Path) -> Dataset:
    """Arrow columns to a dataset; no pixel is read."""
    import pyarrow as pa
    import pyarrow.compute as pc
    from datasets import ClassLabel, Dataset, Features, Image, Value

    names = pc.binary_join_element_wise(f"{Path(root).absolute()}/", columns["path"], "")
    image = pa.StructArray.from_arrays([pa.nulls(len(names), pa.binary()), names], ["bytes", "path"])
    texts = {name: Value("string") for name in ("id", "path", "source", "group", "fold")}
    features = Features(
        {**texts, "label": ClassLabel(names=list(taxonomy.codes)), "image": Image(decode=False)}
    )
    columns = {**columns, "label": columns["label"].cast(pa.int64()), "image": image}
    return Dataset.from_dict(columns, features=features)
