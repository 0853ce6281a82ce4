"""Focal loss that knows lineages, maturation and dangerous mistakes; its optimum is the smoothed target."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from ..taxonomy import CRITICAL_TO_SAFE_COST, SAFE_TO_CRITICAL_COST, Taxonomy
from ..taxonomy import mistake_costs as table_of_costs
from .base import SMALLEST_DISTANCE, ClassificationLoss, LossOptions, LossSpec


class Options(LossOptions):
    """Options of `hierarchical_focal`."""

    gamma: float = Field(
        0.0,
        ge=0.0,
        le=10.0,
        description="Power of the distance between target and prediction, the focal factor; 0 gives plain "
        "cross-entropy with the soft target, and probabilities that are less modest than with 2.",
    )
    smoothing: float = Field(
        0.05,
        ge=0.0,
        lt=0.5,
        description="Probability the target gives to classes other than the label; below one half, so that "
        "the label stays the most probable class.",
    )
    lineage_share: float = Field(
        0.95,
        ge=0.0,
        le=1.0,
        description="Share of the smoothing kept for the other classes of the label's lineage; the rest is "
        "spread evenly over all classes but the label.",
    )
    neighbour_share: float = Field(
        0.5,
        ge=0.0,
        le=1.0,
        description="Share of the lineage's part kept for the stages just before and after the label; the "
        "rest is spread evenly over the lineage, neighbours included.",
    )
    critical_to_safe_cost: float = Field(
        CRITICAL_TO_SAFE_COST, ge=0.0, le=100.0, description="Cost of calling a critical cell a safe one."
    )
    safe_to_critical_cost: float = Field(
        SAFE_TO_CRITICAL_COST, ge=0.0, le=100.0, description="Cost of calling a safe cell a critical one."
    )
    cost_weight: float = Field(
        0.2, ge=0.0, le=100.0, description="Weight of the expected cost in the loss; 0 leaves it out."
    )


class HierarchicalFocal(ClassificationLoss):
    """D^gamma H(q, p) + cost_weight max(0, sum_j C[t, j] (p_j - q_j)), with target q and prediction p.

    q is the soft target of label t (`soft_targets`), D = sqrt(1/2 sum_j (q_j - p_j)^2) its distance to p
    (0 to 1), H(q, p) = -sum_j q_j log p_j the cross-entropy, C the cost of mistakes (`mistake_costs`).
    gamma = 0 gives the cross-entropy with q. Without smoothing D is 1 - p_t where the rest of p lies on one
    class (the focal loss), and less, by at most a factor 0.71, where it is spread over several.

    The only minimum is p = q. D and the cost term are convex in p, at least zero, and zero at p = q; H(q, p)
    is convex, positive, and least at p = q. So along any straight line away from q none of the three falls
    and D^gamma H strictly rises: no other point is stationary. (With the published factor (1 - p_t)^gamma
    the minimum goes to p_t = 1, because that factor is zero there and not at q.)

    The cost counts only above that of the target itself, so it leaves this minimum where it is, and it acts
    well before the most probable class changes. What it moves is the compromise between images that look
    alike and bear different labels: with the default costs, without smoothing and focal factor, cells that
    are critical in half of all cases get a probability of 0.537 for critical instead of 0.5.

    Args:
        options: Options of the loss.
        taxonomy: Lineages, maturation orders, critical and safe classes.
        class_counts: Training images per class, in label order.

    Source:
        The soft targets and costs follow CytoDINO (arXiv 2512.17930), the focal factor Lin et al. 2017
        (arXiv 1708.02002); the combination is this project's own.
    """

    targets: Tensor
    costs: Tensor

    def __init__(self, options: Options, taxonomy: Taxonomy, class_counts: Sequence[int]) -> None:
        super().__init__(options, class_counts)
        self.gamma = options.gamma
        self.cost_weight = options.cost_weight
        targets = soft_targets(taxonomy, options.smoothing, options.lineage_share, options.neighbour_share)
        costs = mistake_costs(taxonomy, options.critical_to_safe_cost, options.safe_to_critical_cost)
        self.register_buffer("targets", targets.float())
        self.register_buffer("costs", costs.float())

    def per_image(self, log_probabilities: Tensor, labels: Tensor) -> Tensor:
        """Loss of each image: (batch, classes), (batch,) -> (batch,)."""
        target = self.targets[labels]  # (batch, classes)
        probabilities = log_probabilities.exp()
        cross_entropy = -(target * log_probabilities).sum(dim=-1)
        squared_distance = 0.5 * (target - probabilities).square().sum(dim=-1)
        focal = squared_distance.clamp(min=SMALLEST_DISTANCE**2).pow(self.gamma / 2) * cross_entropy
        excess_cost = (self.costs[labels] * (probabilities - target)).sum(dim=-1)
        return focal + self.cost_weight * excess_cost.clamp(min=0.0)


def soft_targets(
    taxonomy: Taxonomy, smoothing: float, lineage_share: float, neighbour_share: float
) -> Tensor:
    """The probabilities each label asks for: most for itself, then neighbours, lineage, all others.

    Row t gives 1 - e to the label t and spreads the smoothing e in three even layers: e w b over the
    neighbours of t in the maturation order, e w (1 - b) over its lineage (neighbours included), e (1 - w)
    over all classes but t (lineage included). Each layer adds to those inside it, so for every w and b a
    neighbour never gets less than another member of the lineage, and a member never less than a class
    outside. A layer without classes (no order, a class alone in its lineage) hands its part to the next wider
    one.

    Args:
        taxonomy: Lineages and maturation orders.
        smoothing: e, in [0, 1).
        lineage_share: w, in [0, 1].
        neighbour_share: b, in [0, 1].

    Returns:
        float64 tensor (classes, classes); every row sums to one.
    """
    number = len(taxonomy)
    targets = torch.zeros(number, number, dtype=torch.float64)
    for label, cell_class in enumerate(taxonomy.classes):
        others = [j for j in range(number) if j != label]
        lineage = [j for j in others if taxonomy.lineages[j] == cell_class.lineage]
        neighbours = [taxonomy.index(code) for code in taxonomy.neighbours(cell_class.code)]
        rest = smoothing if others else 0.0
        targets[label, label] = 1.0 - rest
        to_lineage = rest * lineage_share if lineage else 0.0
        to_neighbours = to_lineage * neighbour_share if neighbours else 0.0
        layers = (
            (neighbours, to_neighbours),
            (lineage, to_lineage - to_neighbours),
            (others, rest - to_lineage),
        )
        for members, mass in layers:
            if members:
                targets[label, members] += mass / len(members)
    return targets


def mistake_costs(taxonomy: Taxonomy, critical_to_safe: float, safe_to_critical: float) -> Tensor:
    """Cost of predicting class j for label t: above zero only between critical and safe classes.

    Returns:
        float64 tensor (classes, classes), row = label.
    """
    return torch.tensor(table_of_costs(taxonomy, critical_to_safe, safe_to_critical), dtype=torch.float64)


def build(options: Options, taxonomy: Taxonomy, class_counts: Sequence[int]) -> HierarchicalFocal:
    """Make the loss."""
    return HierarchicalFocal(options, taxonomy, class_counts)


SPEC = LossSpec(
    Options,
    build,
    "Focal loss to soft targets by lineage and maturation, plus the expected cost of dangerous mistakes.",
)
