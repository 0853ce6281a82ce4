"""Paired differences: values by scikit-learn, intervals by a bootstrap of plain loops, refusals."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, log_loss

from cytodino_hf.errors import DataError
from cytodino_hf.evaluation import resampling
from cytodino_hf.evaluation.comparison import (
    COMPARED,
    ENOUGH_DISCORDANT,
    ENOUGH_GROUPS,
    NO_SPREAD,
    bootstrap_intervals,
    paired_differences,
)
from cytodino_hf.evaluation.predictions import Predictions
from cytodino_hf.evaluation.probability_metrics import probability_metrics
from cytodino_hf.taxonomy import MLL, CellClass, Taxonomy

# BLA is critical; LYT and NGS are safe.
TAXONOMY = MLL.subset(["BLA", "LYT", "NGS"])


def make(skill: float, seed: int, n: int = 120, noise: float = 1.0) -> Predictions:
    """Answers that are right the more often the higher the skill; what makes an image hard is common to all."""
    labels = np.arange(n) % 3
    hard = np.random.default_rng(7).normal(0, 1.5, n)
    logits = np.random.default_rng(seed).normal(0, noise, (n, 3))
    logits[np.arange(n), labels] += skill - hard
    return Predictions(
        ids=[f"i{i}" for i in range(n)],
        paths=[f"{i}.png" for i in range(n)],
        sources=["s"] * n,
        groups=[None] * n,
        folds=["test"] * n,
        labels=labels,
        logits=logits.astype(np.float32),
        classes=TAXONOMY.codes,
        model_revision=f"skill {skill} seed {seed}",
    )


def _by_hand(p: Predictions, rows: np.ndarray) -> dict[str, float]:
    labels, called, probabilities = p.labels[rows], p.predicted[rows], p.probabilities[rows].astype(float)
    critical = [label in TAXONOMY.critical for label in labels]
    return {
        "macro_f1": f1_score(labels, called, average="macro"),
        "balanced_accuracy": balanced_accuracy_score(labels, called),
        "accuracy": accuracy_score(labels, called),
        "nll": log_loss(labels, probabilities / probabilities.sum(1, keepdims=True)),
        "ece": probability_metrics(p.logits[rows], labels)["ece"],
        "critical_to_safe": np.mean([c in TAXONOMY.safe for c in called[critical]]),
    }


def _quickly(p: Predictions, rows: np.ndarray) -> dict[str, float]:
    """`_by_hand` without scikit-learn's checks, for many draws."""
    labels, called = p.labels[rows], p.predicted[rows]
    true = [(labels == c) for c in range(3)]
    said = [(called == c) for c in range(3)]
    right = [(t & s).sum() for t, s in zip(true, said, strict=True)]
    return {
        "macro_f1": np.mean([2 * r / (t.sum() + s.sum()) for r, t, s in zip(right, true, said, strict=True)]),
        "balanced_accuracy": np.mean([r / t.sum() for r, t in zip(right, true, strict=True)]),
        "accuracy": (labels == called).mean(),
        "nll": -np.log(p.probabilities[rows, labels]).mean(),
        "ece": probability_metrics(p.logits[rows], labels)["ece"],
        "critical_to_safe": (called[labels == 0] > 0).mean(),
    }


@pytest.fixture(scope="module")
def systems() -> tuple[list[Predictions], list[Predictions]]:
    return [make(2.5, 1), make(2.3, 2), make(2.7, 3)], [make(1.5, 4), make(1.6, 5)]


def test_values_are_means_over_seeds(systems: tuple) -> None:
    ours, other = systems
    found = paired_differences(ours, other, TAXONOMY, draws=100)
    assert tuple(found) == COMPARED
    everything = np.arange(120)
    our = [_by_hand(p, everything) for p in ours]
    their = [_by_hand(p, everything) for p in other]
    for name, difference in found.items():
        a, b = [one[name] for one in our], [one[name] for one in their]
        assert difference.ours == pytest.approx(np.mean(a), abs=1e-6)
        assert difference.other == pytest.approx(np.mean(b), abs=1e-6)
        assert difference.value == pytest.approx(np.mean(a) - np.mean(b), abs=1e-6)
        assert difference.ours_spread == pytest.approx(np.std(a, ddof=1), abs=1e-6)
        assert (difference.ours_seeds, difference.other_seeds) == (3, 2)
        assert difference.n == (40 if name == "critical_to_safe" else 120)


