"""The fine-tuned model beside what it has to beat, with paired differences: a section of the report and its figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..taxonomy import Taxonomy
from .baselines import BASELINES, HAVE_PROBABILITIES
from .comparison import LESS_IS_BETTER, aligned_rows, ends_told, paired_differences
from .delta_intervals import positive_interval, spread_of
from .grouped import group_draws
from .metrics import confusion_matrix
from .plots import BLUE, GREY, INK, new_figure, shortened, tidy
from .predictions import Predictions
from .probability_metrics import probability_terms
from .statistics import Interval, called_interval, metric_intervals

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Metrics a table of baselines shows; the first decides whether fine-tuning beats one.
SHOWN = ("macro_f1", "balanced_accuracy", "accuracy")
_UNTRAINED_NOTE = "The backbone of this run was never trained, so its frozen features are those of chance."


def baselines_section(
    ours: Predictions,
    baselines: Mapping[str, Predictions],
    taxonomy: Taxonomy,
    train_classes: Sequence[str],
    *,
    is_pretrained: bool = True,
    notes: Mapping[str, str] | None = None,
    draws: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Any]:
    """Score baselines on the fold the model is scored on, and say which of them it beats.

    A baseline is beaten where the paired interval of the difference in macro F1 lies above zero.

    Args:
        ours: The fine-tuned model's predictions of the test fold; images without label are left out.
        baselines: Name of `BASELINES` -> its predictions of the same images.
        taxonomy: The classes.
        train_classes: Codes of the classes with an image in the training fold; macro metrics are over these.
        is_pretrained: The backbone had learnt something before.
        notes: Name -> what else a reader must know of it (`baselines.kept_notes`).
        draws, seed, level: Of the bootstrap.

    Returns:
        `systems` (ours first, each with metrics, intervals and n), `differences` (ours minus each), `beaten` and
        `not_beaten` (names), `verdict` and `notes` (sentences). Without number and with a `why` where there is no
        baseline or no image of a training class to score.

    Raises:
        DataError: The predictions are not of the same images, labels and classes, or not finite.
    """
    counted = np.array([code in train_classes for code in taxonomy.codes])
    labelled = ours.labels >= 0
    head: dict[str, Any] = {"images": int(labelled.sum()), "level": level, "metrics": list(SHOWN)}
    if why := _why_not(ours, baselines, counted):
        return {
            **head,
            "why": why,
            "systems": [],
            "differences": {},
            "beaten": [],
            "not_beaten": [],
            "verdict": [],
            "notes": [],
        }
    (model,) = aligned_rows([ours], [ours], taxonomy)
    others = {name: aligned_rows([one], [ours], taxonomy)[0] for name, one in baselines.items()}
    options = {"draws": draws, "seed": seed, "level": level}
    systems = [_system("fine-tuned", "this run", model, taxonomy, counted, True, options)]
    differences: dict[str, Any] = {}
    for name, other in others.items():
        has_probabilities = name in HAVE_PROBABILITIES
        systems.append(
            _system(name, BASELINES[name][0], other, taxonomy, counted, has_probabilities, options)
        )
        metrics = [*SHOWN, "critical_to_safe", *(["nll"] if has_probabilities else [])]
        found = paired_differences(
            [model], [other], taxonomy, metrics, draws, seed, classes_counted=counted, level=level
        )
        differences[name] = {
            metric: {**one.to_dict(), "verdict": _verdict(metric, one.value, one.is_clear)}
            for metric, one in found.items()
        }
    beaten = [name for name, found in differences.items() if found[SHOWN[0]]["verdict"] == "better"]
    return {
        **head,
        "why": None,
        "systems": systems,
        "words": {name: BASELINES[name][1] for name in differences},
        "differences": differences,
        "beaten": beaten,
        "not_beaten": [name for name in differences if name not in beaten],
        "verdict": _sentences(differences, level) + ([] if is_pretrained else [_UNTRAINED_NOTE]),
        "notes": [
            f"{BASELINES[name][0]}: {note}" for name, note in (notes or {}).items() if name in differences
        ],
    }


def _why_not(ours: Predictions, baselines: Mapping[str, Predictions], counted: np.ndarray) -> str | None:
    known = ours.labels[ours.labels >= 0]
    if not baselines:
        return "no baseline was computed"
    if not len(known) or not counted[known].any():
        return "the fold has no labelled image of a training class"
    return None


def _system(
    name: str,
    title: str,
    predictions: Predictions,
    taxonomy: Taxonomy,
    counted: np.ndarray,
    has_probabilities: bool,
    options: Mapping[str, Any],
) -> dict[str, Any]:
    matrix = confusion_matrix(predictions.labels, predictions.predicted, len(taxonomy))
    grouped = group_draws(
        predictions.labels,
        predictions.predicted,
        predictions.groups,
        len(taxonomy),
        options["draws"],
        options["seed"],
    )
    intervals = metric_intervals(matrix, counted, **options, grouped=grouped)
    metrics = {metric: intervals[metric].to_dict() for metric in SHOWN}
    dangerous, _ = called_interval(matrix, taxonomy.critical, taxonomy.safe, grouped, level=options["level"])
    if dangerous.n and taxonomy.safe:
        metrics["critical_to_safe"] = dangerous.to_dict()
    if has_probabilities and (nll := _nll(predictions, options["level"])) is not None:
        metrics["nll"] = nll.to_dict()
    return {"name": name, "title": title, "metrics": metrics}


def _nll(predictions: Predictions, level: float) -> Interval | None:
    """None where no interval can be given, as of one image."""
    terms = probability_terms(predictions.logits, predictions.labels).nll
    value = float(terms.mean())
    influence = (terms - value) / len(terms)
    spread = spread_of(influence, predictions.labels, predictions.groups)
    return positive_interval(value, spread, len(terms), level=level)


def _verdict(metric: str, value: float, is_clear: bool) -> str:
    if not is_clear:
        return "unclear"
    return "better" if (value < 0) == (metric in LESS_IS_BETTER) else "worse"


def _sentences(differences: Mapping[str, Any], level: float) -> list[str]:
    """What a reader must not overlook: every baseline that fine-tuning does not clearly beat."""
    metric = SHOWN[0]
    words = {
        "worse": "Fine-tuning is worse than {}",
        "unclear": "Fine-tuning is not shown to beat {}",
    }
    found = []
    for name, rows in differences.items():
        row = rows[metric]
        if row["verdict"] in words:
            beaten = words[row["verdict"]].format(BASELINES[name][0])
            doubt = f"; {row['doubt']}" if row["doubt"] and row["low_of_both"] is not None else ""
            found.append(f"{beaten} in macro F1: difference {_numbers(row, level)}{doubt}.")
    if found:
        return found
    closest = min(differences, key=lambda name: differences[name][metric]["value"])
    row = differences[closest][metric]
    return [
        f"Fine-tuning beats all {len(differences)} baselines in macro F1; the closest is {BASELINES[closest][0]}: "
        f"difference {_numbers(row, level)}."
    ]


def _numbers(row: Mapping[str, Any], level: float) -> str:
    return f"{row['value']:+.3f} ({ends_told(row, f'{100 * level:.0f} % interval ')}, n = {row['n']:,})"


def draw_baselines(section: Mapping[str, Any]) -> Figure:
    """Macro F1 of the model and of every baseline with intervals.

    Args:
        section: From `baselines_section`, with systems.
    """
    metric = SHOWN[0]
    systems = section["systems"]
    figure = new_figure(5.6, 0.38 * len(systems) + 1.0)
    axes = figure.subplots()
    for place, system in enumerate(systems):
        entry, is_ours = system["metrics"][metric], place == 0
        colour = BLUE if is_ours else GREY
        axes.hlines(place, entry["low"], entry["high"], color=colour, alpha=0.5, linewidth=4)
        axes.plot(entry["value"], place, "D" if is_ours else "o", color=colour, markersize=7)
        axes.annotate(
            f"{entry['value']:.3f}", (1.03, place), va="center", fontsize=8, color=INK, annotation_clip=False,
        )  # fmt: skip
    axes.axvline(systems[0]["metrics"][metric]["value"], color=BLUE, linewidth=0.8, linestyle=(0, (4, 3)))
    names = [shortened(system["title"]) for system in systems]
    axes.set_yticks(range(len(systems)), labels=names, fontsize=9, color=INK)
    axes.set_ylim(len(systems) - 0.4, -0.6)
    axes.set_xlim(-0.02, 1.1)
    axes.set_xticks([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    axes.set_xlabel(f"macro F1, {section['images']:,} test images", fontsize=9)
    tidy(axes, "x")
    return figure
