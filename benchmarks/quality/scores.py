"""What the finished runs said of the same images: per arm the mean over seeds, and the paired difference."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from benchmarks.results import Part
from cytodino_hf.evaluation.calibration.temperature import fit_temperature
from cytodino_hf.evaluation.comparison import COMPARED, bootstrap_intervals, paired_differences
from cytodino_hf.evaluation.metrics import confusion_matrix, confusion_metrics
from cytodino_hf.evaluation.predictions import Predictions
from cytodino_hf.evaluation.probability_metrics import probability_metrics
from cytodino_hf.evaluation.seeds import over_seeds
from cytodino_hf.taxonomy import Taxonomy, load_taxonomy

from .runs import Run, costs

#: The fold that may choose between arms, and the one that is only reported.
DECIDES: Literal["validation"] = "validation"
FOLDS = (DECIDES, "test")


class Score(Part):
    """One metric of an arm in one fold.

    Args:
        mean: Over seeds.
        spread: Standard deviation over seeds (n - 1); None with one seed.
        values: Of each seed.
        mean_low, mean_high: 95 % interval of the mean over the images of the fold.
        difference: Arm minus reference, paired by image; None for the reference itself, as are those that follow.
        low, high: Its 95 % interval over images and seeds; over images alone where either side has one seed.
        low_of_images, high_of_images: Its 95 % interval over the images of the fold.
        seed_error: Standard error of the difference over seeds; None where either side has one seed.
        discordant: See `Difference`.
        is_clear: Whether neither other images nor other seeds would easily turn it round.
    """

    mean: float
    spread: float | None
    values: list[float]
    mean_low: float
    mean_high: float
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    low_of_images: float | None = None
    high_of_images: float | None = None
    seed_error: float | None = None
    discordant: float | None = None
    is_clear: bool = False


class Sureness(Part):
    """How sure an arm was of its answers in the test fold and how often it was right; each a mean over seeds.

    Args:
        confidence: Mean probability of the chosen class.
        accuracy: Share of right answers.
        temperature: With the least NLL on the calibration fold, which decides nothing else; below 1: too modest.
        nll, ece: Of the test fold with logits divided by it.
    """

    confidence: float
    accuracy: float
    temperature: float
    nll: float
    ece: float


class ArmScores(Part):
    """One arm as it came out.

    Args:
        name, title: Of the arm.
        recipe: The resolved recipe of its first seed, without the places of files.
        seeds: Its seeds.
        images_shown: Pictures of training, mean over seeds; less than planned where a run stopped early.
        seconds: Of training on the wall, mean over seeds.
        cpu_s: Of the whole processes, mean over seeds; None where it is not known.
        precision: What its training computed in, by its runs.
        jobs, threads: Runs at the same time and threads of each, where they are known; several where that changed.
        chosen_after: Pictures shown before the chosen checkpoint of each seed.
        folds: Fold -> metric -> score.
        sureness: None without calibration images.
    """

    name: str
    title: str
    recipe: dict[str, Any]
    seeds: list[int]
    images_shown: float
    seconds: float
    cpu_s: float | None
    precision: list[str]
    jobs: list[int]
    threads: list[int]
    chosen_after: list[int | None]
    folds: dict[str, dict[str, Score]]
    sureness: Sureness | None = None


def score_arms(
    runs: Mapping[str, Sequence[Run]], titles: Mapping[str, str], *, draws: int, reference: str
) -> list[ArmScores]:
    """Scores of every arm, in order.

    Args:
        runs: Arm -> its finished runs.
        titles: Arm -> in words.
        draws: Bootstrap draws of each interval.
        reference: Arm the others are compared with; where it is not among them nothing is compared.

    Raises:
        DataError: Two runs were not scored on the same images.
    """
    said = {
        arm: {fold: [_predictions(run, fold) for run in own] for fold in FOLDS} for arm, own in runs.items()
    }
    return [
        _scores(
            arm, titles[arm], list(own), said[arm], said.get(reference) if arm != reference else None, draws
        )
        for arm, own in runs.items()
    ]


def metrics_of(predictions: Predictions, taxonomy: Taxonomy) -> dict[str, float]:
    """The compared metrics of one run."""
    matrix = confusion_matrix(predictions.labels, predictions.predicted, len(taxonomy))
    values = {name: float(value) for name, value in confusion_metrics(matrix).items()}
    values |= probability_metrics(predictions.logits, predictions.labels)
    critical = matrix[list(taxonomy.critical)]
    if critical.sum() and taxonomy.safe:
        values["critical_to_safe"] = float(critical[:, list(taxonomy.safe)].sum() / critical.sum())
    return {name: values[name] for name in COMPARED if name in values}


def _scores(
    arm: str,
    title: str,
    runs: list[Run],
    said: dict[str, list[Predictions]],
    reference: dict[str, list[Predictions]] | None,
    draws: int,
) -> ArmScores:
    reports = [_report(run) for run in runs]
    known = costs(runs[0].study)
    spent = [known[run.name] for run in runs if run.name in known]
    return ArmScores(
        name=arm,
        title=title,
        recipe=_without_places(reports[0]["recipe"]),
        seeds=[run.seed for run in runs],
        images_shown=float(np.mean([_images_shown(r, r["training"]["steps"]) or 0 for r in reports])),
        seconds=float(np.mean([report["training"]["seconds"] for report in reports])),
        cpu_s=float(np.mean([cost.cpu_s for cost in spent])) if len(spent) == len(runs) else None,
        precision=sorted({report["environment"]["precision"] for report in reports}),
        jobs=sorted({cost.jobs for cost in spent}),
        threads=sorted({cost.threads for cost in spent}),
        chosen_after=[_images_shown(report, report["training"]["best_step"]) for report in reports],
        folds={
            fold: _fold_scores(said[fold], reference[fold] if reference is not None else None, draws)
            for fold in FOLDS
        },
        sureness=_sureness([(_predictions(run, "calibration"), _predictions(run, "test")) for run in runs]),
    )


def _sureness(seeds: Sequence[tuple[Predictions, Predictions]]) -> Sureness | None:
    """From the answers to the calibration fold and to the test fold of each seed."""
    if not all(len(calibration) for calibration, _ in seeds):
        return None
    rows = []
    for calibration, test in seeds:
        temperature = fit_temperature(calibration.logits, calibration.labels)
        tempered = probability_metrics(test.logits.astype(np.float64) / temperature, test.labels)
        rows.append(
            Sureness(
                confidence=float(test.probabilities.max(axis=1).mean()),
                accuracy=float((test.predicted == test.labels).mean()),
                temperature=temperature,
                nll=tempered["nll"],
                ece=tempered["ece"],
            )
        )
    return Sureness(
        **{name: float(np.mean([getattr(row, name) for row in rows])) for name in Sureness.model_fields}
    )


def _fold_scores(
    system: list[Predictions], reference: list[Predictions] | None, draws: int
) -> dict[str, Score]:
    taxonomy = load_taxonomy("mll").subset(system[0].classes)
    each = [metrics_of(predictions, taxonomy) for predictions in system]
    intervals = bootstrap_intervals(system, taxonomy, tuple(each[0]), draws)
    found = {
        name: Score(
            mean=mean,
            spread=spread,
            values=values,
            mean_low=intervals[name].low,
            mean_high=intervals[name].high,
        )
        for name in each[0]
        for values in [[one[name] for one in each]]
        for mean, spread in [over_seeds(values)]
    }
    if reference is None:
        return found
    differences = paired_differences(system, reference, taxonomy, tuple(found), draws)
    return {
        name: score.model_copy(
            update={
                "difference": d.value,
                "low": d.low_of_both,
                "high": d.high_of_both,
                "low_of_images": d.low,
                "high_of_images": d.high,
                "seed_error": d.seed_error,
                "discordant": d.discordant,
                "is_clear": d.is_clear,
            }
        )
        for name, score in found.items()
        for d in [differences[name]]
    }


def _predictions(run: Run, fold: str) -> Predictions:
    return Predictions.from_parquet(run.folder.predictions / f"{fold}.parquet")


def _report(run: Run) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run.folder.report / "report.json").read_text(encoding="utf-8"))
    return found


def _images_shown(report: Mapping[str, Any], step: int | None) -> int | None:
    """Pictures of training up to a step; the last step of an epoch has what is left of it."""
    if step is None:
        return None
    training, data = report["recipe"]["training"], report["recipe"]["data"]
    batch = training["per_device_train_batch_size"] * training["gradient_accumulation_steps"]
    batch *= report["training"]["processes"]
    train = sum(report["data"]["counts"]["train"].values())
    epoch = train + round(train * (data["oversampling"]["multiplier"] - 1))  # as the sampler counts
    epochs, rest = divmod(step, math.ceil(epoch / batch))
    return epochs * epoch + min(rest * batch, epoch)


def _without_places(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe as anybody may read it: what it is, not where it lay."""
    document: dict[str, Any] = json.loads(json.dumps(recipe))
    document["data"].update(root=None, split=_last_part(document["data"]["split"]))
    if (table := document["data"].get("image_folder", {}).get("table")) is not None:
        document["data"]["image_folder"]["table"] = _last_part(table)
    document["model"]["backbone"] = _last_part(document["model"]["backbone"])
    document["training"].pop("output_dir")
    return document


def _last_part(place: str | None) -> str | None:
    return place if place is None or not place.startswith("/") else place.rstrip("/").rpartition("/")[2]
