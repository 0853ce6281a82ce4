"""The losses a recipe can name, one file each; a new one is a file, a line in `LOSSES` and a test file."""

from __future__ import annotations

from collections.abc import Sequence

from ..taxonomy import Taxonomy
from . import cross_entropy, focal, hierarchical_focal, hierarchical_focal_published
from .base import ClassificationLoss, LossOptions, LossSpec

__all__ = ["LOSSES", "ClassificationLoss", "LossOptions", "LossSpec", "build_loss"]

LOSSES: dict[str, LossSpec] = {
    "cross_entropy": cross_entropy.SPEC,
    "focal": focal.SPEC,
    "hierarchical_focal": hierarchical_focal.SPEC,
    "hierarchical_focal_published": hierarchical_focal_published.SPEC,
}


def build_loss(
    name: str, options: LossOptions, taxonomy: Taxonomy, class_counts: Sequence[int]
) -> ClassificationLoss:
    """Make the loss a recipe names.

    Args:
        name: A key of `LOSSES`.
        options: Its options, an instance of `LOSSES[name].options`.
        taxonomy: The classes of the model, in label order.
        class_counts: Images per class in the training fold, in label order; 0 is allowed for some classes.

    Returns:
        A module `(logits (batch, classes), labels (batch,)) -> scalar` without parameters; move it to the
        device of the logits.

    Raises:
        ValueError: Unknown name, options of another loss, or counts that do not fit the taxonomy.
    """
    if name not in LOSSES:
        raise ValueError(f"unknown loss {name!r} (known: {', '.join(LOSSES)})")
    spec = LOSSES[name]
    if not isinstance(options, spec.options):
        raise ValueError(
            f"loss {name!r} takes {spec.options.__module__}.Options, not {type(options).__name__}"
        )
    if len(class_counts) != len(taxonomy):
        raise ValueError(
            f"{len(class_counts)} class counts for the {len(taxonomy)} classes of {taxonomy.name!r}"
        )
    return spec.build(options, taxonomy, class_counts)
