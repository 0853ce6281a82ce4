"""Stain: density, Macenko's estimate on mixtures whose dyes are known, and the constant on real cells."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from cytodino_hf.data.images import read_rgb
from cytodino_hf.data.stain import MAY_GRUNWALD_GIEMSA, estimate_stain_matrix, jitter_stain, optical_density
from cytodino_hf.errors import DataError

EVERY_LEVEL = np.stack(np.meshgrid(*[np.arange(0, 256, 5, dtype=np.uint8)] * 3), axis=-1).reshape(-1, 52, 3)


def degrees(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.degrees(np.arccos(np.clip(one @ other, -1.0, 1.0))))


def mixture(dyes: np.ndarray, seed: int) -> np.ndarray:
    """An image of two dyes in random amounts, by the law of absorption."""
    amounts = np.random.default_rng(seed).exponential(0.5, size=(80, 80, 2))
    amounts[:40, :40, 0] = amounts[40:, 40:, 1] = 0.0
    return np.clip(256 * 10 ** -(amounts @ dyes) - 1, 0, 255).round().astype(np.uint8)


def test_density_is_minus_log10_of_transmission() -> None:
    image = np.array([[[0, 1, 127], [254, 255, 25]]], dtype=np.uint8)
    np.testing.assert_allclose(
        optical_density(image), -np.log10((image.astype(np.float64) + 1) / 256), rtol=1e-5, atol=1e-7
    )


def test_the_constant_has_unit_rows_and_a_perpendicular_residual() -> None:
    np.testing.assert_allclose(np.linalg.norm(MAY_GRUNWALD_GIEMSA, axis=1), 1.0, atol=1e-4)
    assert abs(MAY_GRUNWALD_GIEMSA[2] @ MAY_GRUNWALD_GIEMSA[0]) < 1e-3
    assert abs(MAY_GRUNWALD_GIEMSA[2] @ MAY_GRUNWALD_GIEMSA[1]) < 1e-3


def test_estimate_finds_the_dyes_of_a_mixture() -> None:
    dyes = np.array([[0.75, 0.55, 0.37], [0.35, 0.88, 0.32]])
    dyes /= np.linalg.norm(dyes, axis=1, keepdims=True)
    found = estimate_stain_matrix([mixture(dyes, seed) for seed in range(4)])
    assert degrees(found[0], dyes[0]) < 3
    assert degrees(found[1], dyes[1]) < 3
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1.0)


def test_estimate_takes_images_of_several_sizes_and_ignores_their_order() -> None:
    dyes = np.array([[0.75, 0.55, 0.37], [0.35, 0.88, 0.32]])
    images = [mixture(dyes, 0), mixture(dyes, 1)[:31, :57]]
    np.testing.assert_allclose(estimate_stain_matrix(images), estimate_stain_matrix(images[::-1]))


def test_estimate_of_blank_images_stops() -> None:
    with pytest.raises(DataError, match="only 0 stained pixels in 2 images"):
        estimate_stain_matrix([np.full((50, 50, 3), 250, np.uint8)] * 2)
    with pytest.raises(DataError, match="only 0 stained pixels in 0 images"):
        estimate_stain_matrix([])


def test_no_jitter_gives_every_colour_back() -> None:
    same = jitter_stain(EVERY_LEVEL, (1.0, 1.0, 1.0), (0.0, 0.0, 0.0))
    assert same.dtype == np.uint8
    assert int(np.abs(same.astype(int) - EVERY_LEVEL).max()) <= 1


@pytest.mark.parametrize(
    ("scales", "shifts"),
    [((1.3, 0.8, 1.1), (0.05, -0.02, 0.01)), ((0.5, 2.0, 1.0), (0, 0, 0)), ((1, 1, 1), (0.3, 0.3, -0.3))],
)
def test_jitter_scales_and_shifts_the_amounts_of_dye(
    scales: tuple[float, ...], shifts: tuple[float, ...]
) -> None:
    """Worked out step by step in float64: density, amounts, new amounts, light."""
    density = -np.log10((EVERY_LEVEL.astype(np.float64) + 1) / 256)
    amounts = density @ np.linalg.inv(MAY_GRUNWALD_GIEMSA) * scales + shifts
    expected = np.clip(256 * 10 ** -(amounts @ MAY_GRUNWALD_GIEMSA) - 1, 0, 255)
    assert np.abs(jitter_stain(EVERY_LEVEL, scales, shifts) - expected).max() <= 0.51


def test_more_purple_darkens_green_most_and_leaves_white_alone() -> None:
    image = np.array([[[120, 60, 170], [255, 255, 255]]], dtype=np.uint8)
    more = jitter_stain(image, (1.0, 1.3, 1.0), (0.0, 0.0, 0.0)).astype(int)
    assert more[0, 1].tolist() == [255, 255, 255]
    ratio = more[0, 0] / image[0, 0]
    assert ratio[1] < ratio[0] < 1
    assert ratio[1] < ratio[2]


def test_strided_images_are_taken() -> None:
    np.testing.assert_array_equal(
        jitter_stain(EVERY_LEVEL[::2, ::-1], (1.1, 0.9, 1.0), (0, 0, 0)),
        jitter_stain(np.ascontiguousarray(EVERY_LEVEL[::2, ::-1]), (1.1, 0.9, 1.0), (0, 0, 0)),
    )


@pytest.mark.real_data
def test_the_constant_is_the_estimate_on_the_training_images(real_data: Path) -> None:
    root = real_data / "mll7"
    with (root / "split.csv").open(newline="") as file:
        paths = [root / row["path"] for row in csv.DictReader(file) if row["fold"] == "train"]
    assert len(paths) == 840
    found = estimate_stain_matrix(read_rgb(path)[::4, ::4] for path in paths)
    for row, constant in zip(found, MAY_GRUNWALD_GIEMSA, strict=True):
        assert degrees(row, constant) < 1.0
    # Cells the constant never saw: the validation images.
    with (root / "split.csv").open(newline="") as file:
        others = [root / row["path"] for row in csv.DictReader(file) if row["fold"] == "validation"]
    unseen = estimate_stain_matrix(read_rgb(path)[::4, ::4] for path in others)
    assert degrees(unseen[0], MAY_GRUNWALD_GIEMSA[0]) < 8.0
    assert degrees(unseen[1], MAY_GRUNWALD_GIEMSA[1]) < 3.0
