"""One battery for every loss of the table, in the 21 classes and in subsets of them."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from cytodino_hf.losses import LOSSES, LossOptions, build_loss
from cytodino_hf.taxonomy import MLL, MLL_PUBLISHED, CellClass, Taxonomy

TAXONOMIES = {
    "mll": MLL,
    "mll_published": MLL_PUBLISHED,
    "seven": MLL.subset(["BLA", "EOS", "LYT", "MON", "NGS", "NIF", "PMO"]),
    "two_of_one_lineage": MLL.subset(["PEB", "EBO"]),
    "two_of_two_lineages": MLL.subset(["BLA", "LYT"]),
    "no_order_no_roles": Taxonomy("plain", tuple(CellClass(c, c, c) for c in "abc")),
}
VARIANTS = {
    "defaults": {},
    "balanced": {"class_weights": "balanced"},
    "unweighted": {"class_weights": "none"},
    "gamma_0": {"gamma": 0.0},
    "gamma_half": {"gamma": 0.5},
    "no_smoothing": {"smoothing": 0.0},
}
CASES = [
    (name, taxonomy, variant)
    for name in LOSSES
    for taxonomy in TAXONOMIES
    for variant, values in VARIANTS.items()
    if set(values) <= set(LOSSES[name].options.model_fields)
]


def make_loss(name: str, taxonomy: str = "mll", variant: str = "defaults") -> torch.nn.Module:
    counts = [3 + 7 * i for i in range(len(TAXONOMIES[taxonomy]))]
    return build_loss(name, LOSSES[name].options(**VARIANTS[variant]), TAXONOMIES[taxonomy], counts)


def batch(classes: int, images: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and labels by formula, so that they do not depend on a random generator."""
    grid = torch.arange(images * classes, dtype=torch.float64).reshape(images, classes)
    return (3 * torch.sin(1.7 * grid + 0.3)).float(), (torch.arange(images) * 5 + 2) % classes


