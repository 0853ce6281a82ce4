"""The table of images every source gives: which image, where, what it is, what it belongs to. No pixels.

One row is one image. `CellImages.dataset` is a `datasets.Dataset` whose `image` column is decoded only when a
row is read (`cytodino_hf.data.images.read_rgb`).
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DataError
from ..taxonomy import Taxonomy

if TYPE_CHECKING:
    from datasets import Dataset

#: Folds and what each is for: fit; model choice; temperature, thresholds, conformal; scored once.
FOLDS = ("train", "validation", "calibration", "test")


@dataclass(frozen=True)
class RejectedImage:
    """An image left out, and why.

    Args:
        path: Path relative to the data root.
        reason: One sentence.
    """

    path: str
    reason: str


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
    """

    dataset: Dataset
    taxonomy: Taxonomy
    root: Path
    source: str
    group_kind: str | None = None
    attribution: str = ""
    is_drawn: bool = False
    rejected: tuple[RejectedImage, ...] = ()

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

        if unknown := sorted({str(f) for f in folds if f is not None and f not in FOLDS}):
            raise DataError(f"unknown folds {', '.join(unknown)}; folds are {', '.join(FOLDS)}")
        dataset = self.dataset.remove_columns("fold").add_column("fold", list(folds), feature=Value("string"))
        return replace(self, dataset=dataset)

    def fold(self, name: str) -> CellImages:
        """Only the rows of one fold, in their order."""
        return self.select([i for i, fold in enumerate(self.folds) if fold == name])

    def select(self, rows: Sequence[int]) -> CellImages:
        """Only some rows, in the order given; the taxonomy and the labels stay."""
        return replace(self, dataset=self.dataset.select(rows))

    def narrowed(self) -> CellImages:
        """The same images without the classes that have none: a narrower taxonomy, labels counted anew."""
        from datasets import ClassLabel

        counts = self.counts()
        present = self.taxonomy.subset([code for code, count in counts.items() if count])
        if len(present) == len(self.taxonomy):
            return self
        renumbered = {self.taxonomy.index(code): label for label, code in enumerate(present.codes)}
        labels = [renumbered[label] for label in self.labels]
        dataset = self.dataset.remove_columns("label").add_column(
            "label", labels, feature=ClassLabel(names=list(present.codes))
        )
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
    is_drawn: bool = False,
    rejected: Sequence[RejectedImage] = (),
) -> CellImages:
    """Make the table from plain columns, sorted by path: the order never depends on the disk.

    Args:
        paths: Paths relative to `root`, forward slashes.
        labels: Class code of each path.
        taxonomy: Taxonomy the codes come from; narrowed to the classes present.
        ids: Unique names; the path without its suffix by default.

    Raises:
        DataError: No image, a class the taxonomy does not know (names them all), or a path or an id that
            occurs twice.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    if not paths:
        raise DataError(f"no images found in {root} by source {source!r}")
    if unknown := sorted(set(labels) - set(taxonomy.codes)):
        raise DataError(
            f"{root}: classes unknown to taxonomy {taxonomy.name!r}: {', '.join(unknown)}. "
            f"Known: {', '.join(taxonomy.codes)}. Rename the classes or give a taxonomy file (data.taxonomy)."
        )
    present = taxonomy.subset(set(labels))
    path = pa.array(paths, pa.string())
    # The suffix goes, a dot in a folder's name stays.
    own_ids = (
        pc.replace_substring_regex(path, r"\.[^./]*$", "") if ids is None else pa.array(ids, pa.string())
    )
    for what, values in (("paths", path), ("ids", own_ids)):
        _refuse_repeats(values, f"{root}: image {what}")
    nothing = pa.nulls(len(path), pa.string())
    columns = {
        "id": own_ids,
        "path": path,
        "source": pa.repeat(pa.scalar(source), len(path)),
        "group": nothing if groups is None else pa.array(groups, pa.string()),
        "fold": nothing if folds is None else pa.array(folds, pa.string()),
        "label": pc.index_in(pa.array(labels, pa.string()), pa.array(present.codes, pa.string())),
    }
    order = pc.sort_indices(path)
    return CellImages(
        dataset=_dataset({name: values.take(order) for name, values in columns.items()}, present, root),
        taxonomy=present,
        root=Path(root),
        source=source,
        group_kind=group_kind,
        attribution=attribution,
        is_drawn=is_drawn,
        rejected=tuple(rejected),
    )


def _refuse_repeats(values: Any, what: str) -> None:
    import pyarrow.compute as pc

    if pc.count_distinct(values).as_py() == len(values):
        return
    twice = sorted(name for name, count in Counter(values.to_pylist()).items() if count > 1)
    raise DataError(
        f"{what} must be unique, {len(twice)} occur more than once, such as {', '.join(twice[:5])}. "
        "Remove or rename the repeated images (an id is the path without its suffix unless ids are given)."
    )


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
