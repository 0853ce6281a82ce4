"""What every loss has in common: strict options, a weight per class, one number computed in float32."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F

from ..taxonomy import Taxonomy
from .class_weights import ClassWeighting, class_weights

#: Below this, 1 - p is taken as this: the slope of (1 - p)^gamma has no limit at 0 for gamma below 1.
SMALLEST_DISTANCE = 1e-8


class LossOptions(BaseModel):
    """Options every loss has; unknown keys, text for numbers, NaN and values out of range are refused."""

    model_config: ClassVar[ConfigDict] = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False
    )

    class_weights: ClassWeighting = Field(
        "none",
        description="Weight of an image by the size of its class in the training fold: none, balanced "
        "(images / (classes x images of the class)) or sqrt_balanced (its square root).",
    )


class ClassificationLoss(nn.Module):
    """Mean over the batch of `class weight of the label x loss of the image`, computed in float32.

    The mean divides by the number of images, not by the sum of their weights: the mean of equal micro-batches
    is then the mean of the whole batch, and 1 x 8 and 4 x 2 accumulation give the same gradient.

    Args:
        options: Options of the loss.
        class_counts: Training images per class, in label order (for `options.class_weights`).
    """

    class_weights: Tensor

    def __init__(self, options: LossOptions, class_counts: Sequence[int]) -> None:
        super().__init__()
        self.register_buffer("class_weights", class_weights(options.class_weights, class_counts))

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Loss of one batch.

        Args:
            logits: (batch, classes), any floating type.
            labels: (batch,), int64.

        Returns:
            float32 scalar.
        """
        log_probabilities = F.log_softmax(logits.float(), dim=-1)
        return (self.class_weights[labels] * self.per_image(log_probabilities, labels)).mean()

    def per_image(self, log_probabilities: Tensor, labels: Tensor) -> Tensor:
        """Loss of each image before class weights.

        Args:
            log_probabilities: (batch, classes), float32.
            labels: (batch,), int64.

        Returns:
            (batch,), float32.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class LossSpec:
    """One row of the table of losses.

    Args:
        options: Model of the loss section of a recipe, without its `name`.
        build: Makes the loss from options, taxonomy and training images per class.
        summary: One sentence for help texts.
    """

    options: type[LossOptions]
    build: Callable[[Any, Taxonomy, Sequence[int]], ClassificationLoss]
    summary: str


def log_probability_of_label(log_probabilities: Tensor, labels: Tensor) -> Tensor:
    """log p of the label of each image: (batch, classes) -> (batch,)."""
    return log_probabilities.gather(-1, labels.unsqueeze(-1)).squeeze(-1)


def focal_factor(log_probability: Tensor, gamma: float) -> Tensor:
    """(1 - p)^gamma from log p, with a gradient that stays finite at p = 1 for every gamma.

    Source:
        Lin et al. 2017, Focal loss for dense object detection (arXiv 1708.02002), equation 4.
    """
    return torch.special.expm1(log_probability).neg().clamp(min=SMALLEST_DISTANCE).pow(gamma)
