"""The page of `cytodino data check`: numbers, and the pictures a person should look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...page import data_address, render_template
from ..images import read_rgb
from ..samples import CellImages
from .check import MEASURES, OUTLIER_DEVIATIONS, SetCheck
from .near_duplicates import LEAST_SIMILARITY, MOST_DIFFERENT_BITS

_TILE_PX = 96
_JPEG_QUALITY = 85
#: How much of long lists the page shows; `data_report.json` holds all.
_PER_CLASS, _CLUSTERS, _PER_CLUSTER, _OUTLIERS, _LINES = 9, 40, 6, 24, 200


def render_check(check: SetCheck) -> str:
    """The self-contained page of a check.

    Args:
        check: The findings; the pictures on the page are read from their files.
    """
    return render_template(
        Path(__file__).with_name("check_template.html"),
        {"spread": _spread_style},
        report=check.report,
        measures=MEASURES,
        scales=_scales(check.report.get("classes", ())),
        classes=_class_pictures(check.images) if check.images else {},
        clusters=_cluster_pictures(check),
        outliers=_outlier_pictures(check),
        lines=_LINES,
        thresholds={
            "bits": MOST_DIFFERENT_BITS,
            "similarity": LEAST_SIMILARITY,
            "deviations": OUTLIER_DEVIATIONS,
        },
    )


def _picture(images: CellImages, path: str) -> str:
    """A small JPEG of one image, whole, in its proportions, as an address."""
    import cv2

    pixels = read_rgb(str(images.root / path))
    scale = _TILE_PX / max(pixels.shape[:2])
    size = (max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale)))
    small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    options = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY]
    _, content = cv2.imencode(".jpg", cv2.cvtColor(small, cv2.COLOR_RGB2BGR), options)
    return data_address(content.tobytes(), "image/jpeg")


def _class_pictures(images: CellImages) -> dict[str, list[dict[str, str]]]:
    """A few images of every class, evenly spaced over it."""
    labels, paths = np.array(images.labels), images.column("path")
    shown = {}
    for label, code in enumerate(images.taxonomy.codes):
        rows = np.flatnonzero(labels == label)
        chosen = rows[np.unique(np.linspace(0, len(rows) - 1, _PER_CLASS).round().astype(int))]
        shown[code] = [
            {"path": paths[row], "picture": _picture(images, paths[row])} for row in chosen.tolist()
        ]
    return shown


def _cluster_pictures(check: SetCheck) -> list[dict[str, Any]]:
    if check.images is None:
        return []
    return [
        {
            "kinds": cluster["kinds"],
            "labels": cluster["labels"],
            "more": max(0, len(cluster["images"]) - _PER_CLUSTER),
            "images": [
                {**image, "picture": _picture(check.images, image["path"])}
                for image in _one_of_each_first(cluster["images"])[:_PER_CLUSTER]
            ],
        }
        for cluster in check.report["duplicates"]["clusters"][:_CLUSTERS]
    ]


def _one_of_each_first(images: Sequence[Mapping[str, str]]) -> list[Mapping[str, str]]:
    """The images of a cluster with one of every label in front: a large cluster must not hide a second label."""
    first = {image["label"]: image for image in reversed(images)}
    return [*first.values(), *(image for image in images if image is not first[image["label"]])]


def _outlier_pictures(check: SetCheck) -> list[dict[str, Any]]:
    if check.images is None:
        return []
    return [
        {**entry, "measure": MEASURES[entry["measure"]], "picture": _picture(check.images, entry["path"])}
        for entry in check.report["outliers"][:_OUTLIERS]
    ]


def _scales(classes: Sequence[Mapping[str, Any]]) -> dict[str, tuple[float, float]]:
    """Range of each measure over all classes, so that their bars can be compared."""
    scales = {}
    for name in MEASURES:
        spreads = [row[name] for row in classes if row[name]]
        if spreads:
            scales[name] = (min(s["p5"] for s in spreads), max(s["p95"] for s in spreads))
    return scales


def _spread_style(spread: Mapping[str, float], scale: tuple[float, float]) -> dict[str, float]:
    """Places on a bar in percent: left edge and width of the range, and the median."""
    low, high = scale
    width = max(high - low, 1e-9)
    left, middle, right = (100 * (spread[key] - low) / width for key in ("p5", "median", "p95"))
    return {"left": left, "width": right - left, "median": middle}
