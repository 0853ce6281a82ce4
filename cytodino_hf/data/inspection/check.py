"""`cytodino data check`: what is in a folder of images, and whether a training would take it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel

from ...errors import DataError, RecipeError
from ...page import plain
from ...recipe import DataSection
from ...recipe_checks import check_taxonomy
from ...recipe_mistakes import check_model, check_source_options, parse_overrides
from ..loading import divide, index_images, leave_out_rejected, refuse_too_many_rejected
from ..samples import CellImages
from ..sources import SOURCES
from .ignored_files import count_ignored
from .near_duplicates import Duplicates
from .scan import Scan, scan_images

#: What is compared between the images of a class.
MEASURES = {"brightness": "brightness", "blue": "blue stain", "purple": "purple stain"}
#: An image is an outlier of its class beyond this many robust standard deviations (1.4826 x median distance).
OUTLIER_DEVIATIONS = 6.0
_FEWEST_FOR_OUTLIERS = 20
_MAD_TO_SIGMA = 1.4826
# A size is odd beyond this factor from the usual length, or from the usual proportions.
_ODD_LENGTH, _ODD_PROPORTION = 1.5, 1.25


@dataclass(frozen=True)
class SetCheck:
    """What a check found.

    Args:
        report: Plain values, the content of `data_report.json`.
        images: The images that can be read, for pictures; None where the source found none.
    """

    report: dict[str, Any]
    images: CellImages | None = None


def data_section(
    root: str | None, source: str, taxonomy: str, overrides: Sequence[str] = ()
) -> tuple[DataSection, Mapping[str, BaseModel]]:
    """The data section of a recipe from a command line, and the options of every source.

    Args:
        root, source, taxonomy: As in a recipe; an override wins.
        overrides: `["--data.key", "VALUE", ...]`, as for a recipe.

    Raises:
        RecipeError: Something is not known or not allowed; names all mistakes.
    """
    document: dict[str, Any] = {"data": {"root": root, "source": source, "taxonomy": taxonomy}}
    found = parse_overrides(overrides, document)
    found += [f"{name}: only keys of `data` can be set here" for name in document if name != "data"]
    data = dict(document["data"])
    options = check_source_options(data, "data", SOURCES, found)
    section = check_model(DataSection, data, "data", found, known=(*DataSection.model_fields, *SOURCES))
    if section is not None and section.source not in SOURCES:
        found.append(f"source {section.source!r}: unknown; sources are {', '.join(SOURCES)}")
    if section is not None:
        check_taxonomy(section.taxonomy, "data", found)
    if found:
        raise RecipeError(found, "command line")
    return section, options


def check_image_set(
    data: DataSection, source_options: Mapping[str, BaseModel], *, workers: int | None = None
) -> SetCheck:
    """Look at everything a training would look at before it starts, and at more.

    Args:
        data: Which images, and how they would be divided.
        source_options: Options of every source.
        workers: Processes of the scan; as many as there are cores by default.

    Returns:
        The findings. `problems` of the report is what a training would stop on; it is never empty where no image
        was found.
    """
    head = {"root": data.root, "source": data.source}
    try:
        found = index_images(data, source_options)
    except DataError as error:
        return SetCheck(_stopped(head, str(error)))
    whole = scan_images(found, workers=workers)
    try:
        images, scan, notes = leave_out_rejected(found, whole)
    except DataError as error:
        return SetCheck(_stopped(head, str(error)) | _rejected(found, whole))
    duplicates = scan.duplicates
    problems, split_notes = _what_a_training_says(images, scan, data)
    clusters = _mixed_first(images, duplicates)
    measures = {name: scan.numbers(name) for name in MEASURES}
    report = {
        **head,
        "usable": not problems,
        "problems": problems,
        "notes": [*notes, *split_notes],
        "attribution": images.attribution,
        "is_drawn": images.is_drawn,
        "images": len(scan),
        "classes": _classes(found, whole, measures, images),
        **_rejected(images, None),
        "duplicates": _duplicates(images, duplicates, clusters),
        "sizes": _sizes(images, scan),
        "outliers": _outliers(images, measures),
        "ignored": count_ignored(
            found.root, {*found.column("path"), *(image.path for image in images.rejected)}
        ),
    }
    return SetCheck(plain(report), images)


def _stopped(head: Mapping[str, Any], problem: str) -> dict[str, Any]:
    return {**head, "usable": False, "problems": [problem], "images": 0, "rejected": []}


def _rejected(images: CellImages, scan: Scan | None) -> dict[str, Any]:
    """Files left out by the source, and those the scan found where they are not among them yet."""
    paths = images.column("path")
    entries = [vars(image) for image in images.rejected]
    if scan is not None:
        entries += [
            {"path": paths[row], "reason": reason, "on_purpose": False}
            for row, reason in scan.rejected().items()
        ]
    return {"rejected": sorted(entries, key=lambda entry: str(entry["path"]))}


def _what_a_training_says(images: CellImages, scan: Scan, data: DataSection) -> tuple[list[str], list[str]]:
    """Problems and notes of the steps that follow the scan."""
    problems: list[str] = []
    notes: Sequence[str] = ()
    try:
        refuse_too_many_rejected(images, data.max_rejected_share)
    except DataError as error:
        problems.append(str(error))
    try:
        notes = divide(images, scan, data, needs_validation=True).notes
    except DataError as error:
        problems.append(str(error))
    return problems, list(notes)


def _mixed_first(images: CellImages, duplicates: Duplicates) -> list[list[int]]:
    labels = images.labels
    return sorted(duplicates.clusters(), key=lambda rows: len({labels[row] for row in rows}) == 1)


def _classes(
    found: CellImages, whole: Scan, measures: Mapping[str, np.ndarray], images: CellImages
) -> list[dict[str, Any]]:
    """Every class with its images, readable and rejected, and what they look like."""
    bad = Counter(found.labels[row] for row in whole.rejected())
    counts, labels = found.counts(), np.array([images.taxonomy.codes[label] for label in images.labels])
    rows = []
    for label, cell in enumerate(found.taxonomy.classes):
        mine = labels == cell.code
        rows.append(
            {
                "code": cell.code,
                "name": cell.name,
                "lineage": cell.lineage,
                "images": counts[cell.code],
                "readable": int(mine.sum()),
                "rejected": bad[label],
                **{name: _spread(values[mine]) for name, values in measures.items()},
            }
        )
    return rows


def _spread(values: np.ndarray) -> dict[str, float] | None:
    if not len(values):
        return None
    low, median, high = np.percentile(values, [5, 50, 95])
    return {"p5": low, "median": median, "p95": high}


def _outliers(images: CellImages, measures: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """Images far from the median of their class, each by the measure in which it is furthest."""
    labels, paths = np.array(images.labels), images.column("path")
    furthest: dict[int, tuple[float, str]] = {}
    for name, values in measures.items():
        for label in range(len(images.taxonomy)):
            rows = np.flatnonzero(labels == label)
            if len(rows) < _FEWEST_FOR_OUTLIERS:
                continue
            distance = np.abs(values[rows] - np.median(values[rows]))
            deviations = distance / max(_MAD_TO_SIGMA * float(np.median(distance)), 1e-6)
            for row, far in zip(rows.tolist(), deviations.tolist(), strict=True):
                if far > max(OUTLIER_DEVIATIONS, furthest.get(row, (0.0, ""))[0]):
                    furthest[row] = (far, name)
    return [
        {
            "path": paths[row],
            "label": images.taxonomy.codes[labels[row]],
            "measure": name,
            "value": float(measures[name][row]),
            "deviations": far,
        }
        for row, (far, name) in sorted(furthest.items(), key=lambda entry: -entry[1][0])
    ]


def _duplicates(
    images: CellImages, duplicates: Duplicates, clusters: Sequence[Sequence[int]]
) -> dict[str, Any]:
    codes, labels, paths = images.taxonomy.codes, images.labels, images.column("path")
    kinds: dict[int, set[str]] = {}
    for row, kind in zip(duplicates.second.tolist(), duplicates.kinds.tolist(), strict=True):
        kinds.setdefault(int(duplicates.cluster_of[row]), set()).add(str(kind))
    entries: list[dict[str, Any]] = [
        {
            "kinds": sorted(kinds[int(duplicates.cluster_of[rows[0]])]),
            "labels": sorted({codes[labels[row]] for row in rows}),
            "images": [{"path": paths[row], "label": codes[labels[row]]} for row in rows],
        }
        for rows in clusters
    ]
    return {
        "pairs": dict(Counter(duplicates.kinds.tolist())),
        "images": sum(map(len, clusters)),
        "clusters_in_one_class": sum(len(entry["labels"]) == 1 for entry in entries),
        "clusters_across_classes": sum(len(entry["labels"]) > 1 for entry in entries),
        "clusters": entries,
    }


def _sizes(images: CellImages, scan: Scan) -> dict[str, Any]:
    width, height = scan.numbers("width").astype(int), scan.numbers("height").astype(int)
    counts = Counter(zip(width.tolist(), height.tolist(), strict=True))
    length, proportion = np.maximum(width, height), width / height
    usual_length, usual_proportion = np.median(length), np.median(proportion)
    far = np.maximum(length / usual_length, usual_length / length) > _ODD_LENGTH
    far |= np.maximum(proportion / usual_proportion, usual_proportion / proportion) > _ODD_PROPORTION
    paths = images.column("path")
    return {
        "counts": [{"width": w, "height": h, "images": n} for (w, h), n in counts.most_common()],
        "odd": [
            {"path": paths[row], "width": int(width[row]), "height": int(height[row])}
            for row in np.flatnonzero(far).tolist()
        ],
    }


def write_check(check: SetCheck, folder: Path) -> Path:
    """Write `data_report.json` and `data_report.html`.

    Returns:
        The page.

    Raises:
        DataError: The folder cannot be written.
    """
    from ...files import write_json
    from .check_page import render_check

    page = folder / "data_report.html"
    try:
        write_json(folder / "data_report.json", check.report)
        page.write_text(render_check(check), encoding="utf-8")
    except OSError as error:
        raise DataError(f"{folder}: cannot be written ({error}); give another --out") from error
    return page