def test_intervals_equal_a_bootstrap_of_plain_loops(systems: tuple) -> None:
    """Its deviation, by 120 / (120 - 3) for the three classes; shares of images also turn one more image."""
    ours, other = systems
    found = paired_differences(ours, other, TAXONOMY, draws=4000, seed=5)
    one_more = {
        "accuracy": 1 / 120,
        "balanced_accuracy": 1 / 120,
        "macro_f1": 1 / 120,
        "critical_to_safe": 1 / 40,
    }
    rng = np.random.default_rng(99)
    drawn: dict[str, list[float]] = {name: [] for name in COMPARED}
    for _ in range(500):
        rows = np.concatenate([rng.choice(np.flatnonzero(ours[0].labels == c), 40) for c in range(3)])
        for name in COMPARED:
            drawn[name].append(0.0)
        for system, sign in ((ours, 1), (other, -1)):
            for p in system:
                for name, value in _quickly(p, rows).items():
                    drawn[name][-1] += sign * value / len(system)
    for name, difference in found.items():
        within = 40 if name == "critical_to_safe" else 120
        strata = 1 if name == "critical_to_safe" else 3
        variance = np.var(drawn[name], ddof=1) * within / (within - strata) + one_more.get(name, 0.0) ** 2
        # The deviation of 500 draws has a standard error of 3 %; the freedom of 117 adds 1 % to the width.
        half = 1.96 * np.sqrt(variance)
        assert difference.deviation == pytest.approx(np.sqrt(variance), rel=0.1), name
        assert difference.high - difference.value == pytest.approx(half, rel=0.12), name
        assert difference.value - difference.low == pytest.approx(half, rel=0.12), name


def test_one_interval_stands_for_both_with_one_seed_a_system(systems: tuple) -> None:
    ours, other = systems
    for difference in paired_differences(ours[:1], other[:1], TAXONOMY, draws=100).values():
        assert (difference.low, difference.high) == (difference.low_of_both, difference.high_of_both)
    for difference in paired_differences(ours, other, TAXONOMY, draws=100).values():
        assert difference.low_of_both < difference.low < difference.high < difference.high_of_both


def test_equal_systems_are_not_certainly_equal_and_pairing_helps(systems: tuple) -> None:
    ours, _ = systems
    for name, difference in paired_differences(ours, ours, TAXONOMY, draws=200).items():
        assert difference.value == difference.discordant == 0
        assert not difference.is_clear
        if name in ("nll", "ece"):  # no image tells by how much others might differ
            assert (difference.low, difference.high_of_both, difference.doubt) == (None, None, NO_SPREAD)
    same = paired_differences(ours[:1], ours[:1], TAXONOMY, draws=200)
    # Agresti and Min of 120 pairs that all agree; 40 of the images are of the critical class.
    assert same["accuracy"].high == -same["accuracy"].low == pytest.approx(1.96 / 122, rel=0.05)
    assert same["critical_to_safe"].high == pytest.approx(1.96 / 42, rel=0.06)
    assert (same["accuracy"].n, same["critical_to_safe"].n) == (120, 40)
    nearly = replace(ours[0], logits=ours[0].logits + np.float32(0.05) * make(0, 77).logits)
    paired = paired_differences(ours[:1], [nearly], TAXONOMY, ["accuracy"], 1000)["accuracy"]
    alone = bootstrap_intervals(ours[:1], TAXONOMY, ["accuracy"], 1000)["accuracy"]
    assert paired.high - paired.low < (alone.high - alone.low) / 2


