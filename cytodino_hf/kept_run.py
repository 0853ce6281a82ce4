"""What a finished RUN holds of its evaluation, read back; no model is loaded."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .errors import DataError
from .evaluation.baselines import BASELINES, kept_notes
from .evaluation.calibration.artifact import CALIBRATION_FILE
from .evaluation.ood.detector import OOD_FILE
from .evaluation.predictions import Predictions
from .files import read_json
from .kept_reports import kept_report
from .run_report import AVERAGED_FILE, EMBEDDINGS_FILE
from .taxonomy import Taxonomy

SCORED_FOLDS = ("validation", "calibration", "test")


@dataclass(frozen=True)
class KeptRun:
    """What a finished RUN holds of its evaluation.

    Args:
        path: Its folder.
        predictions: Fold -> predictions.
        recipe: Its resolved recipe, by section.
        report: The content of its `report.json` so far; empty where that is gone.
        taxonomy: Its classes.
    """

    path: Path
    predictions: Mapping[str, Predictions]
    recipe: Mapping[str, Any]
    report: Mapping[str, Any]
    taxonomy: Taxonomy

    @classmethod
    def read(cls, path: Path) -> KeptRun:
        """Read a RUN.

        Raises:
            DataError: It holds no predictions, or a file is missing or damaged; names it.
        """
        folder = path / "predictions"
        files = {fold: folder / f"{fold}.parquet" for fold in SCORED_FOLDS}
        there = {fold: file for fold, file in files.items() if file.is_file()}
        needed = {
            "recipe.json": (path / "recipe.json").is_file(),
            "config.json": (path / "config.json").is_file(),
        }
        if missing := [
            name for name, is_there in {**needed, "predictions/": bool(there)}.items() if not is_there
        ]:
            raise DataError(
                f"{path}: no finished RUN ({', '.join(missing)} missing); give the training.output_dir of a training "
                "that came to its end, or a PREDICTIONS file (.parquet)"
            )
        return cls(
            path,
            {fold: Predictions.from_parquet(file) for fold, file in there.items()},
            _document(path / "recipe.json"),
            kept_report(path / "report"),
            _taxonomy(path / "config.json"),
        )

    @property
    def test(self) -> Predictions:
        """Predictions of the test fold.

        Raises:
            DataError: There is none.
        """
        if "test" not in self.predictions:
            raise DataError(f"{self.path}: its images have no test fold, so there is nothing to compare")
        return self.predictions["test"]

    def data(self) -> Mapping[str, Any]:
        """What its report says of the images; where that is gone, their counts by `split.csv`.

        Raises:
            DataError: Both are gone.
        """
        if found := self.report.get("data"):
            return dict(found)
        file = self.path / "split.csv"
        if not file.is_file():
            raise DataError(
                f"{self.path}: report/report.json and split.csv are both missing, so nobody knows which classes it was "
                "trained on; bring one back, or give its predictions/test.parquet"
            )
        with file.open(encoding="utf-8", newline="") as stream:
            rows = [(row["fold"], row["label"]) for row in csv.DictReader(stream)]
        folds = ("train", *SCORED_FOLDS)
        codes = self.taxonomy.codes
        return {
            "counts": {fold: {code: rows.count((fold, code)) for code in codes} for fold in folds},
            "notes": [],
        }

    def lost_inputs(
        self, counts: Mapping[str, Mapping[str, int]], embeddings: Mapping[str, np.ndarray]
    ) -> dict[str, str]:
        """What the files beside the model were fitted on and is not there any more.

        Args:
            counts: Fold -> class code -> images of the split.
            embeddings: Fold -> embeddings that are there.

        Returns:
            File beside the model -> the file that is missing; only those that miss one.
        """
        wanted = [fold for fold in ("calibration", "validation") if any(counts.get(fold, {}).values())]
        gone = {fold: f"predictions/{fold}.parquet" for fold in wanted if fold not in self.predictions}
        gone |= {
            f"embeddings of {fold}": f"predictions/{EMBEDDINGS_FILE}"
            for fold in wanted
            if fold in self.predictions and fold not in embeddings
        }
        lost = {OOD_FILE: " and ".join(dict.fromkeys(gone.values()))} if gone else {}
        return lost | ({CALIBRATION_FILE: gone["calibration"]} if "calibration" in gone else {})

    @property
    def _baselines_folder(self) -> Path:
        return self.path / "predictions" / "baselines"

    def baseline_notes(self) -> dict[str, str]:
        """Baseline -> what a reader must know of how it went."""
        return kept_notes(self._baselines_folder)

    def baselines(self) -> dict[str, dict[str, Predictions]]:
        """Baseline -> fold -> its predictions, of those that are kept."""
        folder = self._baselines_folder
        files = {name: folder / f"{name}.parquet" for name in BASELINES}
        answers = {name: Predictions.from_parquet(file) for name, file in files.items() if file.is_file()}
        return {
            name: {fold: part for fold in SCORED_FOLDS if len(part := answer.fold(fold))}
            for name, answer in answers.items()
        }

    def baselines_gap(self) -> str:
        """Why no answer of a baseline is kept."""
        asked = self.recipe.get("evaluation", {}).get("baselines")
        if asked is None:
            return "the RUN was made by an earlier version, which asked none"
        return "predictions/baselines is missing" if asked else "evaluation.baselines is false"

    def averaged(self) -> Predictions | None:
        """The test fold averaged over the symmetries of the square, where these weights were asked."""
        test, file = self.predictions.get("test"), self.path / "predictions" / AVERAGED_FILE
        if test is None or not file.is_file():
            return None
        averaged = Predictions.from_parquet(file)
        return averaged if averaged.model_revision == test.model_revision else None

    def galleries(self) -> dict[str, tuple[list[str], bytes]]:
        """Gallery -> (ids of its cells, PNG), of those that were drawn."""
        kept = {}
        for name, gallery in self.report.get("parts", {}).get("galleries", {}).items():
            file = self.path / "report" / "figures" / f"{name}.png"
            if file.is_file():
                kept[name] = ([cell["id"] for cell in gallery["cells"]], file.read_bytes())
        return kept


def _taxonomy(path: Path) -> Taxonomy:
    try:
        return Taxonomy.from_dict(_document(path).get("taxonomy") or {})
    except (ValueError, AttributeError) as error:
        raise DataError(
            f"{path}: does not say what the labels mean ({error}); bring it back from a copy of the RUN"
        ) from error


def _document(path: Path) -> Any:
    try:
        return read_json(path)
    except ValueError as error:
        raise DataError(f"{path}: is damaged ({error}); bring it back from a copy of the RUN") from error
