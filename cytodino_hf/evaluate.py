"""evaluate: the report of what was predicted, again or anew, from predictions and embeddings; no model is run.

Only the answers averaged over the symmetries of the square need the model; they are kept, so that it runs once.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import DataError
from .evaluation.calibration.artifact import CALIBRATION_FILE
from .evaluation.companions import bind_companions
from .evaluation.fitted import Fitted, embeddings_by_fold, fit
from .evaluation.predictions import Predictions
from .evaluation.report import ReportContext
from .evaluation.report_parts import Evidence
from .files import read_json
from .kept_reports import PREDICTIONS, RUN, refuse_other_report
from .kept_run import KeptRun
from .other_sets import OTHER_TAXONOMIES
from .run_report import EMBEDDINGS_FILE, write_whole_report
from .taxonomy import TAXONOMIES, CellClass, Taxonomy

if TYPE_CHECKING:
    from collections.abc import Sequence

logger = logging.getLogger(__name__)

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

    The files beside the model are written last, when the report is whole, and only as the recipe would have them: not
    into another folder's report, and not with another seed. One whose input is missing stays as it is.

    Args:
        path: The RUN.
        against: Another RUN, or PREDICTIONS, of the same test images to compare with.
        output: Folder of the report; None takes the RUN's own, and only then files beside the model are written.
        draws: Of intervals; None takes those of the recipe.
        seed: Of draws and of the halves of the calibration fold; None takes that of the recipe.
        symmetries: Ask the model about the 8 symmetries of each test image, where that was not done before.

    Raises:
        CytoDinoError: Something is missing, or does not belong together; says what.
    """
    folder = output or path / "report"
    refuse_other_report(folder, RUN)
    run = KeptRun.read(path)
    other = None if against is None else (_short(against), compared_predictions(against))
    settings, data = run.recipe.get("evaluation", {}), run.data()
    draws = settings.get("interval_draws", DRAWS) if draws is None else draws
    own_seed = settings.get("seed", SEED)
    seed = own_seed if seed is None else seed
    embeddings = embeddings_by_fold(path / "predictions" / EMBEDDINGS_FILE, run.predictions)
    lost = run.lost_inputs(data["counts"], embeddings)
    trained = _train_classes(run, data)
    fitted = fit(run.predictions, embeddings, trained, seed)
    if CALIBRATION_FILE in lost:
        fitted = replace(fitted, gaps={name: f"{file} is missing" for name, file in lost.items()})
    if symmetries:
        from .symmetries_of_run import ask_symmetries

        ask_symmetries(path, run.test)
    old = run.report.get("parts", {}).get("data", {})
    evidence = Evidence(
        embeddings=embeddings,
        fitted=fitted,
        baselines=run.baselines(),
        baseline_notes=run.baseline_notes(),
        baselines_gap=run.baselines_gap(),
        is_pretrained=run.recipe["model"].get("backbone") is not None,
        copies=old.get("copies"),
        stain=old.get("stain"),
        other=other,
        averaged=run.averaged(),
        kept_galleries=run.galleries(),
    )
    context = _context(run, data, trained, evidence)
    report = write_whole_report(folder, run.predictions, context, draws=draws, seed=seed)
    if output is None and seed == own_seed:
        _keep_beside_model(path, fitted, lost)
    elif output is None:
        logger.warning(
            "%s: the files beside the model stay as they are, by seed %d of its recipe", path, own_seed
        )
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
    folder = output or file.with_name(f"{file.stem}_report")
    refuse_other_report(folder, PREDICTIONS)
    found = Predictions.from_parquet(file)
    other = None if against is None else (_short(against), compared_predictions(against))
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
        fitted=fit(predictions, embeddings, found.classes, seed),
        baselines_gap="a file of predictions holds no answers of any, and no image is read here",
        other=other,
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


def _train_classes(run: KeptRun, data: Mapping[str, Any]) -> tuple[str, ...]:
    counts = data["counts"].get("train", {})
    return tuple(code for code in run.taxonomy.codes if counts.get(code))


def _context(
    run: KeptRun, data: Mapping[str, Any], train_classes: tuple[str, ...], evidence: Evidence
) -> ReportContext:
    report, environment = run.report, run.path / "environment.json"
    figures = {name: run.path / "report" / "figures" / f"{name}.png" for name in _PANELS}
    return ReportContext(
        title=report.get("title", run.path.name),
        recipe=run.recipe,
        environment=read_json(environment) if environment.is_file() else {},
        data=data,
        training=report.get("training", {}),
        taxonomy=run.taxonomy,
        train_classes=train_classes,
        model=report.get("model", {}),
        evidence=evidence,
        kept_figures={name: file.read_bytes() for name, file in figures.items() if file.is_file()},
    )


def _keep_beside_model(path: Path, fitted: Fitted, lost: Mapping[str, str]) -> None:
    if not read_json(path / "config.json").get("binding"):
        logger.warning(
            "%s was made by an earlier version, whose model is bound to nothing: no calibration is kept beside it",
            path,
        )
        return
    fitted.save(path, lost)
    bind_companions(path)


def _short(path: Path) -> str:
    """What to call a RUN or a file."""
    path = path.resolve()
    if path.suffix != ".parquet":
        return path.name
    return f"{path.parent.parent.name}, {path.stem}" if path.parent.name == "predictions" else path.stem
