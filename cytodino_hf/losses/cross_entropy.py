"""Cross-entropy with even label smoothing."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field
from torch import Tensor

from ..taxonomy import Taxonomy
from .base import ClassificationLoss, LossOptions, LossSpec, log_probability_of_label


class Options(LossOptions):
    """Options of `cross_entropy`."""

    smoothing: float = Field(
        0.0,
        ge=0.0,
        lt=1.0,
        description="Probability taken from the label and spread evenly over all classes, label included.",
    )


class CrossEntropy(ClassificationLoss):
    """-(1 - e) log p_t - (e / K) sum_j log p_j, with label t, K classes and smoothing e.

    The class weight is that of the label, for the whole sum (`torch.nn.CrossEntropyLoss` weighs each term of
    the smoothed sum by its own class, and divides by the sum of weights).

    Args:
        options: Options of the loss.
        class_counts: Training images per class, in label order.
    """

    def __init__(self, options: Options, class_counts: Sequence[int]) -> None:
        super().__init__(options, class_counts)
        self.smoothing = options.smoothing

    def per_image(self, log_probabilities: Tensor, labels: Tensor) -> Tensor:
        """Smoothed cross-entropy of each image: (batch, classes), (batch,) -> (batch,)."""
        of_label = log_probability_of_label(log_probabilities, labels)
        return -(1.0 - self.smoothing) * of_label - self.smoothing * log_probabilities.mean(dim=-1)


def build(options: Options, taxonomy: Taxonomy, class_counts: Sequence[int]) -> CrossEntropy:
    """Make the loss; the taxonomy is not used."""
    return CrossEntropy(options, class_counts)


SPEC = LossSpec(Options, build, "Cross-entropy with even label smoothing.")