def test_order_of_images_and_chunks_change_nothing(systems: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, other = systems
    whole = paired_differences(ours, other, TAXONOMY, draws=60)
    turned = [p.select(np.arange(120)[::-1]) for p in other]
    assert paired_differences(ours, turned, TAXONOMY, draws=60) == whole
    unlabelled = replace(make(1, 9), labels=np.full(120, -1), ids=[f"u{i}" for i in range(120)])
    both = [
        replace(
            p,
            **{
                key: getattr(p, key) + getattr(unlabelled, key)
                for key in ("ids", "paths", "sources", "groups", "folds")
            },
            labels=np.concatenate([p.labels, unlabelled.labels]),
            logits=np.concatenate([p.logits, unlabelled.logits]),
        )
        for p in ours
    ]
    assert paired_differences(both, other, TAXONOMY, draws=60) == whole
    monkeypatch.setattr(resampling, "_CELLS_AT_ONCE", 120 * 7)
    in_chunks = paired_differences(ours, other, TAXONOMY, draws=60)
    assert all(in_chunks[name].value == pytest.approx(whole[name].value) for name in whole)


def test_other_images_labels_or_classes_are_refused(systems: tuple) -> None:
    ours, other = systems
    with pytest.raises(DataError, match="not of the same test images \\(1 differ, such as i119"):
        paired_differences(ours, [other[0].select(range(119))], TAXONOMY)
    with pytest.raises(DataError, match="not of the same test images"):
        paired_differences([ours[0], ours[1].select([0, *range(119)])], other, TAXONOMY)
    with pytest.raises(DataError, match="different labels for 120 images"):
        paired_differences(ours, [replace(other[0], labels=(other[0].labels + 1) % 3)], TAXONOMY)
    with pytest.raises(DataError, match="name the classes"):
        paired_differences(ours, other, MLL.subset(["BLA", "LYT", "EOS"]))
    with pytest.raises(DataError, match="no predictions"):
        paired_differences(ours, [], TAXONOMY)
    with pytest.raises(ValueError, match="unknown metrics f2"):
        paired_differences(ours, other, TAXONOMY, ["f2"])


def test_without_dangerous_classes_there_is_no_rate_and_small_classes_are_named(systems: tuple) -> None:
    harmless = Taxonomy("harmless", tuple(CellClass(code, code, "any") for code in TAXONOMY.codes))
    ours, other = systems
    found = paired_differences(ours, other, harmless, draws=50)
    assert "critical_to_safe" not in found
    few = [i for i in range(120) if i % 3 or i < 15]
    found = paired_differences([ours[0].select(few)], [other[0].select(few)], TAXONOMY, draws=50)
    assert found["accuracy"].small_classes == ("BLA",)
    assert found["accuracy"].ours_spread is None


@pytest.mark.parametrize("patients", [1, 2, ENOUGH_GROUPS - 1, 20])
def test_blasts_of_a_few_patients_make_no_rate_clear(patients: int) -> None:
    """Every patient's blasts are called safe by one system alone, so that every draw of patients looks the same."""
    good = make(30.0, 1)
    logits = good.logits.copy()
    logits[good.labels == 0] = (0.0, 9.0, 0.0)
    groups = [f"patient {i % patients}" if i % 3 == 0 else None for i in range(120)]
    bad = replace(good, logits=logits, groups=groups, model_revision="bad")
    rate = paired_differences([replace(good, groups=groups)], [bad], TAXONOMY, draws=50)["critical_to_safe"]
    assert rate.value == rate.low == -1
    assert rate.high > -1, "no draw differs, but other patients would"
    assert (rate.groups, rate.n) == (patients, 40)
    assert rate.is_clear is (patients == 20)
    if patients < ENOUGH_GROUPS:
        assert rate.high == 1 or patients > 2, "of one or two patients nothing follows"
        assert rate.doubt == f"only {patients} group{'s' * (patients > 1)}, fewer than {ENOUGH_GROUPS}"


def gained(count: int, lost: int, n: int = 100) -> tuple[Predictions, Predictions]:
    """Two systems, of which the first alone is right in some images and the second alone in some others."""
    labels = np.arange(n) % 3
    right, wrong = (np.eye(3)[called] * 6.0 for called in (labels, (labels + 1) % 3))
    rows = np.arange(n)[:, None]
    base = make(1.0, 1, n)
    ours = np.where((rows >= count) & (rows < count + lost), wrong, right)
    other = np.where(rows < count, wrong, right)
    return tuple(replace(base, labels=labels, logits=one.astype(np.float32)) for one in (ours, other))  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("count", "lost"), [(4, 0), (5, 0), (6, 0), (9, 0), (9, 1), (9, 2), (10, 2), (13, 4), (30, 9)]
)
def test_the_verdict_on_accuracy_is_that_of_mcnemar(count: int, lost: int) -> None:
    ours, other = gained(count, lost)
    found = paired_differences([ours], [other], TAXONOMY, draws=400)
    is_clear = bool(binomtest(count, count + lost).pvalue < 0.05)
    assert found["accuracy"].is_clear is is_clear
    assert (found["accuracy"].doubt is None) is is_clear
    # Agresti and Min, but for the share of the difference in the draws
    half = 1.96 * np.sqrt(count + lost + 1 - (count - lost) ** 2 / 102) / 102
    assert found["accuracy"].high - found["accuracy"].value == pytest.approx(half, rel=0.1)
    for name in ("macro_f1", "balanced_accuracy"):
        assert found[name].discordant == count + lost
        if count + lost < ENOUGH_DISCORDANT:
            assert not found[name].is_clear
            assert found[name].doubt == f"they differ in {count} images, fewer than 10"
        elif is_clear:
            assert found[name].is_clear


