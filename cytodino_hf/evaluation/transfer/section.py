"""How well a model tells the common classes of another source apart, as a report holds it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...errors import DataError
from ..calibration.stages import calibration_metrics
from ..comparison import COMPARED, LESS_IS_BETTER, paired_differences
from ..fold_report import fold_section
from ..image_shares import share_of_images
from ..predictions import Predictions, softmax
from ..statistics import FEW_IMAGES
from .correspondence import Correspondence

_HOW = (
    "Only images of the common classes are scored. The probabilities of the common classes are divided by their sum, "
    "so the model cannot lose by an answer that the other source has no class for; how often its first choice is such "
    "an answer stands beside it."
)


def transfer_section(
    answers: Mapping[str, Predictions],
    their_labels: Sequence[str],
    common: Correspondence,
    *,
    source: str,
    matchings: Mapping[str, str] | None = None,
    draws: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Any]:
    """Score a model on the common classes of another source.

    Args:
        answers: Name of a way to prepare the pictures -> what the model said then, in its own classes; the first is the
            one the others are compared with. All of the same images in one order.
        their_labels: Code of each image in the other source's taxonomy, in that order.
        common: Of `correspondence`.
        source: What to call the other source.
        matchings: Name of the way -> what was done, in words.
        draws, seed, level: Of the bootstrap.

    Returns:
        `source`, `images` (scored), `how`, `by`; `classes` (the common ones: codes on both sides, images, whether they
        are few, a note); `left_out_theirs` (code, name, images) and `left_out_ours`; `absent` (common classes without
        an image); `ways`: name -> `prepared`, `scores` (of `fold_section`), `probabilities` (NLL, Brier score, ECE),
        `over_all` (share of right answers among all of the model's classes), `first_choice_elsewhere` and
        `mass_elsewhere` (what goes to classes that are not common); `differences`: name -> metric -> paired difference
        to the first way.

    Raises:
        DataError: There is no answer, the answers are not of the same images, or no image is of a common class.
    """
    if not answers:
        raise DataError(f"{source}: no answers to score")
    first = next(iter(answers))
    if odd := [name for name, given in answers.items() if given.ids != answers[first].ids]:
        raise DataError(f"{source}: {', '.join(odd)} and {first} are not of the same images in one order")
    taxonomy = common.taxonomy
    restricted = {name: common.restricted(given, their_labels) for name, given in answers.items()}
    labels = common.labels(their_labels)
    rows = np.flatnonzero(labels >= 0)
    support = np.bincount(labels[rows], minlength=len(taxonomy))
    drawn = {"draws": draws, "seed": seed, "level": level}
    ways = {}
    for name, given in answers.items():
        ways[name] = {
            "prepared": (matchings or {}).get(name, "as it is"),
            **_scores(restricted[name], common, drawn),
            **_elsewhere(given.select(rows), labels[rows], common, drawn),
        }
    return {
        "source": source,
        "their_taxonomy": common.theirs.name,
        "model_taxonomy": common.ours.name,
        "images": len(rows),
        "how": _HOW,
        "by": common.by,
        "few_images": FEW_IMAGES,
        **_classes(common, their_labels, support),
        "ways": ways,
        "differences": {
            name: _differences(restricted[name], restricted[first], common, drawn)
            for name in answers
            if name != first
        },
    }


def _classes(common: Correspondence, their_labels: Sequence[str], support: np.ndarray) -> dict[str, Any]:
    counts = Counter(their_labels)
    names = dict(zip(common.theirs.codes, common.theirs.names, strict=True))
    return {
        "classes": [
            {
                "name": entry.name,
                "ours": list(entry.ours),
                "theirs": list(entry.theirs),
                "images": int(images),
                "is_few": int(images) < FEW_IMAGES,
                "note": entry.note,
            }
            for entry, images in zip(common.classes, support, strict=True)
        ],
        "absent": [entry.name for entry, n in zip(common.classes, support, strict=True) if not n],
        "left_out_theirs": [
            {"code": code, "name": names[code], "images": counts.get(code, 0)}
            for code in common.theirs_left_out
        ],
        "left_out_ours": list(common.ours_left_out),
    }


def _scores(predictions: Predictions, common: Correspondence, drawn: Mapping[str, Any]) -> dict[str, Any]:
    taxonomy = common.taxonomy
    cells, _ = calibration_metrics(predictions, {}, None, **drawn)
    return {
        "scores": fold_section("transfer", predictions, taxonomy, taxonomy.codes, **drawn),
        "probabilities": {name: cells[name]["before"] for name in ("nll", "brier", "ece")},
    }


def _elsewhere(
    predictions: Predictions, labels: np.ndarray, common: Correspondence, drawn: Mapping[str, Any]
) -> dict[str, Any]:
    """What the model says when it may name any of its classes."""
    said = common.of_each_code()[predictions.predicted]
    mass = softmax(predictions.logits)[:, common.of_each_code() < 0].sum(axis=1)
    values = {
        "over_all": said == labels,
        "first_choice_elsewhere": said < 0,
        "mass_elsewhere": mass,
    }
    return {
        name: share_of_images(value, labels, predictions.groups, **drawn).to_dict()
        for name, value in values.items()
    }


def _differences(
    ours: Predictions, other: Predictions, common: Correspondence, drawn: Mapping[str, Any]
) -> dict[str, Any]:
    found = paired_differences(
        [ours], [other], common.taxonomy, COMPARED, drawn["draws"], drawn["seed"], level=drawn["level"]
    )
    return {
        name: {
            **difference.to_dict(),
            "is_clear": difference.is_clear,
            "less_is_better": name in LESS_IS_BETTER,
        }
        for name, difference in found.items()
    }
