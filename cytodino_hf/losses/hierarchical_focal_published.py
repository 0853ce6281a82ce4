"""The hierarchical focal loss of CytoDINO number for number, for comparison with `hierarchical_focal`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from ..taxonomy import Taxonomy
from .base import ClassificationLoss, LossOptions, LossSpec, focal_factor, log_probability_of_label
from .class_weights import ClassWeighting


class Options(LossOptions):
    """Options of `hierarchical_focal_published`; the defaults are the published values."""

    class_weights: ClassWeighting = Field(
        "sqrt_balanced",
        description="Weight of an image by the size of its class in the training fold: none, balanced "
        "(images / (classes x images of the class)) or sqrt_balanced (its square root).",
    )
    gamma: float = Field(2.0, ge=0.0, le=10.0, description="Power of (1 - p of the label).")
    smoothing: float = Field(
        0.1, ge=0.0, lt=1.0, description="Probability the target gives to classes other than the label."
    )
    lineage_share: float = Field(
        0.95,
        ge=0.0,
        le=1.0,
        description="Share of the smoothing that goes to the label's lineage; the rest goes to all others.",
    )
    neighbour_share: float = Field(
        0.01,
        ge=0.0,
        le=1.0,
        description="Share of the lineage's part that goes to the neighbouring stages; the rest goes to the "
        "other members of the lineage.",
    )
    critical_to_safe_factor: float = Field(
        3.0, ge=0.0, le=100.0, description="Factor on the loss of a critical cell predicted as a safe one."
    )
    safe_to_critical_factor: float = Field(
        1.5, ge=0.0, le=100.0, description="Factor on the loss of a safe cell predicted as a critical one."
    )


class PublishedHierarchicalFocal(ClassificationLoss):
    """(1 - p_t)^gamma (-sum_j S[t, j] log p_j) K[t, argmax p], with label t.

    Kept as published, with what is wrong in it: at gamma 2 the minimum lies at p_t = 1 whatever the
    smoothing; the neighbours of a stage get less than the rest of its lineage; in a lineage of two ordered
    stages (EBO, PEB) part of the smoothing is lost and the row sums to 0.906; the factor K has no gradient
    and makes the loss jump where the most probable class changes.

    Args:
        options: Options of the loss.
        taxonomy: Lineages, maturation orders, critical and safe classes; `mll_published` has the orders
            of the published code.
        class_counts: Training images per class, in label order.

    Source:
        CytoDINO (arXiv 2512.17930) and its published code.
    """

    targets: Tensor
    factors: Tensor

    def __init__(self, options: Options, taxonomy: Taxonomy, class_counts: Sequence[int]) -> None:
        super().__init__(options, class_counts)
        self.gamma = options.gamma
        targets = published_targets(
            taxonomy, options.smoothing, options.lineage_share, options.neighbour_share
        )
        factors = torch.ones(len(taxonomy), len(taxonomy))
        critical, safe = torch.tensor(taxonomy.critical), torch.tensor(taxonomy.safe)
        if len(critical) and len(safe):
            factors[critical[:, None], safe] = options.critical_to_safe_factor
            factors[safe[:, None], critical] = options.safe_to_critical_factor
        self.register_buffer("targets", targets.float())
        self.register_buffer("factors", factors)

    def per_image(self, log_probabilities: Tensor, labels: Tensor) -> Tensor:
        """Loss of each image: (batch, classes), (batch,) -> (batch,)."""
        of_label = log_probability_of_label(log_probabilities, labels)
        cross_entropy = -(self.targets[labels] * log_probabilities).sum(dim=-1)
        factor = self.factors[labels, log_probabilities.argmax(dim=-1)]
        return focal_factor(of_label, self.gamma) * cross_entropy * factor


def published_targets(
    taxonomy: Taxonomy, smoothing: float, lineage_share: float, neighbour_share: float
) -> Tensor:
    """The published smoothing matrix S; rows may sum to less than one (see the class).

    A class alone in its lineage gives the lineage's part to all others; a part that no class can take is
    lost.

    Args:
        taxonomy: Lineages and maturation orders.
        smoothing: e; the label gets 1 - e.
        lineage_share: w; e w goes to the lineage, e (1 - w) to all classes outside it, evenly.
        neighbour_share: b; where the label has neighbours they share e w b, the rest of the lineage e w (1 -
            b).

    Returns:
        float64 tensor (classes, classes), row = label.
    """
    number = len(taxonomy)
    targets = torch.zeros(number, number, dtype=torch.float64)
    for label, cell_class in enumerate(taxonomy.classes):
        lineage = [j for j in range(number) if j != label and taxonomy.lineages[j] == cell_class.lineage]
        outside = [j for j in range(number) if j != label and j not in lineage]
        neighbours = [taxonomy.index(code) for code in taxonomy.neighbours(cell_class.code)]
        distant = [j for j in lineage if j not in neighbours]
        to_lineage = smoothing * lineage_share if lineage else 0.0
        to_neighbours = to_lineage * neighbour_share if neighbours else 0.0
        targets[label, label] = 1.0 - smoothing
        for members, mass in (
            (neighbours, to_neighbours),
            (distant, to_lineage - to_neighbours),
            (outside, smoothing - to_lineage),
        ):
            if members:
                targets[label, members] = mass / len(members)
    return targets


def build(options: Options, taxonomy: Taxonomy, class_counts: Sequence[int]) -> PublishedHierarchicalFocal:
    """Make the loss."""
    return PublishedHierarchicalFocal(options, taxonomy, class_counts)


SPEC = LossSpec(Options, build, "The hierarchical focal loss as CytoDINO published it, faults included.")