def gradient(loss: torch.nn.Module, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    leaf = logits.clone().requires_grad_()
    loss(leaf, labels).backward()
    assert leaf.grad is not None
    return leaf.grad


@pytest.mark.parametrize(("name", "taxonomy", "variant"), CASES)
def test_loss_is_a_finite_float32_scalar_with_gradient(name: str, taxonomy: str, variant: str) -> None:
    loss = make_loss(name, taxonomy, variant)
    logits, labels = batch(len(TAXONOMIES[taxonomy]))
    value = loss(logits, labels)
    assert value.shape == ()
    assert value.dtype == torch.float32
    assert torch.isfinite(value)
    assert value >= 0
    slope = gradient(loss, logits, labels)
    assert torch.isfinite(slope).all()
    assert (slope.abs().sum(dim=1) > 0).all()
    assert not list(loss.parameters())


@pytest.mark.parametrize(("name", "taxonomy", "variant"), CASES)
def test_extreme_logits_give_no_nan(name: str, taxonomy: str, variant: str) -> None:
    loss = make_loss(name, taxonomy, variant)
    classes = len(TAXONOMIES[taxonomy])
    labels = torch.arange(classes)
    signs = 2 * torch.eye(classes) - 1
    for logits in (100 * signs, -100 * signs, 100 * signs.roll(1, 0), torch.zeros(classes, classes)):
        assert torch.isfinite(loss(logits, labels))
        assert torch.isfinite(gradient(loss, logits, labels)).all()


@pytest.mark.parametrize(("name", "taxonomy", "variant"), CASES)
def test_right_predictions_cost_less_than_wrong_ones(name: str, taxonomy: str, variant: str) -> None:
    loss = make_loss(name, taxonomy, variant)
    classes = len(TAXONOMIES[taxonomy])
    labels = torch.arange(classes)
    right = 4 * torch.eye(classes)
    assert loss(right, labels) < loss(torch.zeros(classes, classes), labels) < loss(right.roll(1, 1), labels)


@pytest.mark.parametrize(("name", "taxonomy", "variant"), CASES)
def test_eight_images_equal_four_steps_of_two(name: str, taxonomy: str, variant: str) -> None:
    """The trainer averages over accumulation steps, so the gradient of 4 x 2 must be that of 1 x 8."""
    loss = make_loss(name, taxonomy, variant)
    logits, labels = batch(len(TAXONOMIES[taxonomy]), images=8)
    whole = gradient(loss, logits, labels)
    parts = [gradient(loss, logits[i : i + 2], labels[i : i + 2]) / 4 for i in range(0, 8, 2)]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", LOSSES)
def test_order_of_the_batch_does_not_matter(name: str) -> None:
    loss = make_loss(name)
    logits, labels = batch(21)
    order = torch.tensor([5, 2, 7, 0, 1, 6, 3, 4])
    torch.testing.assert_close(loss(logits[order], labels[order]), loss(logits, labels))
    torch.testing.assert_close(
        gradient(loss, logits[order], labels[order]), gradient(loss, logits, labels)[order]
    )


@pytest.mark.parametrize("name", LOSSES)
def test_loss_of_a_batch_is_the_mean_of_single_images(name: str) -> None:
    loss = make_loss(name)
    logits, labels = batch(21)
    single = torch.stack([loss(logits[i : i + 1], labels[i : i + 1]) for i in range(8)])
    torch.testing.assert_close(loss(logits, labels), single.mean())


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_computed_in_float32(name: str, dtype: torch.dtype) -> None:
    loss = make_loss(name)
    logits, labels = batch(21)
    value = loss(logits.to(dtype), labels)
    assert value.dtype == torch.float32
    assert torch.equal(value, loss(logits.to(dtype).float(), labels))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(loss(logits.to(dtype), labels), value)


@pytest.mark.parametrize("name", LOSSES)
def test_a_constant_added_to_the_logits_changes_nothing(name: str) -> None:
    loss = make_loss(name)
    logits, labels = batch(21)
    torch.testing.assert_close(loss(logits + 50, labels), loss(logits, labels), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_agrees_with_finite_differences(name: str) -> None:
    loss = make_loss(name)
    logits, labels = batch(21, images=2)
    slope = gradient(loss, logits, labels)
    for image, index in ((0, 2), (0, 7), (1, 20), (1, int(labels[1]))):
        step = torch.zeros_like(logits)
        step[image, index] = 0.02
        numeric = (loss(logits + step, labels) - loss(logits - step, labels)) / 0.04
        assert float(numeric) == pytest.approx(float(slope[image, index]), rel=2e-2, abs=2e-4)


@pytest.mark.parametrize("name", LOSSES)
def test_a_class_without_training_images_has_no_weight_unless_all_weights_are_one(name: str) -> None:
    counts = [0, 10, 20]
    taxonomy = TAXONOMIES["no_order_no_roles"]
    logits = torch.tensor([[0.3, -0.2, 0.9]])
    for kind, expected_zero in (("balanced", True), ("sqrt_balanced", True), ("none", False)):
        loss = build_loss(name, LOSSES[name].options(class_weights=kind), taxonomy, counts)
        assert (float(loss(logits, torch.tensor([0]))) == 0.0) is expected_zero
        assert float(loss(logits, torch.tensor([1]))) > 0.0


@pytest.mark.parametrize("name", LOSSES)
def test_every_option_is_explained_and_valid_by_default(name: str) -> None:
    options = LOSSES[name].options
    assert options().model_dump() == options.model_validate(options().model_dump()).model_dump()
    assert "name" not in options.model_fields
    assert LOSSES[name].summary.endswith(".")
    assert all((field.description or "").endswith(".") for field in options.model_fields.values())


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(
    "bad",
    [
        {"smoothing": 1.2},
        {"smoothing": -0.1},
        {"gamma": -1},
        {"gamma": float("nan")},
        {"gamma": float("inf")},
        {"gamma": "2"},
        {"gamma": True},
        {"lineage_share": 1.5},
        {"neighbour_share": -0.5},
        {"class_weights": "Balanced"},
        {"class_weights": None},
        {"gama": 2.0},
    ],
    ids=str,
)
def test_bad_options_are_refused(name: str, bad: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        LOSSES[name].options(**bad)


def test_whole_numbers_are_numbers() -> None:
    assert LOSSES["focal"].options(gamma=2).gamma == 2.0


def test_build_names_what_does_not_fit() -> None:
    cross_entropy = LOSSES["cross_entropy"].options()
    with pytest.raises(ValueError, match=r"unknown loss 'dice' \(known: cross_entropy, focal"):
        build_loss("dice", cross_entropy, MLL, [1] * 21)
    with pytest.raises(ValueError, match="20 class counts for the 21 classes"):
        build_loss("cross_entropy", cross_entropy, MLL, [1] * 20)
    with pytest.raises(ValueError, match="loss 'focal' takes"):
        build_loss("focal", cross_entropy, MLL, [1] * 21)
    with pytest.raises(ValueError, match="at least one image"):
        build_loss("cross_entropy", cross_entropy, MLL, [0] * 21)


def test_a_recipe_section_built_on_the_options_is_accepted() -> None:
    class Section(LOSSES["focal"].options):  # type: ignore[name-defined,misc]
        name: str = "focal"

    section: LossOptions = Section(gamma=0.0)
    logits, labels = batch(21)
    value = build_loss("focal", section, MLL, [1] * 21)(logits, labels)
    torch.testing.assert_close(value, torch.nn.functional.cross_entropy(logits, labels))


def test_module_moves_and_pickles_with_its_tables() -> None:
    import pickle

    logits, labels = batch(21)
    for name in LOSSES:
        loss = make_loss(name)
        assert {buffer.device.type for buffer in loss.to("meta").buffers()} == {"meta"}
        again = pickle.loads(pickle.dumps(make_loss(name)))
        assert torch.equal(again(logits, labels), make_loss(name)(logits, labels))


@pytest.mark.slow
def test_importing_the_losses_loads_torch_and_pydantic_only() -> None:
    code = (
        "import sys, cytodino_hf.losses; "
        "print([m for m in ('transformers','datasets','albumentations','sklearn','peft','matplotlib') "
        "if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_labels_out_of_range_stop() -> None:
    with pytest.raises((IndexError, RuntimeError)):
        make_loss("cross_entropy")(torch.zeros(1, 21), torch.tensor([21]))


def test_all_losses_agree_with_cross_entropy_when_everything_is_switched_off() -> None:
    """Independent value: float64 NumPy, -log softmax of the label."""
    logits, labels = batch(21)
    z = logits.double().numpy()
    log_p = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
    expected = -log_p[np.arange(8), labels.numpy()].mean()
    off = {
        "cross_entropy": {},
        "focal": {"gamma": 0.0},
        "hierarchical_focal": {"gamma": 0.0, "smoothing": 0.0, "cost_weight": 0.0},
        "hierarchical_focal_published": {
            "class_weights": "none",
            "gamma": 0.0,
            "smoothing": 0.0,
            "critical_to_safe_factor": 1.0,
            "safe_to_critical_factor": 1.0,
        },
    }
    assert set(off) == set(LOSSES)
    for name, values in off.items():
        loss = build_loss(name, LOSSES[name].options(**values), MLL, [1] * 21)
        assert float(loss(logits, labels)) == pytest.approx(expected, rel=1e-6)
