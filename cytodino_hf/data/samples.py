"""The table of images every source gives: which image, where, what it is, what it belongs to. No pixels.

One row is one image. `CellImages.dataset` is a `datasets.Dataset` whose `image` column is decoded only when a row
is read (`cytodino_hf.data.images.read_rgb`).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

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
            `group` (text or null), `fold` (one of `FOLDS` or null), `label` (ClassLabel over `taxonomy.codes`),
            `image` (`{"path", "bytes"}`, undecoded).
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
        return list(self.dataset["label"])

    @property
    def groups(self) -> list[str] | None:
        """Group of every row, or None where the set has no groups. A row without group is its own group."""
        if self.group_kind is None:
            return None
        rows = zip(self.dataset["group"], self.dataset["id"], strict=True)
        return [group if group is not None else f"image:{name}" for group, name in rows]

    @property
    def folds(self) -> list[str | None]:
        """Fold of every row."""
        return list(self.dataset["fold"])

    def with_folds(self, folds: Sequence[str | None]) -> CellImages:
        """The same images with another `fold` column (one of `FOLDS` or None for each row)."""
        from datasets import Value

        if unknown := sorted({str(f) for f in folds if f is not None and f not in FOLDS}):
            raise DataError(f"unknown folds {', '.join(unknown)}; folds are {', '.join(FOLDS)}")
        dataset = self.dataset.remove_columns("fold").add_column(
            "fold", list(folds), feature=Value("string")
        )
        return replace(self, dataset=dataset)

    def fold(self, name: str) -> CellImages:
        """Only the rows of one fold, in their order."""
        rows = [i for i, fold in enumerate(self.folds) if fold == name]
        return replace(self, dataset=self.dataset.select(rows))

    def counts(self) -> dict[str, int]:
        """Images per class code, every class of the taxonomy named."""
        found = Counter(self.labels)
        return {code: found.get(label, 0) for label, code in enumerate(self.taxonomy.codes)}

    def fingerprint(self) -> str:
        """sha256 over id, path, label, group and fold of every row, whatever the order of the rows.

        The content of the files is not read; a renamed, added, removed or relabelled image changes it.
        """
        digest = hashlib.sha256("\n".join(self.taxonomy.codes).encode())
        columns = (self.dataset[name] for name in ("id", "path", "label", "group", "fold"))
        for row in sorted(map(str, zip(*columns, strict=True))):
            digest.update(row.encode("utf-8", "surrogateescape") + b"\n")
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
    """Make the table from plain columns; the rows are sorted by path so that the order never depends on the disk.

    Args:
        paths: Paths relative to `root`, forward slashes.
        labels: Class code of each path.
        taxonomy: Taxonomy the codes come from; narrowed to the classes present.
        ids: Unique names; the path without its suffix by default.

    Raises:
        DataError: No image, a class the taxonomy does not know (names them all), or an id that occurs twice.
    """
    from datasets import ClassLabel, Dataset, Features, Image, Value

    if not paths:
        raise DataError(f"no images found in {root} by source {source!r}")
    if unknown := sorted(set(labels) - set(taxonomy.codes)):
        raise DataError(
            f"{root}: classes unknown to taxonomy {taxonomy.name!r}: {', '.join(unknown)}. "
            f"Known: {', '.join(taxonomy.codes)}. Rename the folders or give a taxonomy file (data.taxonomy)."
        )
    ids = list(ids) if ids is not None else [path.rsplit(".", 1)[0] for path in paths]
    if twice := [name for name, count in Counter(ids).items() if count > 1]:
        raise DataError(f"{root}: {len(twice)} image ids occur twice, such as {', '.join(sorted(twice)[:5])}")
    present = taxonomy.subset(set(labels))
    label_of = {code: label for label, code in enumerate(present.codes)}
    order = sorted(range(len(paths)), key=lambda i: paths[i])
    prefix = f"{Path(root).absolute()}/"
    columns = {
        "id": [ids[i] for i in order],
        "path": [paths[i] for i in order],
        "source": [source] * len(order),
        "group": [groups[i] if groups is not None else None for i in order],
        "fold": [folds[i] if folds is not None else None for i in order],
        "label": [label_of[labels[i]] for i in order],
        "image": [{"path": prefix + paths[i], "bytes": None} for i in order],
    }
    text = Value("string")
    features = Features(
        {
            "id": text,
            "path": text,
            "source": text,
            "group": text,
            "fold": text,
            "label": ClassLabel(names=list(present.codes)),
            "image": Image(decode=False),
        }
    )
    return CellImages(
        dataset=Dataset.from_dict(columns, features=features),
        taxonomy=present,
        root=Path(root),
        source=source,
        group_kind=group_kind,
        attribution=attribution,
        is_drawn=is_drawn,
        rejected=tuple(rejected),
    )
