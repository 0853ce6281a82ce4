"""Every metric that is one number of a fold: its name, which direction is better, its value from logits.

`training.metric_for_best_model` takes any of them. What is not defined for a fold (AUROC of a fold of one class) is
left out, and `why_undefined` says so before a training starts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..taxonomy import Taxonomy
from .agreement import AGREEMENT, FREQUENT_IMAGES, agreement_metrics
from .hierarchy import HIERARCHY, distance_matrix, hierarchy_metrics
from .metrics import METRICS, confusion_matrix, confusion_metrics, critical_mistakes
from .probability_metrics import probability_metrics
from .ranking_metrics import SPECIFICITY, class_scores, rank_class, sensitivity_at_specificity

PROBABILITY = ("nll", "brier", "ece")
#: Means over classes of AUROC and AUPRC, each class against the rest.
RANKING = ("macro_auroc", "macro_auprc")
SENSITIVITY = f"sensitivity_at_{SPECIFICITY * 100:.0f}_specificity"
#: Only of taxonomies of two classes; see `positive_label`.
BINARY = ("auroc", "auprc", SENSITIVITY)
#: Before the code of a critical class: the share of its images called safe.
OF_ONE_CLASS = "critical_to_safe_"
#: All names but those of one class (`metric_names`).
SCALAR_METRICS = (*METRICS, *AGREEMENT, *RANKING, *PROBABILITY, *HIERARCHY, *BINARY)
#: Metrics of which less is better.
LESS_IS_BETTER = (*PROBABILITY, "mean_distance", "critical_to_safe")


def metric_names(taxonomy: Taxonomy) -> tuple[str, ...]:
    """All names, with those of one critical class, such as `critical_to_safe_BLA`."""
    return (*SCALAR_METRICS, *(f"{OF_ONE_CLASS}{taxonomy.codes[label]}" for label in taxonomy.critical))


def is_less_better(name: str) -> bool:
    """Whether a smaller value of the metric is the better one."""
    return name in LESS_IS_BETTER or name.startswith(OF_ONE_CLASS)


def positive_label(taxonomy: Taxonomy) -> int | None:
    """The class a binary task looks for: its only critical class, else its second; None unless there are two."""
    if len(taxonomy) != 2:
        return None
    return taxonomy.critical[0] if len(taxonomy.critical) == 1 else 1


def ranked_classes(labels: np.ndarray, classes_counted: np.ndarray) -> list[int]:
    """Counted classes that can be ranked: some images are of them, and some are not."""
    support = np.bincount(labels, minlength=len(classes_counted))
    return np.flatnonzero(classes_counted & (support > 0) & (support < len(labels))).tolist()


def scalar_metrics(
    logits: np.ndarray,
    labels: np.ndarray,
    taxonomy: Taxonomy,
    classes_counted: np.ndarray | None = None,
    names: Sequence[str] = SCALAR_METRICS,
) -> dict[str, float]:
    """Values of some metrics; only what they need is computed.

    Args:
        logits: (images, classes), finite.
        labels: (images,) true labels, none unknown.
        taxonomy: The classes, in label order.
        classes_counted: (K,) bool, the classes of the training fold; None counts all.
        names: Some of `metric_names`.

    Returns:
        Name -> value, in the order asked for, without what is not defined here. `within_one_step` of a fold without
        mistake is 1: none lies further.

    Raises:
        ValueError: No image of a counted class, a label out of range or an unknown name.
    """
    if unknown := sorted(set(names) - set(metric_names(taxonomy))):
        raise ValueError(
            f"unknown metrics {', '.join(unknown)}; there are {', '.join(metric_names(taxonomy))}"
        )
    wanted = set(names)
    logits = np.asarray(logits)
    counted = (
        np.ones(len(taxonomy), dtype=bool)
        if classes_counted is None
        else np.asarray(classes_counted, dtype=bool)
    )
    matrix = confusion_matrix(labels, logits.argmax(axis=1), len(taxonomy))
    values: dict[str, float] = {}
    if wanted & set(METRICS):
        values |= {name: float(value) for name, value in confusion_metrics(matrix, counted).items()}
    if wanted & set(AGREEMENT):
        values |= {name: float(value) for name, value in agreement_metrics(matrix, counted).items()}
    if wanted & set(HIERARCHY):
        far = {name: float(value) for name, value in hierarchy_metrics(matrix, taxonomy).items()}
        values |= {"within_one_step": 1.0, **far}
    if of_one := [name for name in wanted if name.startswith(OF_ONE_CLASS)]:
        values |= _rates_of_one_class(matrix, taxonomy, of_one)
    if wanted & set(PROBABILITY):
        values |= probability_metrics(logits, labels)
    if wanted & {*RANKING, *BINARY}:
        values |= _ranking_values(class_scores(logits), np.asarray(labels), taxonomy, counted)
    return {name: values[name] for name in names if name in values}


def why_undefined(
    name: str, labels: np.ndarray, taxonomy: Taxonomy, classes_counted: np.ndarray | None = None
) -> str | None:
    """Why a fold with these labels has no such metric, in a sentence; None where it has.

    Args:
        name: One of `metric_names`.
        labels, taxonomy, classes_counted: As of `scalar_metrics`.
    """
    labels = np.asarray(labels)
    counted = np.ones(len(taxonomy), dtype=bool) if classes_counted is None else classes_counted
    support = np.bincount(labels, minlength=len(taxonomy))
    if len(taxonomy) < 2:
        return "there is one class, so no image can be mistaken"
    if name in BINARY and len(taxonomy) != 2:
        return f"it is of tasks of two classes, and there are {len(taxonomy)}"
    if name in ("cohen_kappa", "mcc") and (support > 0).sum() < 2:
        return "all labelled images are of one class, so agreement and chance are the same"
    if name in (*RANKING, *BINARY) and not ranked_classes(labels, counted):
        return "all labelled images are of one class, so there is nothing to rank"
    if name == "macro_f1_frequent" and not (support[counted] >= FREQUENT_IMAGES).any():
        return f"no class has {FREQUENT_IMAGES} images"
    if name in ("macro_precision", "weighted_precision") and (support > 0).sum() == 1:
        return "all labelled images are of one class, so no other can be called it"
    if name.startswith("critical_to_safe"):
        return _why_no_rate(name, support, taxonomy)
    return _why_no_distance(name, taxonomy)


def _why_no_rate(name: str, support: np.ndarray, taxonomy: Taxonomy) -> str | None:
    if not taxonomy.safe:
        return "no class of the taxonomy is safe"
    if name == "critical_to_safe":
        return None if support[list(taxonomy.critical)].any() else "no image is of a critical class"
    code = name.removeprefix(OF_ONE_CLASS)
    return None if support[taxonomy.index(code)] else f"no image is of {code}"


def _why_no_distance(name: str, taxonomy: Taxonomy) -> str | None:
    if name == "lineage_accuracy" and len(set(taxonomy.lineages)) < 2:
        return "all classes share one lineage"
    distances = distance_matrix(taxonomy)
    if name in ("mean_distance", "within_one_step") and distances.max() == 1:
        return "all classes lie one step apart, so every mistake counts the same"
    if name == "within_one_step" and not (distances == 1).any():
        return "no two classes lie one step apart"
    return None


def _rates_of_one_class(matrix: np.ndarray, taxonomy: Taxonomy, names: Sequence[str]) -> dict[str, float]:
    if not taxonomy.safe:
        return {}
    of_class = critical_mistakes(matrix, taxonomy.critical, taxonomy.safe).per_class
    rates = {name: of_class[taxonomy.index(name.removeprefix(OF_ONE_CLASS))].rate for name in names}
    return {name: rate for name, rate in rates.items() if rate is not None}


def _ranking_values(
    scores: np.ndarray, labels: np.ndarray, taxonomy: Taxonomy, counted: np.ndarray
) -> dict[str, float]:
    ranked = ranked_classes(labels, counted)
    if not ranked:
        return {}
    rankings = {label: rank_class(scores[:, label], labels == label) for label in ranked}
    values = {
        "macro_auroc": float(np.mean([r.auroc for r in rankings.values()])),
        "macro_auprc": float(np.mean([r.auprc for r in rankings.values()])),
    }
    positive = positive_label(taxonomy)
    if positive in rankings:
        column, once = scores[:, positive], np.ones((1, len(labels)))
        sensitivity = sensitivity_at_specificity(column, labels == positive, once)[0]
        found = (rankings[positive].auroc, rankings[positive].auprc, float(sensitivity))
        values |= dict(zip(BINARY, found, strict=True))
    return values
