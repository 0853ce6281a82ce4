"""PREDICTIONS: the one object every report takes, and its Parquet form.

The Parquet file has the columns `id, path, source, group, fold, label, logits, probabilities, prediction, ood,
model_revision`; `label` may be null, and so may `ood` (whether the image is unlike those the model knows), which files
of earlier versions do not have. Class codes in label order, what a group is, and which calibration changed the logits
stand in the file's metadata, and how the pictures were
changed. Embeddings go into a sibling file by id, whose metadata says of which weights and pictures they are.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

_METADATA_KEY = b"cytodino"
_EMBEDDINGS_KEY = b"cytodino_embeddings"


def softmax(logits: np.ndarray) -> np.ndarray:
    """Softmax of (images, classes), float32, computed in float64."""
    wide = logits.astype(np.float64)
    shifted = np.exp(wide - wide.max(axis=1, keepdims=True, initial=-np.inf))
    return (shifted / shifted.sum(axis=1, keepdims=True)).astype(np.float32)


@dataclass(frozen=True)
class Predictions:
    """What a model said about some images.

    Args:
        ids, paths, sources: One text per image.
        groups, folds: One text or None per image.
        labels: (images,) int64, -1 where no label is known.
        logits: (images, classes) float32.
        classes: Class codes in label order.
        model_revision: Which weights said so.
        group_kind: What a group is, or None.
        ood: One truth or None per image, whether it is unlike those the model knows; None where nobody asked.
        calibration: Fingerprint of the calibration that changed the logits; None for those of the model itself.
        prepared: How the pictures were changed before the model saw them; None: as they are.
    """

    ids: list[str]
    paths: list[str]
    sources: list[str]
    groups: list[str | None]
    folds: list[str | None]
    labels: np.ndarray
    logits: np.ndarray
    classes: tuple[str, ...]
    model_revision: str
    group_kind: str | None = None
    ood: list[bool | None] | None = None
    calibration: str | None = None
    prepared: str | None = None

    def __post_init__(self) -> None:
        n = len(self.ids)
        sizes = {len(self.paths), len(self.sources), len(self.groups), len(self.folds), len(self.labels)}
        sizes |= {n if self.ood is None else len(self.ood)}
        if sizes != {n} or self.logits.shape != (n, len(self.classes)):
            raise ValueError(
                f"predictions disagree in length: {n} ids, columns {sorted(sizes)}, logits {self.logits.shape}, "
                f"{len(self.classes)} classes"
            )

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def probabilities(self) -> np.ndarray:
        """Softmax of the logits, float32 (images, classes)."""
        return softmax(self.logits)

    @property
    def predicted(self) -> np.ndarray:
        """The most probable class of each image, int64 (images,)."""
        return self.logits.argmax(axis=1)

    def select(self, rows: Sequence[int] | np.ndarray) -> Predictions:
        """Only some rows, in the order given."""
        rows = np.asarray(rows, dtype=np.int64)

        def pick(values: list) -> list:
            return [values[i] for i in rows]

        return replace(
            self,
            ids=pick(self.ids),
            paths=pick(self.paths),
            sources=pick(self.sources),
            groups=pick(self.groups),
            folds=pick(self.folds),
            labels=self.labels[rows],
            logits=self.logits[rows],
            ood=None if self.ood is None else pick(self.ood),
        )

    def fold(self, name: str) -> Predictions:
        """Only the rows of one fold."""
        return self.select([i for i, fold in enumerate(self.folds) if fold == name])

    def to_table(self) -> pa.Table:
        """The one schema of the project (see the module text), as an Arrow table with its metadata."""
        import pyarrow as pa

        floats = pa.list_(pa.float32())
        table = pa.table(
            {
                "id": pa.array(self.ids, pa.string()),
                "path": pa.array(self.paths, pa.string()),
                "source": pa.array(self.sources, pa.string()),
                "group": pa.array(self.groups, pa.string()),
                "fold": pa.array(self.folds, pa.string()),
                "label": pa.array(self.labels, pa.int64(), mask=self.labels < 0),
                "logits": pa.array(list(self.logits.astype(np.float32)), floats),
                "probabilities": pa.array(list(self.probabilities), floats),
                "prediction": pa.array(self.predicted, pa.int64()),
                "ood": pa.array(self.ood or [None] * len(self), pa.bool_()),
                "model_revision": pa.array([self.model_revision] * len(self), pa.string()),
            }
        )
        about = {
            "classes": list(self.classes),
            "group_kind": self.group_kind,
            "model_revision": self.model_revision,
            "calibration": self.calibration,
            "prepared": self.prepared,
        }
        return table.replace_schema_metadata({_METADATA_KEY: json.dumps(about)})

    def to_parquet(self, path: str | Path) -> None:
        """Write `to_table`."""
        import pyarrow.parquet as pq

        Path(path).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(self.to_table(), path)

    @classmethod
    def from_parquet(cls, path: str | Path) -> Predictions:
        """Read what `to_parquet` wrote.

        Raises:
            DataError: No predictions file of this project, or rows of several model revisions; names it.
        """
        table = _read_table(path)
        raw = (table.schema.metadata or {}).get(_METADATA_KEY)
        if raw is None:
            raise DataError(f"{path}: no predictions of this project (its metadata names no classes)")
        about = json.loads(raw)
        columns = {
            name: table[name].to_pylist()
            for name in table.column_names
            if name not in ("logits", "probabilities", "prediction")
        }
        if other := set(columns["model_revision"]) - {about["model_revision"]}:
            raise DataError(
                f"{path}: holds rows of several model revisions ({', '.join(sorted(other))}, ...)"
            )
        classes = tuple(about["classes"])
        ood = columns.get("ood", [])
        return cls(
            ids=columns["id"],
            paths=columns["path"],
            sources=columns["source"],
            groups=columns["group"],
            folds=columns["fold"],
            labels=np.array([-1 if v is None else v for v in columns["label"]], dtype=np.int64),
            logits=_floats(table["logits"]).reshape(-1, len(classes)),
            classes=classes,
            model_revision=about["model_revision"],
            group_kind=about["group_kind"],
            ood=ood if any(value is not None for value in ood) else None,
            calibration=about.get("calibration"),
            prepared=about.get("prepared"),
        )


def write_embeddings(
    path: str | Path,
    ids: Sequence[str],
    embeddings: np.ndarray,
    *,
    model_revision: str,
    prepared: str | None = None,
) -> None:
    """Write embeddings as columns `id, embedding`.

    Args:
        path: The file; its folder is made.
        ids: One text per image.
        embeddings: float32 (images, width).
        model_revision, prepared: As in the `Predictions` of these images.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    Path(path).parent.mkdir(parents=True, exist_ok=True)
    columns = {
        "id": pa.array(list(ids), pa.string()),
        "embedding": pa.array(list(embeddings.astype(np.float32)), pa.list_(pa.float32())),
    }
    about = {"model_revision": model_revision, "prepared": prepared}
    table = pa.table(columns).replace_schema_metadata({_EMBEDDINGS_KEY: json.dumps(about)})
    pq.write_table(table, path)


