"""evaluate: the report of what was predicted, again or anew, from predictions and embeddings; no model is run.

Only the answers averaged over the symmetries of the square need the model; they are kept, so that it runs once.
"""

from __future__ import annotations

import csv
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import DataError
from .evaluation.baselines import BASELINES
from .evaluation.companions import bind_companions
from .evaluation.fitted import Fitted, embeddings_by_fold, fit
from .evaluation.predictions import Predictions
from .evaluation.report import ReportContext
from .evaluation.report_parts import Evidence
from .files import read_json
from .other_sets import OTHER_TAXONOMIES
from .run_report import AVERAGED_FILE, EMBEDDINGS_FILE, write_whole_report
from .taxonomy import TAXONOMIES, CellClass, Taxonomy

if TYPE_CHECKING:
    from collections.abc import Sequence

logger = logging.getLogger(__name__)

SCORED_FOLDS = ("validation", "calibration", "test")
#: Figures of a report that show images, which predictions do not hold.
_PANELS = ("class_panel", "augmentation_strip")
#: Draws of intervals and seed where neither the command nor a recipe says otherwise.
DRAWS, SEED = 1000, 0


@dataclass(frozen=True)
class Evaluated:
    """What was written.

    Args:
        page: The page for people.
        report: The content of the `report.json` beside it.
    """

    page: Path
    report: dict[str, Any]


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
            DataError: It holds no predictions; names what is missing.
        """
        folder = path / "predictions"
        files = {fold: folder / f"{fold}.parquet" for fold in SCORED_FOLDS}
        if not (path / "recipe.json").is_file() or not any(file.is_file() for file in files.values()):
            raise DataError(
                f"{path}: no finished RUN (recipe.json and predictions/ are not both there); give the "
                "training.output_dir of a training that came to its end, or a PREDICTIONS file (.parquet)"
            )
        kept = path / "report" / "report.json"
        return cls(
            path,
            {fold: Predictions.from_parquet(file) for fold, file in files.items() if file.is_file()},
            read_json(path / "recipe.json"),
            read_json(kept) if kept.is_file() else {},
            Taxonomy.from_dict(read_json(path / "config.json")["taxonomy"]),
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


def evaluate_run(
    path: Path,
    *,
    against: Path | None = None,
    output: Path | None = None,
    draws: int | None = None,
    seed: int | None = None,
    symmetries: bool = False,
) -> Evaluated:
    """Write the report of a RUN again from its predictions, and fit anew what stays beside its model.

    Args:
        path: The RUN.
        against: Another RUN, or PREDICTIONS, of the same test images to compare with.
        output: Folder of the report; None takes the RUN's own, and only then files beside the model are written.
        draws, seed: Of intervals; None takes those of the recipe.
        symmetries: Ask the model about the 8 symmetries of each test image, where that was not done before.

    Raises:
        CytoDinoError: Something is missing, or does not belong together; says what.
    """
    run = KeptRun.read(path)
    settings = run.recipe.get("evaluation", {})
    draws = settings.get("interval_draws", DRAWS) if draws is None else draws
    seed = settings.get("seed", SEED) if seed is None else seed
    embeddings = embeddings_by_fold(path / "predictions" / EMBEDDINGS_FILE, run.predictions)
    fitted = fit(run.predictions, embeddings, seed)
    if output is None:
        _keep_beside_model(path, fitted)
    if symmetries:
        from .symmetries_of_run import ask_symmetries

        ask_symmetries(path, run.test)
    old = run.report.get("parts", {}).get("data", {})
    evidence = Evidence(
        embeddings=embeddings,
        fitted=fitted,
        baselines=_kept_baselines(path / "predictions" / "baselines"),
        is_pretrained=run.recipe["model"].get("backbone") is not None,
        copies=old.get("copies"),
        stain=old.get("stain"),
        other=None if against is None else (_short(against), compared_predictions(against)),
        averaged=_kept_averaged(path / "predictions" / AVERAGED_FILE, run.predictions.get("test")),
        kept_galleries=_kept_galleries(run),
    )
    folder = output or path / "report"
    report = write_whole_report(folder, run.predictions, _context(run, evidence), draws=draws, seed=seed)
    return Evaluated(folder / "report.html", report)


def evaluate_predictions(
    file: Path,
    *,
    against: Path | None = None,
    output: Path | None = None,
    draws: int | None = None,
    seed: int | None = None,
) -> Evaluated:
    """Write a report of a PREDICTIONS file of any origin; embeddings are taken from beside it.

    Args:
        file: Parquet. Images without a fold are reported as the test fold.
        against: See `evaluate_run`.
        output: Folder of the report; None: beside the file, named after it.
        draws, seed: Of intervals.

    Raises:
        CytoDinoError: The file is none of ours, or does not belong to the other.
    """
    found = Predictions.from_parquet(file)
    if not len(found):
        raise DataError(f"{file}: holds no image, so there is nothing to evaluate")
    notes = ["Which images the model was trained on is not known here: means are over all classes."]
    if any(fold is None for fold in found.folds):
        notes.append("Images that name no fold are reported as the test fold.")
        found = replace(found, folds=[fold or "test" for fold in found.folds])
    taxonomy, note = taxonomy_of(found.classes)
    notes += [note] if note else []
    folds = dict.fromkeys(str(fold) for fold in found.folds)
    predictions = {fold: found.fold(fold) for fold in folds}
    embeddings = embeddings_by_fold(file.parent / EMBEDDINGS_FILE, predictions)
    seed = SEED if seed is None else seed
    evidence = Evidence(
        embeddings=embeddings,
        fitted=fit(predictions, embeddings, seed),
        other=None if against is None else (_short(against), compared_predictions(against)),
    )
    data = {
        "source": ", ".join(sorted(set(found.sources))),
        "group_kind": found.group_kind,
        "counts": {
            fold: {code: int((one.labels == label).sum()) for label, code in enumerate(found.classes)}
            for fold, one in predictions.items()
        },
        "notes": notes,
    }
    context = ReportContext(
        title=_short(file),
        recipe={},
        environment={},
        data=data,
        training={},
        taxonomy=taxonomy,
        train_classes=found.classes,
        model={"revision": found.model_revision},
        evidence=evidence,
    )
    folder = output or file.with_name(f"{file.stem}_report")
    report = write_whole_report(folder, predictions, context, draws=draws or DRAWS, seed=seed)
    return Evaluated(folder / "report.html", report)


def compared_predictions(path: Path) -> Predictions:
    """The test fold of a RUN, or all of a PREDICTIONS file that are of the test fold or of none.

    Raises:
        DataError: There are none.
    """
    if path.is_dir():
        return KeptRun.read(path).test
    found = Predictions.from_parquet(path)
    test = found.select([row for row, fold in enumerate(found.folds) if fold in ("test", None)])
    if not len(test):
        raise DataError(f"{path}: holds no image of a test fold, so there is nothing to compare")
    return test


def taxonomy_of(classes: Sequence[str]) -> tuple[Taxonomy, str | None]:
    """The known taxonomy with these codes, or one that knows nothing of them; and what a reader must be told.

    Args:
        classes: Codes in label order.
    """
    known = {**TAXONOMIES, **OTHER_TAXONOMIES}.values()
    for taxonomy in known:
        if taxonomy.codes == tuple(classes):
            return taxonomy, None
    for taxonomy in known:
        if set(classes) <= set(taxonomy.codes) and (part := taxonomy.subset(classes)).codes == tuple(classes):
            return part, f"The classes are taken for those of {taxonomy.name}."
    plain = Taxonomy("unknown", tuple(CellClass(code, code, "unknown") for code in classes))
    return (
        plain,
        "No known taxonomy has these classes: nothing is known of lineages and of what is critical or safe.",
    )


def _context(run: KeptRun, evidence: Evidence) -> ReportContext:
    report, environment = run.report, run.path / "environment.json"
    figures = {name: run.path / "report" / "figures" / f"{name}.png" for name in _PANELS}
    data = report.get("data") or {"counts": _split_counts(run), "notes": []}
    counts = data["counts"].get("train", {})
    return ReportContext(
        title=report.get("title", run.path.name),
        recipe=run.recipe,
        environment=read_json(environment) if environment.is_file() else {},
        data=data,
        training=report.get("training", {}),
        taxonomy=run.taxonomy,
        train_classes=tuple(code for code in run.taxonomy.codes if counts.get(code)),
        model=report.get("model", {}),
        evidence=evidence,
        kept_figures={name: file.read_bytes() for name, file in figures.items() if file.is_file()},
    )


def _split_counts(run: KeptRun) -> dict[str, dict[str, int]]:
    """Fold -> class code -> images, of `split.csv`."""
    with (run.path / "split.csv").open(encoding="utf-8", newline="") as file:
        rows = [(row["fold"], row["label"]) for row in csv.DictReader(file)]
    folds = ("train", *SCORED_FOLDS)
    return {fold: {code: rows.count((fold, code)) for code in run.taxonomy.codes} for fold in folds}


def _keep_beside_model(path: Path, fitted: Fitted) -> None:
    if not read_json(path / "config.json").get("binding"):
        logger.warning(
            "%s was made by an earlier version, whose model is bound to nothing: no calibration is kept beside it",
            path,
        )
        return
    fitted.save(path)
    bind_companions(path)


def _kept_baselines(folder: Path) -> dict[str, dict[str, Predictions]]:
    files = {name: folder / f"{name}.parquet" for name in BASELINES}
    answers = {name: Predictions.from_parquet(file) for name, file in files.items() if file.is_file()}
    return {
        name: {fold: part for fold in SCORED_FOLDS if len(part := answer.fold(fold))}
        for name, answer in answers.items()
    }


def _kept_averaged(file: Path, test: Predictions | None) -> Predictions | None:
    if test is None or not file.is_file():
        return None
    averaged = Predictions.from_parquet(file)
    return averaged if averaged.model_revision == test.model_revision else None


def _kept_galleries(run: KeptRun) -> dict[str, tuple[list[str], bytes]]:
    kept = {}
    for name, gallery in run.report.get("parts", {}).get("galleries", {}).items():
        file = run.path / "report" / "figures" / f"{name}.png"
        if file.is_file():
            kept[name] = ([cell["id"] for cell in gallery["cells"]], file.read_bytes())
    return kept


def _short(path: Path) -> str:
    """What to call a RUN or a file."""
    path = path.resolve()
    if path.suffix != ".parquet":
        return path.name
    return f"{path.parent.parent.name}, {path.stem}" if path.parent.name == "predictions" else path.stem
