"""Test-time augmentation: the model is asked about the 8 symmetries of the square, and its probabilities are averaged.

A cell has no upright, so no symmetry is nearer to the truth than another. The average costs eight times the computing;
whether it helps is said by the paired difference to the plain answers of the same model on the same images.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import DataError
from ..taxonomy import Taxonomy
from .comparison import LESS_IS_BETTER, paired_differences
from .image_shares import share_of_images
from .predictions import Predictions
from .resampling import are_grouped
from .scoring import BATCH_SIZE, Precision, predict

if TYPE_CHECKING:
    import torch

    from ..data.samples import CellImages
    from ..model.image_processing_cytodino import CytoDinoImageProcessor
    from ..model.modeling_cytodino import CytoDinoForImageClassification

#: Turns by 0, 90, 180 and 270 degrees, each as it is and mirrored.
SYMMETRIES = 8
#: What is compared; the last ones say whether the probabilities got better.
_COMPARED = ("macro_f1", "balanced_accuracy", "accuracy", "critical_to_safe", "nll", "brier", "ece")
_HOW = (
    "Each picture was shown in the 8 symmetries of the square (turned by 0, 90, 180 and 270 degrees, each also "
    "mirrored) and the 8 probabilities of each class were averaged. A temperature fitted on plain answers does not "
    "hold for averaged ones."
)


def turned(pixels: torch.Tensor, symmetry: int) -> torch.Tensor:
    """Pictures (..., side, side) in one of the symmetries.

    Args:
        pixels: Square pictures.
        symmetry: 0 leaves them as they are, 1 to 3 turn by quarters, 4 to 7 do the same and mirror left and right.
    """
    import torch

    quarter = torch.rot90(pixels, symmetry % 4, (-2, -1))
    return quarter.flip(-1) if symmetry >= 4 else quarter


def averaged_answer(
    model: CytoDinoForImageClassification, pixels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The logarithm of the mean probability over the symmetries, which is a logit, and the mean embedding.

    Args:
        model: In eval mode.
        pixels: Normalised pictures (batch, 3, side, side).

    Raises:
        DataError: The pictures are not square, so that a turned one has another shape.
    """
    import torch

    height, width = pixels.shape[-2:]
    if height != width:
        raise DataError(
            f"pictures of {height} x {width} pixels have no 8 symmetries: let the image processor make them square "
            "(data.image_size_px)"
        )
    outputs = [model(pixel_values=turned(pixels, symmetry)) for symmetry in range(SYMMETRIES)]
    # In logarithms no small probability becomes zero.
    logs = torch.stack([torch.log_softmax(output.logits.float(), dim=1) for output in outputs])
    embeddings = torch.stack([output.embedding.float() for output in outputs])
    return torch.logsumexp(logs, dim=0) - math.log(SYMMETRIES), embeddings.mean(dim=0)


def score_with_symmetries(
    model: CytoDinoForImageClassification,
    processor: CytoDinoImageProcessor,
    images: CellImages,
    *,
    model_revision: str,
    batch_size: int = BATCH_SIZE,
    workers: int = 0,
    precision: Precision = "float32",
) -> tuple[Predictions, np.ndarray]:
    """`scoring.predict`, with the answers averaged over the 8 symmetries of the square.

    Args:
        model, processor, images, model_revision, batch_size, workers, precision: As of `scoring.predict`.

    Returns:
        Predictions whose probabilities are the means (their logits are the logarithms of these), and the mean
        embeddings, float32 (images, width).

    Raises:
        DataError: A picture cannot be read, there is none, or they are not square.
        BadNumbersError: The model's answer to a picture is not finite; names it.
    """
    return predict(
        model,
        processor,
        images,
        model_revision=model_revision,
        batch_size=batch_size,
        workers=workers,
        precision=precision,
        answer=averaged_answer,
    )


def symmetries_section(
    plain: Predictions,
    averaged: Predictions,
    taxonomy: Taxonomy,
    *,
    classes_counted: np.ndarray | None = None,
    draws: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Any]:
    """What averaging over the symmetries changes, paired image by image.

    Args:
        plain: Answers to the pictures as they are.
        averaged: Of `score_with_symmetries`, to the same pictures.
        taxonomy: The classes, in label order.
        classes_counted, draws, seed, level: Of the paired bootstrap (`comparison.paired_differences`).

    Returns:
        `images`, `views`, `how`; `metrics`: one row a metric with both values, the difference (averaged minus plain)
        and its interval (ends of None where `doubt` says why); `changed`: how many answers became right, became wrong,
        or went from one mistake to another, and the p value of McNemar's exact test (None where no answer changed
        between right and wrong, or images belong to groups). `metrics` is empty and `why` says so where no image has a
        label.

    Raises:
        DataError: The two are not of the same images and labels.
    """
    n = int((plain.labels >= 0).sum())
    section: dict[str, Any] = {"views": SYMMETRIES, "how": _HOW, "images": n, "why": None, "metrics": []}
    if not n:
        return {**section, "changed": None, "why": "No image has a label, so nothing can be compared."}
    found = paired_differences(
        [averaged], [plain], taxonomy, _COMPARED, draws, seed, classes_counted=classes_counted, level=level
    )
    for name, difference in found.items():
        section["metrics"].append(
            {
                "name": name,
                "plain": difference.other,
                "averaged": difference.ours,
                "difference": difference.value,
                "low": difference.low,
                "high": difference.high,
                "n": difference.n,
                "less_is_better": name in LESS_IS_BETTER,
                "is_clear": difference.is_clear,
                "doubt": difference.doubt,
                "small_classes": list(difference.small_classes),
            }
        )
    drawn = {"draws": draws, "seed": seed, "level": level}
    return {**section, "changed": _changed(plain, averaged, drawn)}


def _changed(plain: Predictions, averaged: Predictions, drawn: Mapping[str, Any]) -> dict[str, Any]:
    from scipy.stats import binomtest

    row_of = {name: row for row, name in enumerate(averaged.ids)}
    before = plain.select(np.flatnonzero(plain.labels >= 0))
    after = averaged.select([row_of[name] for name in before.ids])
    was_right, is_right = before.predicted == before.labels, after.predicted == before.labels
    became_right, became_wrong = int((~was_right & is_right).sum()), int((was_right & ~is_right).sum())
    changed = before.predicted != after.predicted
    between = became_right + became_wrong
    # The test takes images as independent, which those of one group are not.
    is_testable = between > 0 and not are_grouped(before.groups)
    return {
        "answers": share_of_images(changed, before.labels, before.groups, **drawn).to_dict(),
        "count": int(changed.sum()),
        "became_right": became_right,
        "became_wrong": became_wrong,
        "between_mistakes": int(changed.sum()) - between,
        "p_value": float(binomtest(became_right, between).pvalue) if is_testable else None,
    }
