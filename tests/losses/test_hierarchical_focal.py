"""Our hierarchical loss: legal targets for every setting, values in NumPy, and where the minimum lies."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from cytodino_hf.losses.focal import Focal
from cytodino_hf.losses.focal import Options as FocalOptions
from cytodino_hf.losses.hierarchical_focal import HierarchicalFocal, Options, mistake_costs, soft_targets
from cytodino_hf.taxonomy import MLL, CellClass, Taxonomy

ONES = [1] * 21
SHARES = [0.0, 0.01, 0.5, 0.95, 1.0]
SEVEN = MLL.subset(["BLA", "EOS", "LYT", "MON", "NGS", "NIF", "PMO"])
SUBSETS = [
    MLL,
    SEVEN,
    MLL.subset(["PEB", "EBO"]),
    MLL.subset(["BLA", "LYT"]),
    MLL.subset(["BLA", "MMZ", "NGS"]),
]


def wide_logits(images: int) -> torch.Tensor:
    return 3 * torch.sin(torch.arange(images * 21, dtype=torch.float64).reshape(images, 21) * 0.7 + 0.1)


@pytest.mark.parametrize("taxonomy", SUBSETS, ids=lambda t: f"{len(t)}_classes")
@pytest.mark.parametrize(("w", "b"), list(itertools.product(SHARES, SHARES)))
def test_targets_are_legal_for_every_setting(taxonomy: Taxonomy, w: float, b: float) -> None:
    table = soft_targets(taxonomy, 0.3, w, b).numpy()
    np.testing.assert_allclose(table.sum(axis=1), 1.0, rtol=0, atol=1e-12)
    np.testing.assert_allclose(np.diag(table), 0.7)
    assert (table >= 0).all()
    for t, code in enumerate(taxonomy.codes):
        near = [taxonomy.index(c) for c in taxonomy.neighbours(code)]
        mates = [j for j, lin in enumerate(taxonomy.lineages) if lin == taxonomy.lineages[t] and j != t]
        far = [j for j in mates if j not in near]
        outside = [j for j in range(len(taxonomy)) if j not in mates and j != t]
        for low, high in ((far, near), (outside, far), (outside, near)):
            if low and high:
                assert table[t, high].min() >= table[t, low].max() - 1e-15


def test_targets_of_a_blast_by_hand() -> None:
    """e = .1, w = .95, b = .5; five others in the lineage, one neighbour (PMO), twenty others in all."""
    row = dict(zip(MLL.codes, soft_targets(MLL, 0.1, 0.95, 0.5)[MLL.index("BLA")].tolist(), strict=True))
    outside = 0.1 * 0.05 / 20
    far = outside + 0.1 * 0.95 * 0.5 / 5
    assert row["LYT"] == pytest.approx(outside)
    assert row["NGS"] == pytest.approx(far)
    assert row["PMO"] == pytest.approx(far + 0.1 * 0.95 * 0.5 / 1)
    assert row["BLA"] == pytest.approx(0.9)


def test_shares_of_zero_are_even_smoothing() -> None:
    table = soft_targets(MLL, 0.2, 0.0, 0.7).numpy()
    np.testing.assert_allclose(table[~np.eye(21, dtype=bool)], 0.01)


def test_a_class_alone_in_its_lineage_smooths_evenly_and_a_single_class_not_at_all() -> None:
    monocyte = soft_targets(MLL, 0.1, 1.0, 1.0)[MLL.index("MON")].numpy()
    np.testing.assert_allclose(np.delete(monocyte, MLL.index("MON")), 0.1 / 20)
    alone = Taxonomy("one", (CellClass("A", "a", "x"),))
    assert soft_targets(alone, 0.1, 0.95, 0.5).tolist() == [[1.0]]


def test_costs_are_set_between_critical_and_safe_only() -> None:
    table = mistake_costs(MLL, 3.0, 1.5)
    at = MLL.index
    assert float(table[at("BLA"), at("LYT")]) == 3.0
    assert float(table[at("LYT"), at("BLA")]) == 1.5
    assert float(table[at("BLA"), at("PMO")]) == 0.0
    assert float(table[at("NIF"), at("BLA")]) == 0.0
    assert int((table == 3.0).sum()) == int((table == 1.5).sum()) == 8 * 8


def reference(z: np.ndarray, labels: np.ndarray, gamma: float, cost_weight: float) -> float:
    """The docstring's formula in float64, image by image."""
    targets = soft_targets(MLL, 0.1, 0.95, 0.5).numpy()
    total = 0.0
    for row, t in zip(z, labels, strict=True):
        p = np.exp(row) / np.exp(row).sum()
        q = targets[t]
        cross_entropy = -(q * np.log(p)).sum()
        distance = np.sqrt(((q - p) ** 2).sum() / 2)
        cost = sum(
            (3.0 if MLL.classes[t].is_critical and MLL.classes[j].is_safe else 0.0) * (p[j] - q[j])
            + (1.5 if MLL.classes[t].is_safe and MLL.classes[j].is_critical else 0.0) * (p[j] - q[j])
            for j in range(21)
        )
        total += distance**gamma * cross_entropy + cost_weight * max(0.0, cost)
    return total / len(z)


