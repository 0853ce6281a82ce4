"""Focal loss: images that are already right count little."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field
from torch import Tensor

from ..taxonomy import Taxonomy
from .base import ClassificationLoss, LossOptions, LossSpec, focal_factor, log_probability_of_label


class Options(LossOptions):
    """Options of `focal`."""

    gamma: float = Field(
        2.0, ge=0.0, le=10.0, description="Power of (1 - p of the label); 0 gives plain cross-entropy."
    )


class Focal(ClassificationLoss):
    """-(1 - p_t)^gamma log p_t, with label t.

    There is no smoothing here: a focal factor on a smoothed sum drives p_t to 1 all the same.
    `hierarchical_focal` has the form that keeps the smoothed optimum.

    Args:
        options: Options of the loss.
        class_counts: Training images per class, in label order.

    Source:
        Lin et al. 2017, Focal loss for dense object detection (arXiv 1708.02002), equation 4.
    """

    def __init__(self, options: Options, class_counts: Sequence[int]) -> None:
        super().__init__(options, class_counts)
        self.gamma = options.gamma

    def per_image(self, log_probabilities: Tensor, labels: Tensor) -> Tensor:
        """Focal loss of each image: (batch, classes), (batch,) -> (batch,)."""
        of_label = log_probability_of_label(log_probabilities, labels)
        return -focal_factor(of_label, self.gamma) * of_label


def build(options: Options, taxonomy: Taxonomy, class_counts: Sequence[int]) -> Focal:
    """Make the loss; the taxonomy is not used."""
    return Focal(options, class_counts)


SPEC = LossSpec(Options, build, "Focal loss: images that are already right count little.")