@pytest.mark.parametrize("counts", [[2, 2, 2], [5, 5, 5], [14, 13, 13], [90, 8, 2], [60, 20, 5]])
@pytest.mark.parametrize("skill", [1.0, 3.0])
def test_equal_systems_are_called_different_in_five_of_a_hundred(counts: list[int], skill: float) -> None:
    """Two systems of one skill on few images; 200 samples have a standard error of 1.5 of 100."""
    rng = np.random.default_rng(sum(counts))
    labels = np.repeat([0, 1, 2], counts)
    base, repeats = make(1.0, 1, len(labels)), 200
    metrics = (*COMPARED, "brier", "weighted_f1")
    clear = dict.fromkeys(metrics, 0)
    for number in range(repeats):
        hard = rng.normal(0, 1, (len(labels), 3)) + skill * np.eye(3)[labels]
        pair = [
            replace(base, labels=labels, logits=(hard + rng.normal(0, 1, hard.shape)).astype(np.float32))
            for _ in range(2)
        ]
        found = paired_differences(pair[:1], pair[1:], TAXONOMY, metrics, draws=100, seed=number)
        for name, difference in found.items():
            clear[name] += difference.is_clear
            assert difference.low < difference.value < difference.high or abs(difference.value) == 1
    assert all(count <= 0.09 * repeats for count in clear.values()), clear
    assert sum(clear.values()) <= 0.05 * repeats * len(metrics), clear


@pytest.mark.slow
def test_intervals_cover_the_true_difference() -> None:
    """95 % intervals hold the difference of the population in 93 to 97 of 100 samples (standard error 1.1)."""
    population = 30_000
    ours, other = make(2.5, 1, population), make(1.9, 2, population)
    metrics = ["macro_f1", "balanced_accuracy", "nll"]
    truth = paired_differences([ours], [other], TAXONOMY, metrics, draws=2)
    hits = dict.fromkeys(metrics, 0)
    rng = np.random.default_rng(0)
    for number in range(400):
        rows = np.concatenate([rng.choice(np.flatnonzero(ours.labels == c), 40, False) for c in range(3)])
        found = paired_differences(
            [ours.select(rows)], [other.select(rows)], TAXONOMY, metrics, draws=500, seed=number
        )
        for name in metrics:
            hits[name] += found[name].low <= truth[name].value <= found[name].high
    assert all(0.92 * 400 <= count <= 0.975 * 400 for count in hits.values()), hits