@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0, 3.5])
@pytest.mark.parametrize("cost_weight", [0.0, 0.2, 5.0])
def test_value_follows_the_formula(gamma: float, cost_weight: float) -> None:
    z, labels = wide_logits(42), torch.arange(42) % 21
    loss = HierarchicalFocal(Options(gamma=gamma, smoothing=0.1, cost_weight=cost_weight), MLL, ONES)
    expected = reference(z.numpy(), labels.numpy(), gamma, cost_weight)
    assert float(loss(z, labels)) == pytest.approx(expected, rel=1e-5)


def test_gamma_zero_is_the_soft_cross_entropy_exactly() -> None:
    z, labels = wide_logits(21), torch.arange(21)
    soft = soft_targets(MLL, 0.1, 0.95, 0.5)[labels]
    expected = torch.nn.functional.cross_entropy(z, soft)
    value = HierarchicalFocal(Options(gamma=0.0, smoothing=0.1, cost_weight=0.0), MLL, ONES)(z, labels)
    assert float(value) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_without_smoothing_two_classes_give_the_focal_loss(gamma: float) -> None:
    two = MLL.subset(["BLA", "LYT"])
    z, labels = wide_logits(21).float()[:, :2], torch.arange(21) % 2
    plain = HierarchicalFocal(Options(gamma=gamma, smoothing=0.0, cost_weight=0.0), two, [1, 1])
    focal = Focal(FocalOptions(gamma=gamma), [1, 1])
    torch.testing.assert_close(plain(z, labels), focal(z, labels), rtol=1e-4, atol=1e-7)


def test_without_smoothing_the_factor_is_at_most_the_focal_one_and_not_much_less() -> None:
    z, labels = wide_logits(21).float(), torch.arange(21)
    plain = HierarchicalFocal(Options(gamma=1.0, smoothing=0.0, cost_weight=0.0), MLL, ONES)
    focal = Focal(FocalOptions(gamma=1.0), ONES)
    for i in range(21):
        ratio = float(plain(z[i : i + 1], labels[i : i + 1]) / focal(z[i : i + 1], labels[i : i + 1]))
        assert 0.707 <= ratio <= 1.0001


def test_without_smoothing_the_cost_is_the_expected_cost() -> None:
    z, labels = wide_logits(21), torch.arange(21)
    p = torch.softmax(z, dim=1)
    expected = (mistake_costs(MLL, 3.0, 1.5)[labels] * p).sum(dim=1).mean()
    with_cost, without = (
        HierarchicalFocal(Options(smoothing=0.0, cost_weight=c), MLL, ONES)(z, labels) for c in (1.0, 0.0)
    )
    assert float(with_cost - without) == pytest.approx(float(expected), rel=1e-5)


