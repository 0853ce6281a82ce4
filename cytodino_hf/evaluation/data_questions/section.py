"""The section of a report about its images: class counts, copies, stain, doubtful labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ...taxonomy import Taxonomy
from ..plots import BLUE, GREEN, INK, ORANGE, VERMILLION, new_figure, shortened, tidy
from ..statistics import FEW_IMAGES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLOURS = {"train": BLUE, "validation": ORANGE, "calibration": GREEN, "test": VERMILLION}


def data_questions_section(
    counts: Mapping[str, Mapping[str, int]],
    taxonomy: Taxonomy,
    *,
    copies: Mapping[str, Any] | None = None,
    stain: Mapping[str, Any] | None = None,
    audit: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What is known of the images, with a sentence for what nobody looked at.

    Args:
        counts: Fold -> class code -> images (`Split.counts`).
        taxonomy: The classes.
        copies: From `copies.copies_section`; None where nobody looked.
        stain: From `stain.stain_section`; None where nobody looked.
        audit: From `label_audit.audit_section`; None where no out-of-fold predictions exist.
    """
    gaps = {
        "copies": "Nobody looked for images that show the same picture.",
        "stain": "The stain was not measured.",
        "audit": "Labels were not audited: that needs predictions of every image by a model not trained on it.",
    }
    parts = {"copies": copies, "stain": stain, "audit": audit}
    return {
        "counts": class_counts(counts, taxonomy),
        **parts,
        "gaps": [gaps[name] for name, part in parts.items() if part is None],
    }


def class_counts(counts: Mapping[str, Mapping[str, int]], taxonomy: Taxonomy) -> dict[str, Any]:
    """Images of each class by fold, rarest class named, few test images marked.

    Args:
        counts: Fold -> class code -> images.
        taxonomy: The classes.
    """
    folds = [fold for fold, of_class in counts.items() if sum(of_class.values())]
    totals = {code: sum(counts[fold].get(code, 0) for fold in folds) for code in taxonomy.codes}
    whole = sum(totals.values())
    present = [code for code in taxonomy.codes if totals[code]]
    most, least = (
        (max(present, key=totals.__getitem__), min(present, key=totals.__getitem__))
        if present
        else (None, None)
    )
    return {
        "folds": folds,
        "images": whole,
        "few": FEW_IMAGES,
        "classes": [
            {
                "code": cell.code,
                "name": cell.name,
                "lineage": cell.lineage,
                "images": totals[cell.code],
                "share": totals[cell.code] / whole if whole else None,
                "folds": {fold: counts[fold].get(cell.code, 0) for fold in folds},
                "has_few_test_images": "test" in folds and counts["test"].get(cell.code, 0) < FEW_IMAGES,
            }
            for cell in taxonomy.classes
        ],
        "most": most,
        "least": least,
        "imbalance": totals[most] / totals[least] if most is not None and least is not None else None,
    }


def draw_class_counts(section: Mapping[str, Any]) -> Figure:
    """Images of each class and fold, the most frequent class first, on a logarithmic scale.

    Args:
        section: From `class_counts`, with images.
    """
    classes = sorted((c for c in section["classes"] if c["images"]), key=lambda c: -c["images"])
    figure = new_figure(5.6, max(2.2, 0.25 * len(classes) + 1.0))
    axes = figure.subplots()
    places = np.arange(len(classes))
    markers = dict(zip(_COLOURS, ("o", "^", "s", "D"), strict=True))
    axes.hlines(places, 0.7, [c["images"] for c in classes], color="#e4e7eb", linewidth=5)
    for fold in section["folds"]:
        values = np.array([c["folds"][fold] for c in classes])
        axes.plot(
            values[values > 0], places[values > 0], markers.get(fold, "P"), color=_COLOURS.get(fold, INK),
            markersize=5, linestyle="none", label=fold,
        )  # fmt: skip
    axes.set_xscale("log")
    axes.set_xlim(left=0.7)
    names = [f"{shortened(c['code'])}  {c['images']:,}" for c in classes]
    axes.set_yticks(places, labels=names, fontsize=8, color=INK)
    for label in axes.get_yticklabels():
        label.set_parse_math(False)
    axes.set_ylim(len(classes) - 0.4, -0.6)
    axes.set_xlabel("images of a fold; the bar is all folds", fontsize=9)
    axes.legend(frameon=False, fontsize=8, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    tidy(axes, "x")
    return figure
