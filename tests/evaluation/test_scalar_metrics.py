"""Every name has a value, by independent formulas, or a reason why not."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, brier_score_loss, log_loss, roc_auc_score

from cytodino_hf.errors import RecipeError
from cytodino_hf.evaluation.scalar_metrics import (
    BINARY,
    LESS_IS_BETTER,
    SCALAR_METRICS,
    SENSITIVITY,
    is_less_better,
    metric_names,
    positive_label,
    scalar_metrics,
    why_undefined,
)
from cytodino_hf.recipe import load_recipe
from cytodino_hf.taxonomy import MLL, CellClass, Taxonomy
from cytodino_hf.trainer import make_compute_metrics, training_arguments

PAIR = MLL.subset(["BLA", "LYT"])


def _fold(k: int, n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, k, n)
    logits = rng.normal(size=(n, k))
    logits[np.arange(n), labels] += 1.5
    parts = np.exp(logits)
    return logits, labels, parts / parts.sum(1, keepdims=True)


def test_rankings_and_probabilities_agree_with_scikit_learn() -> None:
    logits, labels, p = _fold(4, 300)
    cells = MLL.subset(["BLA", "LYT", "NGS", "PMO"])
    found = scalar_metrics(logits, labels, cells)
    assert found["macro_auroc"] == pytest.approx(roc_auc_score(labels, p, multi_class="ovr", average="macro"))
    each = [average_precision_score(labels == c, p[:, c]) for c in range(4)]
    assert found["macro_auprc"] == pytest.approx(np.mean(each))
    assert found["nll"] == pytest.approx(log_loss(labels, p))
    assert not {"auroc", "auprc", SENSITIVITY} & set(found)
    two = scalar_metrics(logits, labels, cells, np.array([True, False, True, False]))
    assert two["macro_auprc"] == pytest.approx((each[0] + each[2]) / 2)


def test_a_task_of_two_classes_has_all_of_them() -> None:
    logits, labels, p = _fold(2, 200)
    found = scalar_metrics(logits, labels, PAIR)
    assert set(found) == set(SCALAR_METRICS)
    assert positive_label(PAIR) == 0  # BLA is critical
    assert found["auroc"] == pytest.approx(roc_auc_score(labels == 0, p[:, 0]))
    assert found["auprc"] == pytest.approx(average_precision_score(labels == 0, p[:, 0]))
    assert found["brier"] == pytest.approx(2 * brier_score_loss(labels == 0, p[:, 0]))
    plain = Taxonomy("plain", (CellClass("a", "a", "x"), CellClass("b", "b", "x")))
    assert positive_label(plain) == 1
    assert positive_label(MLL) is None


def test_only_what_is_asked_for_and_in_that_order() -> None:
    logits, labels, _ = _fold(2, 60)
    assert list(scalar_metrics(logits, labels, PAIR, names=["mcc", "accuracy", "nll"])) == [
        "mcc",
        "accuracy",
        "nll",
    ]
    with pytest.raises(ValueError, match="unknown metrics f2"):
        scalar_metrics(logits, labels, PAIR, names=["f2"])
    assert set(LESS_IS_BETTER) <= set(SCALAR_METRICS)


def test_what_a_fold_cannot_have_is_left_out_and_explained() -> None:
    one = np.zeros(5, dtype=int)
    logits = np.tile([2.0, 0.0], (5, 1))
    found = scalar_metrics(logits, one, PAIR)
    reasons = {name: why_undefined(name, one, PAIR) for name in SCALAR_METRICS}
    for name in ("macro_auroc", "macro_auprc", "auroc", "auprc", SENSITIVITY, "macro_f1_frequent"):
        assert name not in found
        assert reasons[name]
    assert reasons["cohen_kappa"] is not None
    assert found["cohen_kappa"] == 0
    assert found["within_one_step"] == 1.0
    assert found["critical_to_safe"] == 0.0
    assert reasons["accuracy"] is None
    healthy = np.ones(5, dtype=int)
    assert why_undefined("critical_to_safe", healthy, PAIR) == "no image is of a critical class"
    assert "two classes" in str(why_undefined("auroc", one, MLL))
    assert np.isfinite(list(found.values())).all()


FOUR = MLL.subset(["BLA", "LYT", "NGS", "PMO"])


@pytest.mark.parametrize("name", metric_names(FOUR))
def test_each_name_can_choose_a_checkpoint(name: str) -> None:
    """The recipe takes it, the trainer gets its value and its direction, and a perfect model is the best by it."""
    cells = PAIR if name in BINARY else FOUR
    recipe = load_recipe("recipes/demo.json", ["--training.metric_for_best_model", name])
    arguments = training_arguments(recipe)
    assert arguments.metric_for_best_model == name
    assert arguments.greater_is_better is not is_less_better(name)
    labels = np.arange(400) % len(cells)
    good = 20 * np.eye(len(cells))[labels]
    # A third is called the class half a turn away: each critical one a safe one
    bad = np.where((np.arange(400) % 3 == 0)[:, None], np.roll(good, len(cells) // 2, axis=1), good)
    assert why_undefined(name, labels, cells) is None
    compute = make_compute_metrics(cells, list(range(len(cells))), name)
    of_good, of_bad = (
        compute(SimpleNamespace(predictions=logits, label_ids=labels))[name] for logits in (good, bad)
    )
    assert of_good < of_bad if is_less_better(name) else of_good > of_bad


def test_the_rate_of_one_critical_class() -> None:
    cells = MLL.subset(["BLA", "LYI", "LYT", "NGS"])
    labels = np.repeat([cells.index("BLA"), cells.index("LYI"), cells.index("LYT")], [8, 5, 7])
    said = labels.copy()
    said[:3] = cells.index("NGS")
    names = [f"critical_to_safe_{code}" for code in ("BLA", "LYI")]
    found = scalar_metrics(np.eye(4)[said], labels, cells, names=names)
    assert found == {"critical_to_safe_BLA": 3 / 8, "critical_to_safe_LYI": 0.0}
    assert why_undefined("critical_to_safe_LYI", labels, cells) is None
    without = labels[:8]
    assert scalar_metrics(np.eye(4)[said[:8]], without, cells, names=names) == {"critical_to_safe_BLA": 3 / 8}
    assert why_undefined("critical_to_safe_LYI", without, cells) == "no image is of LYI"
    with pytest.raises(ValueError, match="unknown metrics critical_to_safe_LYT"):
        scalar_metrics(np.eye(4)[said], labels, cells, names=["critical_to_safe_LYT"])
    with pytest.raises(RecipeError, match=r"critical_to_safe_XYZ.*unknown metric"):
        load_recipe("recipes/demo.json", ["--training.metric_for_best_model", "critical_to_safe_XYZ"])


def test_a_confidence_of_exactly_1_gives_numbers() -> None:
    logits, labels = np.array([[900.0, 0.0], [0.0, 900.0], [900.0, 0.0]]), np.array([0, 1, 1])
    found = scalar_metrics(logits, labels, PAIR)
    assert np.isfinite(list(found.values())).all()
    assert found["nll"] == pytest.approx(300)