def minimise(loss: torch.nn.Module, label: int, start: torch.Tensor) -> np.ndarray:
    z = start.clone().requires_grad_()
    optimiser = torch.optim.LBFGS(
        [z], max_iter=300, tolerance_grad=1e-9, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        value = loss(z, torch.tensor([label]))
        value.backward()
        return value

    for _ in range(3):
        optimiser.step(closure)
    return torch.softmax(z.detach(), dim=1)[0].numpy()


@pytest.mark.parametrize("code", ["BLA", "NGS", "EBO", "MON", "LYI"])
@pytest.mark.parametrize("start", ["even", "confident", "wrong"])
@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_the_minimum_is_the_smoothed_target(code: str, start: str, gamma: float) -> None:
    """Numerical minimisation over the logits from three sides, without the cost (an edge at the target)."""
    label = MLL.index(code)
    logits = torch.zeros(1, 21)
    if start == "confident":
        logits[0, label] = 6.0
    if start == "wrong":
        logits[0, MLL.index("LYT")] = 3.0
    found = minimise(
        HierarchicalFocal(Options(gamma=gamma, smoothing=0.1, cost_weight=0.0), MLL, ONES), label, logits
    )
    target = soft_targets(MLL, 0.1, 0.95, 0.5)[label].numpy()
    np.testing.assert_allclose(found, target, rtol=0, atol=2e-3)


@pytest.mark.parametrize("code", ["BLA", "LYT"])
@pytest.mark.parametrize("options", [Options(), Options(gamma=2.0, smoothing=0.1)], ids=["default", "focal"])
def test_the_default_cost_does_not_move_the_minimum(code: str, options: Options) -> None:
    """By steps that shrink, as an optimiser that can pass an edge takes them."""
    label = MLL.index(code)
    loss = HierarchicalFocal(options, MLL, ONES)
    z = torch.zeros(1, 21, requires_grad=True)
    optimiser = torch.optim.Adam([z], lr=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 1500)
    for _ in range(1500):
        optimiser.zero_grad()
        loss(z, torch.tensor([label])).backward()
        optimiser.step()
        schedule.step()
    found = torch.softmax(z.detach(), dim=1)[0]
    target = soft_targets(MLL, options.smoothing, 0.95, 0.5)[label].float()
    assert float((found - target).abs().max()) < 0.015
    assert float(loss(target.log()[None], torch.tensor([label]))) < float(
        loss(z.detach(), torch.tensor([label]))
    )


@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_the_loss_rises_on_every_line_away_from_the_target(gamma: float) -> None:
    """What the proof says, on 200 lines to the corners, to even odds and to points inside."""
    options = Options(gamma=gamma)
    loss = HierarchicalFocal(options, MLL, ONES)
    targets = soft_targets(MLL, options.smoothing, 0.95, 0.5)
    inside = torch.softmax(wide_logits(200), dim=1)
    ends = torch.cat([inside, torch.eye(21, dtype=torch.float64) * 0.999 + 0.001 / 21])
    for label in (MLL.index("BLA"), MLL.index("LYT"), MLL.index("NIF")):
        q = targets[label]
        for end in ends:
            steps = torch.linspace(0.05, 1.0, 20, dtype=torch.float64)[:, None]
            points = (q + steps * (end - q)).log()
            values = [float(loss(point[None], torch.tensor([label]))) for point in points]
            assert all(later >= earlier - 1e-6 for earlier, later in itertools.pairwise(values))


def test_the_penalty_has_a_gradient_before_the_prediction_flips() -> None:
    """A blast at p = .6 with .3 on lymphocyte: still right, yet the penalty pushes the lymphocyte down."""
    blast, lymphocyte = MLL.index("BLA"), MLL.index("LYT")
    p = torch.full((1, 21), 0.1 / 19)
    p[0, blast], p[0, lymphocyte] = 0.6, 0.3
    slopes = []
    for weight in (0.0, 1.0):
        z = p.log().requires_grad_()
        HierarchicalFocal(Options(cost_weight=weight), MLL, ONES)(z, torch.tensor([blast])).backward()
        assert z.grad is not None
        slopes.append(z.grad[0])
    extra = slopes[1] - slopes[0]
    # d/dz_j sum_i C_i p_i = p_j (C_j - sum_i C_i p_i), with C = 3 on the eight safe classes.
    expected_cost = 3 * (0.3 + 7 * 0.1 / 19)
    assert float(extra[lymphocyte]) == pytest.approx(0.3 * (3 - expected_cost), rel=1e-4)
    assert float(extra[blast]) == pytest.approx(-0.6 * expected_cost, rel=1e-4)


def test_how_far_the_default_costs_move_a_coin_toss() -> None:
    """Half of the images critical, half safe, no smoothing, gamma 0: the docstring says .537 for critical.

    Independent: minimise -log(p)/2 - log(1-p)/2 + .2 (3 (1-p)/2 + 1.5 p/2) on a grid.
    """
    p = np.linspace(0.4, 0.7, 300001)
    value = -(np.log(p) + np.log(1 - p)) / 2 + 0.2 * (3 * (1 - p) / 2 + 1.5 * p / 2)
    assert p[value.argmin()] == pytest.approx(0.537, abs=5e-4)
    two = MLL.subset(["BLA", "LYT"])
    loss = HierarchicalFocal(Options(smoothing=0.0, gamma=0.0), two, [1, 1])
    z = torch.zeros(1, 2, requires_grad=True)
    optimiser = torch.optim.SGD([z], lr=0.5)
    for _ in range(400):
        optimiser.zero_grad()
        loss(z.expand(2, 2), torch.tensor([0, 1])).backward()
        optimiser.step()
    assert float(torch.softmax(z.detach(), dim=1)[0, 0]) == pytest.approx(0.537, abs=1e-3)
