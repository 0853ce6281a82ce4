"""The published loss against its description, worked out in float64 NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cytodino_hf.losses.hierarchical_focal_published import (
    Options,
    PublishedHierarchicalFocal,
    published_targets,
)
from cytodino_hf.taxonomy import MLL, MLL_IMAGE_COUNTS, MLL_PUBLISHED

CODES = MLL_PUBLISHED.codes
COUNTS = [MLL_IMAGE_COUNTS[code] for code in CODES]
# Written out again from the paper, not taken from the package's taxonomy.
LINEAGES = {
    "granulocytic": ["BLA", "PMO", "MYB", "MMZ", "NGB", "NGS"],
    "erythroid": ["PEB", "EBO"],
    "lymphoid": ["LYI", "LYT", "PLM"],
    "monocytic": ["MON"],
    "eosinophil": ["EOS", "ABE"],
    "basophil": ["BAS"],
    "pathological": ["FGC", "HAC", "KSC"],
    "artefact": ["ART", "NIF", "OTH"],
}
ORDERED = ("granulocytic", "erythroid")
CRITICAL = {"BLA", "MYB", "PMO", "FGC", "HAC", "KSC", "ABE", "LYI"}
SAFE = {"NGS", "NGB", "LYT", "MON", "EOS", "BAS", "PLM", "EBO"}


def expected_targets() -> np.ndarray:
    """The published rules with e = 0.1, w = 0.95, b = 0.01, one case after the other."""
    table = np.zeros((21, 21))
    for name, members in LINEAGES.items():
        for code in members:
            row = table[CODES.index(code)]
            row[CODES.index(code)] = 0.9
            outside = [c for c in CODES if c not in members]
            mates = [c for c in members if c != code]
            if not mates:
                for other in outside:
                    row[CODES.index(other)] = 0.1 / 20
                continue
            for other in outside:
                row[CODES.index(other)] = 0.005 / len(outside)
            at = members.index(code)
            near = [members[i] for i in (at - 1, at + 1) if 0 <= i < len(members)] if name in ORDERED else []
            far = [c for c in mates if c not in near]
            for mate in mates:
                if not near:
                    row[CODES.index(mate)] = 0.095 / len(mates)
                elif mate in near:
                    row[CODES.index(mate)] = 0.095 * 0.01 / len(near)
                else:
                    row[CODES.index(mate)] = 0.095 * 0.99 / len(far)
    return table


def test_targets_are_the_published_matrix() -> None:
    table = published_targets(MLL_PUBLISHED, 0.1, 0.95, 0.01).numpy()
    np.testing.assert_allclose(table, expected_targets(), rtol=1e-12, atol=1e-15)
    row = dict(zip(CODES, table[CODES.index("BLA")], strict=True))
    assert row["PMO"] == pytest.approx(0.00095, rel=1e-12)
    assert row["NGS"] == pytest.approx(0.0235, abs=5e-5)


def test_rows_sum_to_one_but_for_the_two_erythroid_classes() -> None:
    sums = dict(
        zip(CODES, published_targets(MLL_PUBLISHED, 0.1, 0.95, 0.01).sum(dim=1).tolist(), strict=True)
    )
    for code, total in sums.items():
        assert total == pytest.approx(0.90595 if code in ("EBO", "PEB") else 1.0, abs=1e-12)
    assert round(sums["EBO"], 3) == 0.906


def test_value_follows_the_published_formula() -> None:
    logits = 4 * np.sin(np.arange(40 * 21, dtype=np.float64).reshape(40, 21) * 0.7 + 0.1)
    labels = np.arange(40) % 21
    table = expected_targets()
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    alpha = np.sqrt(sum(COUNTS) / (21 * np.array(COUNTS)))
    terms = []
    seen = set()
    for row, label in zip(p, labels, strict=True):
        true, predicted = CODES[label], CODES[int(row.argmax())]
        factor = 3.0 if true in CRITICAL and predicted in SAFE else 1.0
        factor = 1.5 if true in SAFE and predicted in CRITICAL else factor
        seen.add(factor)
        terms.append((1 - row[label]) ** 2 * alpha[label] * -(table[label] * np.log(row)).sum() * factor)
    assert seen == {1.0, 1.5, 3.0}
    loss = PublishedHierarchicalFocal(Options(), MLL_PUBLISHED, COUNTS)
    value = float(loss(torch.tensor(logits), torch.tensor(labels)))
    assert value == pytest.approx(np.mean(terms), rel=1e-5)


def test_the_critical_factor_jumps_where_the_prediction_flips() -> None:
    """A blast against a lymphocyte at even odds: one hair decides between 1 and 3 times the loss."""
    loss = PublishedHierarchicalFocal(Options(class_weights="none"), MLL_PUBLISHED, COUNTS)
    logits = torch.full((2, 21), -4.0)
    blast, lymphocyte = CODES.index("BLA"), CODES.index("LYT")
    logits[:, blast] = 2.0
    logits[:, lymphocyte] = torch.tensor([1.9999, 2.0001])
    before, after = (float(loss(logits[i : i + 1], torch.tensor([blast]))) for i in range(2))
    assert after / before == pytest.approx(3.0, rel=1e-3)


def test_at_gamma_two_the_smoothing_does_not_hold() -> None:
    """A fault of the original: more confidence than the target's .9 pays at gamma 2, not at gamma 0."""
    label = CODES.index("NGS")
    rest = published_targets(MLL_PUBLISHED, 0.1, 0.95, 0.01)[label].clone()
    rest[label] = 0.0
    p = torch.stack([torch.where(rest > 0, rest / rest.sum() * (1 - c), c) for c in (0.9, 0.996)])
    for gamma, confident_is_cheaper in ((2.0, True), (0.0, False)):
        loss = PublishedHierarchicalFocal(Options(gamma=gamma), MLL_PUBLISHED, COUNTS)
        smoothed, confident = (float(loss(p[i : i + 1].log(), torch.tensor([label]))) for i in range(2))
        assert (confident < smoothed) is confident_is_cheaper


def test_defaults_are_the_published_values() -> None:
    assert Options().model_dump() == {
        "class_weights": "sqrt_balanced",
        "gamma": 2.0,
        "smoothing": 0.1,
        "lineage_share": 0.95,
        "neighbour_share": 0.01,
        "critical_to_safe_factor": 3.0,
        "safe_to_critical_factor": 1.5,
    }


def test_the_papers_lymphoid_order_changes_lymphoid_rows_only() -> None:
    change = published_targets(MLL, 0.1, 0.95, 0.01) - published_targets(MLL_PUBLISHED, 0.1, 0.95, 0.01)
    changed = {CODES[i] for i in torch.nonzero(change.abs().sum(dim=1)).flatten().tolist()}
    assert changed == {"LYI", "LYT", "PLM"}
