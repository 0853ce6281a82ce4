"""`CellClassifier`: a finished model that answers in the laboratory's words."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from ..errors import BadNumbersError
from ..evaluation.calibration.artifact import Calibration
from ..evaluation.ood.detector import OodDetector
from ..evaluation.predictions import softmax
from ..evaluation.scoring import BATCH_SIZE, Precision, ScoredBatch, score
from .companions import load_calibration, load_detector, strange_pictures
from .models import (
    LoadedModel,
    ModelPlace,
    cast_backbone,
    find_model,
    load_model,
    not_finite,
    quickest_precision,
)
from .pictures import InputPictures, Picture

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ClassProbability:
    """One class and how probable the model finds it.

    Args:
        label: Class code (`BLA`).
        name: Readable name (`blast`).
        probability: 0 to 1.
    """

    label: str
    name: str
    probability: float


@dataclass(frozen=True)
class CellPrediction:
    """What the model says of one picture.

    Args:
        image: File, or `images[N]` for a picture in memory.
        index: Place in what was given, folders spread out.
        label: Code of the most probable class (`BLA`).
        name: Its readable name (`blast`).
        lineage: Its lineage (`granulocytic`).
        probability: Of that class; as the model says it, or calibrated where that was asked for.
        is_critical: Overlooking a cell of that class may harm a patient.
        top: The most probable classes, the first of them `label`.
        ood: Whether the picture is unlike those the model knows; None where the model has nothing that tells.
    """

    image: str
    index: int
    label: str
    name: str
    lineage: str
    probability: float
    is_critical: bool
    top: tuple[ClassProbability, ...]
    ood: bool | None = None


@dataclass(frozen=True)
class UnreadableImage:
    """A picture that was left out.

    Args:
        image: File, or `images[N]` for a picture in memory.
        index: Place in what was given (folders spread out); -1 for a file of a folder that was not tried.
        reason: Why, with the remedy.
    """

    image: str
    index: int
    reason: str


@dataclass(frozen=True)
class CellPredictions(Sequence[CellPrediction]):
    """Predictions of the pictures that could be read, in their order; a sequence of them.

    Args:
        cells: The predictions.
        problems: The other pictures.
        probabilities: float32 (cells, classes).
        classes: Class codes in label order.
        are_calibrated: Whether the model's calibration was applied to the probabilities.
    """

    cells: tuple[CellPrediction, ...]
    problems: tuple[UnreadableImage, ...]
    probabilities: np.ndarray
    classes: tuple[str, ...]
    are_calibrated: bool = False

    def __len__(self) -> int:
        return len(self.cells)

    def __getitem__(self, index: Any) -> Any:
        return self.cells[index]

    def __iter__(self) -> Iterator[CellPrediction]:
        return iter(self.cells)


class CellClassifier:
    """A finished model with its image processor and the meaning of its labels.

    Args:
        place: Where it lies.
        loaded: The model.
        precision: Of the backbone; its weights are cast once.
    """

    def __init__(self, place: ModelPlace, loaded: LoadedModel, precision: Precision) -> None:
        self.place = place
        self.taxonomy = loaded.taxonomy
        self.processor = loaded.processor
        self.model = loaded.model
        self.precision: Precision = precision
        cast_backbone(self.model, precision)

    @cached_property
    def calibration(self) -> Calibration:
        """What was stored to calibrate the model.

        Raises:
            ModelUnavailableError: It has none, or another file lies in its place.
            DataError: It was fitted for other weights or another label order; names both.
        """
        return load_calibration(self.place, self.taxonomy.codes)

    @cached_property
    def detector(self) -> OodDetector | None:
        """What tells pictures unlike those the model knows; None where the model has nothing that does.

        Raises:
            WeightsFileError: It was fitted for other weights or another label order; names both.
        """
        return load_detector(self.place, self.taxonomy.codes)

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        *,
        revision: str | None = None,
        device: str | None = None,
        precision: Literal["float32", "bfloat16", "auto"] = "float32",
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        token: str | None = None,
    ) -> CellClassifier:
        """Load a RUN, a folder or a repository of the Hub; no code of it is executed.

        Args:
            model: RUN, folder or Hub id; an adapter or a whole model.
            revision: Branch, tag or commit on the Hub.
            device: Of torch; by default the GPU where there is one.
            precision: Of the backbone: exact, or quicker with bfloat16; `auto` takes that where it is quicker.
            cache_dir: Of the Hub's files.
            local_files_only: Ask the Hub for nothing.
            token: Of the Hub, where the one that is set must not be used.

        Raises:
            ModelUnavailableError: It cannot be had, or is no model of this project; says the remedy.
        """
        place = find_model(
            model,
            revision=revision,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            token=token,
        )
        loaded = load_model(place, device)
        chosen = quickest_precision(str(loaded.model.device)) if precision == "auto" else precision
        return cls(place, loaded, chosen)

    def predict(
        self,
        images: Picture | Sequence[Picture],
        *,
        calibrated: bool = False,
        top_k: int = 3,
        batch_size: int = BATCH_SIZE,
        workers: int = 0,
        show_progress: bool = False,
    ) -> CellPredictions:
        """Say what cell each picture shows.

        A picture that cannot be read is named in `problems` and in the log, and the others go on.

        Args:
            images: One or many: files, folders (every image below), encoded bytes, Pillow images, or uint8 arrays
                (height, width), (height, width, 3) or (height, width, 4).
            calibrated: Apply the model's calibration, so that of the answers given with a probability of 0.9 about nine
                in ten are right on images like those it was fitted on.
            top_k: Classes named for each picture.
            batch_size: Pictures at once.
            workers: Processes that read pictures.
            show_progress: Show a bar on stderr.

        Raises:
            BadNumbersError: The model's answer to a picture is not finite; names it.
            ModelUnavailableError: Calibrated answers are asked for and the model has no calibration.
            DataError: Its calibration was fitted for other weights or another label order; names both.
        """
        calibration, detector = self.calibration if calibrated else None, self.detector
        pictures, left_out = _listed(images)
        names = [str(p) if isinstance(p, str | Path) else f"images[{i}]" for i, p in enumerate(pictures)]
        scored: list[ScoredBatch] = []
        score(
            self.model,
            self.processor,
            InputPictures(pictures, names, range(len(pictures)), self.processor),
            scored.append,
            batch_size=batch_size,
            workers=workers,
            precision=self.precision,
            show_progress=show_progress,
        )
        problems = [
            *(UnreadableImage(names[row], row, why) for b in scored for row, why in b.problems.items()),
            *left_out,
        ]
        for problem in problems:
            logger.warning("%s: %s", problem.image, problem.reason)
        rows = [int(row) for batch in scored for row in batch.rows]
        nothing = np.empty((0, len(self.taxonomy)), np.float32)
        logits = np.concatenate([nothing, *(batch.logits for batch in scored)])
        if bad := [
            names[row] for row, given in zip(rows, logits, strict=True) if not np.isfinite(given).all()
        ]:
            raise BadNumbersError(not_finite(self.place.name, bad))
        probabilities = softmax(logits if calibration is None else calibration.apply(logits))
        ood = strange_pictures(detector, scored)
        return CellPredictions(
            cells=tuple(
                self._cell(names[row], row, given, is_strange, top_k)
                for row, given, is_strange in zip(rows, probabilities, ood, strict=True)
            ),
            problems=tuple(problems),
            probabilities=probabilities,
            classes=self.taxonomy.codes,
            are_calibrated=calibrated,
        )

    def _cell(
        self, name: str, index: int, probabilities: np.ndarray, ood: bool | None, top_k: int
    ) -> CellPrediction:
        classes = self.taxonomy.classes
        # Stable: of equals the first, as `argmax` says.
        order = np.argsort(-probabilities, kind="stable")[: max(1, top_k)]
        top = tuple(
            ClassProbability(classes[i].code, classes[i].name, float(probabilities[i])) for i in order
        )
        first = classes[order[0]]
        return CellPrediction(
            image=name,
            index=index,
            label=first.code,
            name=first.name,
            lineage=first.lineage,
            probability=top[0].probability,
            is_critical=first.is_critical,
            top=top[:top_k],
            ood=ood,
        )


def _listed(images: Picture | Sequence[Picture]) -> tuple[list[Picture], list[UnreadableImage]]:
    """The single pictures with those of folders, and files of folders that have an image's name and are not read."""
    from ..data.sources.folders import index_all_images

    is_one = isinstance(images, str | Path | bytes | Image.Image | dict) or (
        isinstance(images, np.ndarray) and images.ndim < 4
    )
    listed: list[Picture] = []
    left_out = []
    for picture in [images] if is_one else images:  # type: ignore[list-item, union-attr]
        if not (isinstance(picture, str | Path) and Path(picture).is_dir()):
            listed.append(picture)  # type: ignore[arg-type]
            continue
        found = index_all_images(Path(picture))
        listed += [Path(picture) / path for path in sorted(found.paths)]
        left_out += [UnreadableImage(str(Path(picture) / r.path), -1, r.reason) for r in found.rejected]
    return listed, left_out
