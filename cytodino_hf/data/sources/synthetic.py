"""Drawn cells: all 21 classes, for the demo and for tests, without any download.

The images are synthetic and say so wherever they go (`is_drawn`, `ABOUT.txt`); how a class looks is described
in `cytodino_hf.data.drawing.classes`.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import multiprocessing
import os
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from ...errors import DataError
from ...recipe_mistakes import check_model
from ...taxonomy import MLL_IMAGE_COUNTS, Taxonomy
from ..samples import DRAWN_RECORD, CellImages, build_cell_images
from ..user_cache import user_cache
from .base import Source, SourceOptions

#: No class is drawn less often, however steep the imbalance.
FEWEST_CELLS = 20
_SLIDES_PER_PATIENT = 2
_JPEG_QUALITY = 90
_BUCKET = 1000
_OURS = frozenset({DRAWN_RECORD, "ABOUT.txt", "manifest.csv", *MLL_IMAGE_COUNTS})
_ABOUT = """These images are drawn by a program. They are synthetic: no patient, no microscope, no diagnosis.

They have the folder layout and the class names of the MLL bone-marrow set, so that software for that set can
be tried and tested. Patients and slides in manifest.csv are invented. Nothing may be concluded from them about
real cells.
"""


class Options(SourceOptions):
    """What to draw."""

    cells: int = Field(
        default=4000, ge=FEWEST_CELLS * len(MLL_IMAGE_COUNTS), le=1_000_000, description="images in all"
    )
    imbalance_power: float = Field(
        default=0.25,
        ge=0,
        le=2,
        description="images per class are proportional to n^p, n the count in the MLL set: 0 is even, 1 is "
        f"MLL's own imbalance; never below {FEWEST_CELLS}",
    )
    seed: int = Field(default=0, ge=0, description="another seed gives other cells, patients and slides")
    patients: int = Field(
        default=80, ge=4, le=100_000, description="drawn patients; each has its own slides, stain and camera"
    )


@dataclass(frozen=True)
class DrawnCell:
    """One image to draw: where it goes and what determines its pixels.

    Args:
        path: Path relative to the folder.
        code: Class.
        number: Counts from 1 within the class.
        patient, slide: Count from 1; slides within their patient.
    """

    path: str
    code: str
    number: int
    patient: int
    slide: int

    @property
    def group(self) -> str:
        """Name of the patient."""
        return f"P{self.patient:04d}"


def class_counts(cells: int, imbalance_power: float) -> dict[str, int]:
    """Images per class: proportional to n^p, at least `FEWEST_CELLS`, exactly `cells` in all.

    Example:
        >>> class_counts(420, 1.0)["ABE"]
        20
    """
    weight = {code: count**imbalance_power for code, count in MLL_IMAGE_COUNTS.items()}
    floored: set[str] = set()
    while True:
        rest = cells - FEWEST_CELLS * len(floored)
        total = sum(w for code, w in weight.items() if code not in floored)
        share = {code: rest * w / total for code, w in weight.items() if code not in floored}
        if not (small := {code for code, s in share.items() if s < FEWEST_CELLS}):
            break
        floored |= small
    counts = {code: FEWEST_CELLS if code in floored else int(share[code]) for code in weight}
    by_remainder = sorted(share, key=lambda code: (int(share[code]) - share[code], code))
    for code in by_remainder[: cells - sum(counts.values())]:
        counts[code] += 1
    return counts


def plan(options: Options) -> list[DrawnCell]:
    """All images of a set, in order of class and number.

    Every class is dealt to the patients in turn, so that a split by patient can give each fold its share.
    """
    cells = []
    for code, count in class_counts(options.cells, options.imbalance_power).items():
        rng = np.random.default_rng([options.seed, 3, *code.encode()])
        order = rng.permutation(options.patients)
        slides = rng.integers(_SLIDES_PER_PATIENT, size=count)
        for i in range(count):
            first = i // _BUCKET * _BUCKET + 1
            bucket = f"{first:04d}-{min(first + _BUCKET - 1, count):04d}"
            path = f"{code}/{bucket}/{code}_{i + 1:05d}.jpg"
            patient = int(order[i % options.patients]) + 1
            cells.append(DrawnCell(path, code, i + 1, patient, int(slides[i]) + 1))
    return cells


def draw_image_set(
    out: Path,
    *,
    cells: int,
    seed: int,
    imbalance_power: float,
    patients: int,
    workers: int | None = None,
    progress: bool = True,
) -> dict[str, int]:
    """Draw an image set in MLL's layout, or finish one that was begun.

    The same arguments give the same files, whatever the number of workers: the pixels of a cell depend on the
    seed, its class and its number alone.

    Args:
        out: Folder; new, empty, or begun with the same arguments.
        cells, seed, imbalance_power, patients: As in `Options`.
        workers: Processes; as many as there are cores by default.
        progress: Show a progress bar where a terminal is watching.

    Returns:
        Images per class.

    Raises:
        DataError: An argument is out of range, or the folder holds something else or cannot be written.
    """
    mistakes: list[str] = []
    asked = {"cells": cells, "seed": seed, "imbalance_power": imbalance_power, "patients": patients}
    options = check_model(Options, asked, "synthetic", mistakes)
    if mistakes:
        raise DataError(f"cannot draw cells: {'; '.join(mistakes)}")
    _draw_missing(Path(out), options, workers, progress)
    return class_counts(cells, imbalance_power)


def load(root: Path | None, taxonomy: Taxonomy, options: Options) -> CellImages:
    """The drawn images as a table; draws what is missing first.

    Args:
        root: Folder to draw into and read from; None takes one in the user's cache, named by the options.

    Raises:
        DataError: The folder holds something else or cannot be written.
    """
    folder = Path(root) if root is not None else _cache_folder(options)
    remedy = "" if root is not None else "; set data.root to a folder that can be written"
    cells = _draw_missing(folder, options, None, True, remedy)
    return build_cell_images(
        [cell.path for cell in cells],
        [cell.code for cell in cells],
        root=folder,
        source="synthetic",
        taxonomy=taxonomy,
        groups=[cell.group for cell in cells],
        group_kind="patient",
    )


def _draw_missing(
    folder: Path, options: Options, workers: int | None, progress: bool, remedy: str = ""
) -> list[DrawnCell]:
    """Bring a folder to hold all images of the options; returns them."""
    cells = plan(options)
    record = _record(options)
    found = _check_folder(folder, record)
    missing = [cell for cell in cells if not (folder / cell.path).is_file()]
    if found == record and not missing:
        return cells
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / DRAWN_RECORD, json.dumps({**record, "complete": False}, indent=1).encode())
        _write(folder / "ABOUT.txt", _ABOUT.encode())
        _write(folder / "manifest.csv", _manifest(cells))
        for part in {(folder / cell.path).parent for cell in missing}:
            part.mkdir(parents=True, exist_ok=True)
        _run(partial(_draw_one, str(folder), options.seed), missing, workers, progress)
        _write(folder / DRAWN_RECORD, json.dumps(record, indent=1).encode())
    except OSError as error:
        raise DataError(f"{folder}: cannot write the drawn cells ({error}){remedy}") from error
    return cells


def _record(options: Options) -> dict[str, Any]:
    from ..drawing import DRAWING_VERSION

    return {"drawing_version": DRAWING_VERSION, "options": options.model_dump(), "complete": True}


def _cache_folder(options: Options) -> Path:
    content = json.dumps(_record(options), sort_keys=True).encode()
    return user_cache("drawn") / hashlib.sha256(content).hexdigest()[:16]


def _check_folder(folder: Path, record: dict[str, Any]) -> dict[str, Any] | None:
    """What the folder says of itself; None where it is new or empty.

    Raises:
        DataError: It holds something else, or cells drawn with other options or by another version.
    """
    if not folder.exists():
        return None
    if not folder.is_dir():
        raise DataError(f"{folder}: is no folder; drawn cells need a folder (data.root)")
    if not any(folder.iterdir()):
        return None
    another = "choose another data.root, or delete the folder to draw it again"
    if foreign := sorted(
        entry.name for entry in folder.iterdir() if entry.name not in _OURS and entry.name[0] != "."
    ):
        raise DataError(f"{folder}: holds something else ({', '.join(foreign[:5])}); {another}")
    try:
        found = json.loads((folder / DRAWN_RECORD).read_text(encoding="utf-8"))
        known = found["drawing_version"], found["options"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder}: holds something else (no valid {DRAWN_RECORD}); {another}") from error
    if known != (record["drawing_version"], record["options"]):
        raise DataError(
            f"{folder}: was drawn with version {known[0]} and {known[1]}, asked for are "
            f"version {record['drawing_version']} and {record['options']}; {another}"
        )
    return dict(found)


def _manifest(cells: list[DrawnCell]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["path", "label", "number", "patient", "slide"])
    for cell in cells:
        writer.writerow([cell.path, cell.code, cell.number, cell.group, f"{cell.group}-{cell.slide}"])
    return text.getvalue().encode()


def _write(path: Path, content: bytes) -> None:
    """Write through a neighbour: a file that exists is whole, even after a crash or with two writers."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_bytes(content)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def _draw_one(folder: str, seed: int, cell: DrawnCell) -> None:
    import cv2

    from ..drawing import draw_cell, slide_look

    slide = slide_look(seed, cell.patient, cell.slide)
    rng = np.random.default_rng([seed, 4, cell.number, *cell.code.encode()])
    picture = draw_cell(cell.code, slide, rng)
    options = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY]
    _, content = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), options)
    _write(Path(folder) / cell.path, content.tobytes())


def _single_threaded() -> None:
    import cv2

    cv2.setNumThreads(0)  # one process per core already; a forked thread pool would hang


def _run(
    draw: Callable[[DrawnCell], None], cells: list[DrawnCell], workers: int | None, progress: bool
) -> None:
    from tqdm import tqdm

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = min(workers or cores, max(1, len(cells) // 100))
    bar = partial(
        tqdm, total=len(cells), desc="drawing cells", unit="cell", disable=None if progress else True
    )
    if workers == 1:
        for cell in bar(cells):
            draw(cell)
        return
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else None)
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_single_threaded) as pool:
        for _ in bar(pool.map(draw, cells, chunksize=25)):
            pass


SOURCE = Source(
    summary="drawn cells of all 21 classes (synthetic, for demo and tests)", options=Options, load=load
)
