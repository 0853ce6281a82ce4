"""The prediction loop: pictures in batches through a model, for the folds of a run and for `cytodino predict` alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..errors import DataError
from .predictions import Predictions

if TYPE_CHECKING:
    import torch
    from torch.utils.data import Dataset

    from ..data.samples import CellImages
    from ..model.image_processing_cytodino import CytoDinoImageProcessor
    from ..model.modeling_cytodino import CytoDinoForImageClassification

Precision = Literal["float32", "bfloat16"]
#: What computing the backbone in bfloat16 may move a logit by, as a share of the largest logit. Every block rounds its
#: sums to 2^-9. Measured: 0.4 % with the embedded backbone (6 blocks) on 400 drawn cells, 1.2 % with a ViT-S.
BFLOAT16_SHARE = 0.05
#: Pictures at once where nobody says otherwise.
BATCH_SIZE = 32


#: `(model, normalised pictures) -> (logits, embeddings)`, each with a row for every picture.
Answer = Callable[["CytoDinoForImageClassification", "torch.Tensor"], tuple["torch.Tensor", "torch.Tensor"]]


@dataclass(frozen=True)
class ScoredBatch:
    """What the model said about one batch.

    Args:
        rows: Row numbers of the pictures, int64 (pictures,).
        logits: float32 (pictures, classes).
        embeddings: Of the head, float32 (pictures, width).
        problems: Row number -> why this picture could not be read, for data sets that go on without it.
    """

    rows: np.ndarray
    logits: np.ndarray
    embeddings: np.ndarray
    problems: dict[int, str] = field(default_factory=dict)


@contextmanager
def computing_in(model: CytoDinoForImageClassification, precision: Precision) -> Iterator[torch.dtype]:
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


def plain_answer(
    model: CytoDinoForImageClassification, pixels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the model says about pictures as they are: logits and embeddings."""
    output = model(pixel_values=pixels)
    return output.logits, output.embedding


def score(
    model: CytoDinoForImageClassification,
    processor: CytoDinoImageProcessor,
    pictures: Dataset[Any],
    receive: Callable[[ScoredBatch], None],
    *,
    batch_size: int = BATCH_SIZE,
    workers: int = 0,
    precision: Precision = "float32",
    show_progress: bool = True,
    answer: Answer = plain_answer,
) -> None:
    """Score pictures as `pipeline()` would: no variation, LoRA merged.

    Args:
        model: In eval mode, on the device to compute on.
        processor: Its image processor.
        pictures: Gives batches of uint8 `pixel_values` and `rows` (see `data.dataset.collate`), and perhaps
            `problems` (see `ScoredBatch`).
        receive: Gets every batch, in the order of the rows.
        batch_size: Pictures at once.
        workers: Processes that read pictures.
        precision: Of the backbone's weights and of what it computes; the head always computes in float32. float32 is
            exact float32 on a GPU too (no TF32).
        show_progress: Show a bar on stderr.
        answer: How the model is asked; see `symmetries` for another way.

    Raises:
        DataError: A picture cannot be read and the data set does not go on without it; names it.
    """
    import torch
    from torch.utils.data import DataLoader
    from tqdm.auto import tqdm

    from ..data.dataset import collate

    loader = DataLoader(pictures, batch_size, num_workers=workers, collate_fn=collate)
    count = len(pictures)  # type: ignore[arg-type]
    progress = tqdm(total=count, desc="scoring", unit="image", disable=not show_progress)
    with computing_in(model, precision) as dtype, torch.inference_mode(), progress:
        for batch in loader:
            pixels = processor.normalize_batch(batch["pixel_values"].to(model.device))
            problems = batch.get("problems", {})
            if len(pixels):
                logits, embeddings = answer(model, pixels.to(dtype))
            else:  # a backbone takes no batch of nothing
                logits = embeddings = torch.empty(0, model.config.num_labels)
            receive(ScoredBatch(batch["rows"].numpy(), _floats(logits), _floats(embeddings), problems))
            progress.update(len(pixels) + len(problems))


def _floats(values: torch.Tensor) -> np.ndarray:
    floats: np.ndarray = values.float().cpu().numpy()
    return floats


def predict(
    model: CytoDinoForImageClassification,
    processor: CytoDinoImageProcessor,
    images: CellImages,
    *,
    model_revision: str,
    batch_size: int = BATCH_SIZE,
    workers: int = 0,
    precision: Precision = "float32",
    answer: Answer = plain_answer,
) -> tuple[Predictions, np.ndarray]:
    """Score the images of a set; none may be missing.

    Args:
        model: See `score`.
        processor: See `score`.
        images: Rows to score, in this order.
        model_revision: Written into every row.
        batch_size: Pictures at once.
        workers: Processes that read pictures.
        precision: See `score`.
        answer: See `score`.

    Returns:
        The predictions, and the head's embeddings, float32 (images, width).

    Raises:
        DataError: A picture cannot be read (names it), or there is none.
        BadNumbersError: The model's answer to a picture is not finite; names it.
    """
    from ..data.dataset import CellDataset
    from ..training.guards import refuse_bad_logits
    from ..training.remedies import FINE_TUNING

    if not images.labels:
        raise DataError("no images to score")
    scored: list[ScoredBatch] = []
    score(
        model,
        processor,
        CellDataset(images, processor),
        scored.append,
        batch_size=batch_size,
        workers=workers,
        precision=precision,
        answer=answer,
    )
    logits = np.concatenate([batch.logits for batch in scored])
    predictions = as_predictions(images, logits, model_revision)
    if bad := [predictions.ids[row] for row in np.flatnonzero(~np.isfinite(predictions.logits).all(axis=1))]:
        refuse_bad_logits("scoring", bad, FINE_TUNING.numbers)
    return predictions, np.concatenate([batch.embeddings for batch in scored])


def as_predictions(images: CellImages, logits: np.ndarray, revision: str) -> Predictions:
    """Answers to some images in the form every report takes.

    Args:
        images: The rows.
        logits: (images, classes).
        revision: What said so.
    """
    return Predictions(
        ids=images.column("id"),
        paths=images.column("path"),
        sources=images.column("source"),
        groups=images.column("group"),
        folds=images.folds,
        labels=np.asarray(images.labels, dtype=np.int64),
        logits=logits,
        classes=images.taxonomy.codes,
        model_revision=revision,
        group_kind=images.group_kind,
    )
