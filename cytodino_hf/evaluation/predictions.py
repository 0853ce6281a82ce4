"""PREDICTIONS: the one object every report takes, its Parquet form, and the loop that makes it.

The Parquet file has the columns `id, path, source, group, fold, label, logits, probabilities, prediction,
model_revision`; `label` may be null; class codes in label order, and what a group is, stand in the file's
metadata. Embeddings go into a sibling file by id.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from ..errors import DataError

if TYPE_CHECKING:
    import torch

    from ..data.samples import CellImages
    from ..model.image_processing_cytodino import CytoDinoImageProcessor
    from ..model.modeling_cytodino import CytoDinoForImageClassification

_METADATA_KEY = b"cytodino"


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

    def __post_init__(self) -> None:
        n = len(self.ids)
        sizes = {len(self.paths), len(self.sources), len(self.groups), len(self.folds), len(self.labels)}
        if sizes != {n} or self.logits.shape != (n, len(self.classes)):
            raise ValueError(
                f"predictions disagree in length: {n} ids, columns {sorted(sizes)}, logits {self.logits.shape}, "
                f"{len(self.classes)} classes"
            )

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def probabilities(self) -> np.ndarray:
        """Softmax of the logits, float32 (images, classes), computed in float64."""
        logits = self.logits.astype(np.float64)
        shifted = np.exp(logits - logits.max(axis=1, keepdims=True, initial=-np.inf))
        return (shifted / shifted.sum(axis=1, keepdims=True)).astype(np.float32)

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
        )

    def fold(self, name: str) -> Predictions:
        """Only the rows of one fold."""
        return self.select([i for i, fold in enumerate(self.folds) if fold == name])

    def to_parquet(self, path: str | Path) -> None:
        """Write the one schema of the project (see the module text)."""
        import pyarrow as pa
        import pyarrow.parquet as pq

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
                "model_revision": pa.array([self.model_revision] * len(self), pa.string()),
            }
        )
        about = {
            "classes": list(self.classes),
            "group_kind": self.group_kind,
            "model_revision": self.model_revision,
        }
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table.replace_schema_metadata({_METADATA_KEY: json.dumps(about)}), path)

    @classmethod
    def from_parquet(cls, path: str | Path) -> Predictions:
        """Read what `to_parquet` wrote.

        Raises:
            DataError: No predictions file of this project, or rows of several model revisions; names it.
        """
        import pyarrow.parquet as pq

        if not Path(path).is_file():
            raise DataError(f"{path}: no such predictions file")
        table = pq.read_table(path)
        raw = (table.schema.metadata or {}).get(_METADATA_KEY)
        if raw is None:
            raise DataError(f"{path}: no predictions of this project (its metadata names no classes)")
        about = json.loads(raw)
        columns = table.to_pydict()
        if other := set(columns["model_revision"]) - {about["model_revision"]}:
            raise DataError(
                f"{path}: holds rows of several model revisions ({', '.join(sorted(other))}, ...)"
            )
        classes = tuple(about["classes"])
        return cls(
            ids=columns["id"],
            paths=columns["path"],
            sources=columns["source"],
            groups=columns["group"],
            folds=columns["fold"],
            labels=np.array([-1 if v is None else v for v in columns["label"]], dtype=np.int64),
            logits=np.array(columns["logits"], dtype=np.float32).reshape(-1, len(classes)),
            classes=classes,
            model_revision=about["model_revision"],
            group_kind=about["group_kind"],
        )


def write_embeddings(path: str | Path, ids: Sequence[str], embeddings: np.ndarray) -> None:
    """Write embeddings, float32 (images, width), as columns `id, embedding`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    Path(path).parent.mkdir(parents=True, exist_ok=True)
    columns = {
        "id": pa.array(list(ids), pa.string()),
        "embedding": pa.array(list(embeddings.astype(np.float32)), pa.list_(pa.float32())),
    }
    pq.write_table(pa.table(columns), path)


