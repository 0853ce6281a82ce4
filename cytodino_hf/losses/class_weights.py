"""How much one image of a class counts in the loss, from the numbers of training images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import torch

ClassWeighting: TypeAlias = Literal["none", "sqrt_balanced", "balanced"]


def class_weights(kind: ClassWeighting, class_counts: Sequence[int]) -> torch.Tensor:
    """Weight of each class: 1, scikit-learn's "balanced" weight, or its square root.

    The balanced weight of class c is N / (C n_c), with N images in the C classes that have any; its mean over
    the images is 1. A class without a training image gets weight 0 under both balanced kinds: nothing can be
    learned about it, and its images in another fold must not blow up the loss reported there.

    Args:
        kind: `none` (every image counts the same), `sqrt_balanced` or `balanced`.
        class_counts: Training images per class, in label order; 0 is allowed for some classes, not for all.

    Returns:
        float32 tensor (classes,).

    Raises:
        ValueError: No class, no image at all, a negative count, or an unknown kind.

    Example:
        >>> class_weights("balanced", [1, 3, 0]).tolist()
        [2.0, 0.6666666865348816, 0.0]
    """
    counts = torch.tensor(list(class_counts), dtype=torch.float64)
    if not len(counts) or bool((counts < 0).any()) or not bool((counts > 0).any()):
        raise ValueError(f"class counts must be zero or more, with at least one image: {list(class_counts)}")
    if kind == "none":
        return torch.ones(len(counts))
    present = counts > 0
    weights = torch.where(present, counts.sum() / (present.sum() * counts.clamp(min=1)), 0.0)
    if kind == "sqrt_balanced":
        return weights.sqrt().float()
    if kind == "balanced":
        return weights.float()
    raise ValueError(f"unknown class weights {kind!r} (known: none, sqrt_balanced, balanced)")
