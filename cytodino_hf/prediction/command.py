"""`predict_images`: many images through a finished model into one file; the same call goes on or does nothing."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from ..data.splits import safe_cell
from ..data.tables import first_few
from ..errors import BadNumbersError, DataError
from ..evaluation.calibration.artifact import Calibration
from ..evaluation.ood.detector import OodDetector
from ..evaluation.predictions import Predictions
from ..evaluation.scoring import BATCH_SIZE, ScoredBatch, score
from ..taxonomy import Taxonomy
from .companions import detector_digest, load_calibration, load_detector, strange_pictures
from .inputs import InputImages, find_inputs
from .models import ModelPlace, find_model, load_model, not_finite, quickest_precision
from .output import PredictionOutput, Scorer
from .pictures import InputPictures, problem_of

#: How much may be lost to a kill: what was scored since the last part was written.
SECONDS_A_PART = 10.0
_GROUP_KIND = "group"  # where the user does not say what a group is


@dataclass(frozen=True)
class PredictOptions:
    """What decides the rows, and how fast they come.

    Args:
        revision: Of a model on the Hub: branch, tag or commit.
        device: Of torch; by default the GPU where there is one.
        precision: Of the backbone; `auto` keeps that of the output; for a new one it is bfloat16 where that is quicker.
        batch_size: Pictures at once.
        workers: Processes that read pictures.
        is_calibrated: Apply the model's calibration to the logits.
        group_kind: What the groups of the inputs are (`patient`, `slide`, ...).
        cache_dir: Of the Hub's files.
        seconds_a_part: A part is written each time as much time has passed.
    """

    revision: str | None = None
    device: str | None = None
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    batch_size: int = BATCH_SIZE
    workers: int = 0
    is_calibrated: bool = False
    group_kind: str | None = None
    cache_dir: str | None = None
    seconds_a_part: float = SECONDS_A_PART


@dataclass(frozen=True)
class Outcome:
    """What a call did.

    Args:
        images: Rows in the output.
        scored: Rows that this call added.
        problems: Path -> reason, for images that could not be read.
        scorer: What gave the rows; None where there is none.
    """

    images: int
    scored: int
    problems: dict[str, str]
    scorer: Scorer | None


def predict_images(
    model: str, inputs: Sequence[str], output: Path, options: PredictOptions | None = None
) -> Outcome:
    """Score images into a file, each id exactly once.

    A call that was killed goes on where it was; a finished one does nothing, and scores only what has come since.
    Images are told apart by their id. An image that cannot be read is listed beside the output, and tried again by the
    next call.

    Args:
        model: RUN, folder or Hub id.
        inputs: See `inputs`.
        output: `.parquet` with the PREDICTIONS schema, or `.csv`.
        options: See `PredictOptions`.

    Raises:
        ModelUnavailableError: The model cannot be had, or has no calibration where one is asked for.
        DataError: An input is missing; the output holds answers of other weights, another precision or calibration, or
            other images; the calibration is that of other weights.
        BadNumbersError: An answer is not finite.
    """
    chosen = options or PredictOptions()
    target = PredictionOutput(output)
    images = find_inputs(inputs, cache_dir=chosen.cache_dir)
    place = find_model(model, revision=chosen.revision, cache_dir=chosen.cache_dir)
    there = target.scorer()
    asked = _asked_scorer(place, chosen, there)
    _refuse_other_scorer(target, there, place, asked)
    pending = _pending(images, target)
    if not pending and not target.is_begun():
        _refuse_nothing(target, images, target.problems())
        return Outcome(len(target.done()), 0, target.problems() | images.unreadable, there)
    job = _Job(images, place, _with_precision(asked, chosen), target, chosen)
    with target.held(job.scorer):
        pending = _pending(images, target)  # another process may just have ended
        scored = job.run(pending) if pending else 0
        target.finish(images.ids, images.unreadable | job.problems)
    _refuse_nothing(target, images, job.problems)
    return Outcome(len(target.done()), scored, images.unreadable | job.problems, job.scorer)


def _asked_scorer(place: ModelPlace, options: PredictOptions, there: Scorer | None) -> Scorer:
    """What would give the rows; the precision may still be open ("auto")."""
    calibration = ""
    if options.is_calibrated:
        calibration = load_calibration(place, place.classes()).fingerprint()
    precision = there.precision if there and options.precision == "auto" else options.precision
    return Scorer(place.revision(), precision, calibration, detector_digest(place))


def _refuse_other_scorer(
    target: PredictionOutput, there: Scorer | None, place: ModelPlace, asked: Scorer
) -> None:
    if there is None:
        return
    if there.revision != asked.revision:
        raise DataError(
            f"{target.path} holds answers of other weights: {there.revision} there, {asked.revision} in {place.name}; "
            "give another --output"
        )
    if asked.precision != there.precision:
        raise DataError(
            f"{target.path} holds answers computed in {there.precision}, not {asked.precision}; give another --output"
        )
    for what, found, wanted in (
        ("calibration", there.calibration, asked.calibration),
        ("detector of strange images", there.detector, asked.detector),
    ):
        if found != wanted:
            raise DataError(
                f"{target.path} holds answers with {_named(what, found)}, asked is for {_named(what, wanted)}; give "
                "another --output"
            )


def _named(what: str, fingerprint: str) -> str:
    return f"the {what} {fingerprint}" if fingerprint else f"no {what}"


def _pending(images: InputImages, target: PredictionOutput) -> list[int]:
    """Rows still to score; of those that could not be read the last time, only what can be read now."""
    done, problems = target.done(), target.problems()
    written = {target.written_id(name): row for row, name in enumerate(images.ids)}
    if len(written) != len(images):
        raise DataError(
            f"{target.path}: two ids differ only by a sign that a spreadsheet takes for a formula; use .parquet"
        )
    if others := sorted(done - set(written)):
        raise DataError(
            f"{target.path} holds {len(others)} images that are not among the inputs: {first_few(others)}; give all "
            "inputs, or another --output"
        )
    return [
        row
        for name, row in written.items()
        if name not in done
        and not (
            safe_cell(images.paths[row]) in problems and problem_of(images.pictures[row], images.paths[row])
        )
    ]


def _with_precision(asked: Scorer, options: PredictOptions) -> Scorer:
    import torch

    if asked.precision != "auto":
        return asked
    where = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    return replace(asked, precision=quickest_precision(where))


def _refuse_nothing(target: PredictionOutput, images: InputImages, problems: dict[str, str]) -> None:
    if not target.path.is_file():
        reasons = first_few(f"{path} ({reason})" for path, reason in problems.items())
        raise DataError(f"none of {len(images)} images can be read: {reasons}")


@dataclass(frozen=True)
class _Companions:
    """What is done to the answers, and what is said of the pictures."""

    calibration: Calibration | None
    detector: OodDetector | None

    @classmethod
    def of(cls, place: ModelPlace, taxonomy: Taxonomy, is_calibrated: bool) -> _Companions:
        calibration = load_calibration(place, taxonomy.codes) if is_calibrated else None
        return cls(calibration, load_detector(place, taxonomy.codes))


@dataclass
class _Job:
    """One call that has something to score."""

    images: InputImages
    place: ModelPlace
    scorer: Scorer
    target: PredictionOutput
    options: PredictOptions
    problems: dict[str, str] = field(default_factory=dict)

    def run(self, pending: Sequence[int]) -> int:
        """Score rows part by part; how many could be read."""
        loaded = load_model(self.place, self.options.device)
        companions = _Companions.of(self.place, loaded.taxonomy, self.options.is_calibrated)
        waiting: list[ScoredBatch] = []
        written, last = 0, time.monotonic()

        def write() -> None:
            nonlocal written, last
            part = self._predictions(waiting, loaded.taxonomy, companions)
            if len(part):
                self.target.add(part, loaded.taxonomy, self.scorer)
            waiting.clear()
            written, last = written + len(part), time.monotonic()

        def receive(batch: ScoredBatch) -> None:
            waiting.append(batch)
            if time.monotonic() - last >= self.options.seconds_a_part:
                write()

        score(
            loaded.model,
            loaded.processor,
            InputPictures(self.images.pictures, self.images.paths, pending, loaded.processor),
            receive,
            batch_size=self.options.batch_size,
            workers=self.options.workers,
            precision="bfloat16" if self.scorer.precision == "bfloat16" else "float32",
        )
        write()
        return written

    def _predictions(
        self, batches: Sequence[ScoredBatch], taxonomy: Taxonomy, companions: _Companions
    ) -> Predictions:
        images = self.images
        for batch in batches:
            self.problems |= {images.paths[row]: reason for row, reason in batch.problems.items()}
        rows = [int(row) for batch in batches for row in batch.rows]
        nothing = np.empty((0, len(taxonomy)), np.float32)
        logits = np.concatenate([nothing, *(batch.logits for batch in batches)])
        finite = np.isfinite(logits).all(axis=1)
        if not finite.all():
            bad = [images.paths[row] for row, is_finite in zip(rows, finite, strict=True) if not is_finite]
            raise BadNumbersError(not_finite(self.place.name, bad))
        known = {code: label for label, code in enumerate(taxonomy.codes)}
        has_groups = any(group is not None for group in images.groups)
        calibration, detector = companions.calibration, companions.detector
        return Predictions(
            ids=[images.ids[row] for row in rows],
            paths=[images.paths[row] for row in rows],
            sources=[images.sources[row] for row in rows],
            groups=[images.groups[row] for row in rows],
            folds=[images.folds[row] for row in rows],
            labels=np.array([known.get(images.labels[row] or "", -1) for row in rows], dtype=np.int64),
            logits=logits if calibration is None else calibration.apply(logits),
            classes=taxonomy.codes,
            model_revision=self.scorer.revision,
            group_kind=(self.options.group_kind or _GROUP_KIND) if has_groups else None,
            ood=None if detector is None else strange_pictures(detector, batches),
            calibration=self.scorer.calibration or None,
        )