def read_embeddings(path: str | Path) -> tuple[list[str], np.ndarray]:
    """Read what `write_embeddings` wrote: the ids, and float32 (images, width)."""
    import pyarrow.parquet as pq

    table = pq.read_table(path).to_pydict()
    return table["id"], np.array(table["embedding"], dtype=np.float32)


@contextmanager
def computing_in(
    model: CytoDinoForImageClassification, precision: Literal["float32", "bfloat16"]
) -> Iterator[torch.dtype]:
    """Compute in float32, or with the backbone's weights in bfloat16 for a while; yields the type of the pictures.

    Afterwards the very same weights are back. The head, a small part of the work, stays in float32: its answers are
    what is ranked and calibrated.
    """
    import torch

    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[precision]
    originals = [(p, p.data) for p in model.backbone.parameters()]
    cudnn = torch.backends.cudnn
    # cuDNN would compute the patch embedding in TF32, with 10 bits of mantissa.
    exact = cudnn.flags(
        cudnn.enabled, cudnn.benchmark, cudnn.benchmark_limit, cudnn.deterministic, allow_tf32=False
    )
    try:
        for parameter, original in originals:
            parameter.data = original.to(dtype)
        with exact:
            yield dtype
    finally:
        for parameter, original in originals:
            parameter.data = original


def predict(
    model: CytoDinoForImageClassification,
    processor: CytoDinoImageProcessor,
    images: CellImages,
    *,
    model_revision: str,
    batch_size: int = 32,
    workers: int = 0,
    precision: Literal["float32", "bfloat16"] = "float32",
) -> tuple[Predictions, np.ndarray]:
    """Score images with the pictures `pipeline()` would use: no variation, LoRA merged.

    Args:
        model: In eval mode, on the device to compute on.
        processor: Its image processor.
        images: Rows to score, in this order.
        model_revision: Written into every row.
        batch_size: Pictures at once.
        workers: Processes that read pictures.
        precision: Of the backbone's weights and of what it computes; the head always computes in float32. float32 is
            exact float32 on a GPU too (no TF32).

    Returns:
        The predictions, and the head's embeddings, float32 (images, width).

    Raises:
        DataError: A picture cannot be read (names it), or there is none.
        BadNumbersError: The model's answer to a picture is not finite; names it.
    """
    import torch
    from torch.utils.data import DataLoader
    from tqdm.auto import tqdm

    from ..data.dataset import CellDataset, collate
    from ..training.guards import refuse_bad_logits
    from ..training.remedies import FINE_TUNING

    if not images.labels:
        raise DataError("no images to score")
    loader = DataLoader(CellDataset(images, processor), batch_size, num_workers=workers, collate_fn=collate)
    logits, embeddings = [], []
    progress = tqdm(total=len(images.labels), desc="scoring", unit="image")
    with computing_in(model, precision) as dtype, torch.inference_mode(), progress:
        for batch in loader:
            pixels = processor.normalize_batch(batch["pixel_values"].to(model.device))
            output = model(pixel_values=pixels.to(dtype))
            logits.append(output.logits.float().cpu().numpy())
            embeddings.append(output.embedding.float().cpu().numpy())
            progress.update(len(pixels))
    predictions = Predictions(
        ids=images.column("id"),
        paths=images.column("path"),
        sources=images.column("source"),
        groups=images.column("group"),
        folds=images.folds,
        labels=np.asarray(images.labels, dtype=np.int64),
        logits=np.concatenate(logits),
        classes=images.taxonomy.codes,
        model_revision=model_revision,
        group_kind=images.group_kind,
    )
    if bad := [predictions.ids[row] for row in np.flatnonzero(~np.isfinite(predictions.logits).all(axis=1))]:
        refuse_bad_logits("scoring", bad, FINE_TUNING.numbers)
    return predictions, np.concatenate(embeddings)