def foreign_embeddings(path: str | Path, predictions: Predictions) -> str | None:
    """Why embeddings are not of the answers they lie beside, which ids alone do not tell.

    Args:
        path: As `write_embeddings` writes it. Earlier versions did not say whose they are: nothing speaks against them.
        predictions: The answers.

    Returns:
        A sentence without its full stop; None where they belong together.
    """
    raw = (_schema(path).metadata or {}).get(_EMBEDDINGS_KEY)
    if raw is None:
        return None
    about = json.loads(raw)
    if about["model_revision"] != predictions.model_revision:
        return (
            f"they are of the weights {about['model_revision']}, the answers of {predictions.model_revision}"
        )
    if about["prepared"] != predictions.prepared:
        seen = (f"pictures {text or 'as they are'}" for text in (about["prepared"], predictions.prepared))
        return "they are of {}, the answers of {}".format(*seen)
    return None


def read_embeddings(path: str | Path) -> tuple[list[str], np.ndarray]:
    """Read what `write_embeddings` wrote: the ids, and float32 (images, width)."""
    table = _read_table(path)
    rows = table["embedding"]
    return table["id"].to_pylist(), _floats(rows).reshape(len(rows), -1)


def _schema(path: str | Path) -> pa.Schema:
    """The columns and the metadata of a Parquet file of ours; errors as of `_read_table`."""
    import pyarrow.parquet as pq

    with _explained(path):
        return pq.read_schema(path)


def _read_table(path: str | Path) -> pa.Table:
    """A Parquet file of ours.

    Raises:
        DataError: It is missing or no Parquet file.
    """
    import pyarrow.parquet as pq

    with _explained(path):
        return pq.read_table(path)


@contextmanager
def _explained(path: str | Path) -> Iterator[None]:
    import pyarrow as pa

    if not Path(path).is_file():
        raise DataError(f"{path}: no such folder or file")
    if Path(path).suffix.lower() == ".csv":
        # Probabilities rounded to 7 digits: log(0) is no logit, and what all logits have in common is gone.
        raise DataError(
            f"{path}: a CSV file holds rounded probabilities and no logits; write the answers once more with "
            "`cytodino predict ... --output NAME.parquet`"
        )
    try:
        yield
    except pa.ArrowInvalid as error:
        raise DataError(
            f"{path}: is no Parquet file ({error}); give what `cytodino predict` wrote"
        ) from error


def _floats(column: pa.ChunkedArray) -> np.ndarray:
    """All values of a column of lists, one after the other; by way of Python objects it would take a hundred times."""
    import pyarrow.compute as pc

    values: np.ndarray = pc.list_flatten(column).to_numpy()
    return values.astype(np.float32, copy=False)
