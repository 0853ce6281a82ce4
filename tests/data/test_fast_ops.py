"""Cheap operations do to a picture what albumentations' own do: equal pixels, or an equal distribution of them.

The plain operation is the reference everywhere, or the law it follows, worked out here.
"""

from __future__ import annotations

import colorsys
import math
import os
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cytodino_hf.data.fast_ops import (
    CLAHE,
    GaussNoise,
    ISONoise,
    OneOf,
    Plain,
    RGBShift,
    Sometimes,
    add_iso_noise,
    add_normal_noise,
    equalize_lightness,
    shift_channels,
)

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")


def cell(side: int = 128, seed: int = 0, brightness: float = 1.0) -> np.ndarray:
    """Purple nucleus and blue cytoplasm on a light ground with a red cell, grain over all."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] / side - 0.5
    image = np.empty((side, side, 3))
    image[:] = (232, 222, 236)
    image[np.hypot(x - 0.3, y + 0.3) < 0.22] = (205, 150, 165)
    image[np.hypot(x, y) < 0.33] = (150, 150, 205)
    image[np.hypot(x + 0.04, y) < 0.21] = (95, 40, 130)
    return np.clip(brightness * image + rng.normal(0, 9, image.shape), 0, 255).astype(np.uint8)


def colours() -> np.ndarray:
    """Every corner of the colour cube and much between."""
    levels = np.array([0, 1, 30, 90, 127, 128, 200, 254, 255], np.uint8)
    return np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(27, 27, 3)


PICTURES = {"cell": cell(), "dark": cell(seed=1, brightness=0.35), "white": cell(seed=2, brightness=1.12)}


def statistics(noise: np.ndarray) -> dict[str, np.ndarray]:
    """Mean, spread, correlation of the channels and shares of the spectrum's power in eight rings of a change."""
    flat = noise.reshape(-1, 3)
    power = np.zeros(noise.shape[:2])
    for channel in range(3):
        centred = noise[..., channel] - noise[..., channel].mean()
        power += np.abs(np.fft.fft2(centred)) ** 2
    frequency = np.hypot(*np.meshgrid(*(np.fft.fftfreq(side) for side in noise.shape[:2]), indexing="ij"))
    rings = np.minimum((frequency * 16).astype(int), 7)
    return {
        "mean": flat.mean(axis=0),
        "spread": flat.std(axis=0),
        "correlation": np.corrcoef(flat.T)[np.triu_indices(3, 1)],
        "spectrum": np.bincount(rings.ravel(), power.ravel(), 8) / power.sum(),
    }


def agree(ours: list[np.ndarray], plain: list[np.ndarray], floor: float) -> None:
    """Means of two samples of equal length within five standard errors, or within `floor` of the value."""
    a, b = np.array(ours), np.array(plain)
    error = np.sqrt((a.var(axis=0) + b.var(axis=0)) / len(a))
    assert (np.abs(a.mean(axis=0) - b.mean(axis=0)) <= 5 * error + floor * np.abs(b.mean(axis=0))).all(), (
        a.mean(axis=0),
        b.mean(axis=0),
    )


def compare(image: np.ndarray, ours: list[np.ndarray], plain: list[np.ndarray]) -> None:
    """All statistics of the change of a picture, and of its tails: pixels at the ends of the range and corners."""
    changes = [[picture.astype(float) - image for picture in pictures] for pictures in (ours, plain)]
    found = [[statistics(change) for change in side] for side in changes]
    for name in found[0][0]:
        agree([s[name] for s in found[0]], [s[name] for s in found[1]], floor=0.005)
    for tail in (
        lambda picture, change: (picture == 255).mean(axis=(0, 1)),
        lambda picture, change: (picture == 0).mean(axis=(0, 1)),
        lambda picture, change: (change != 0).any(axis=-1).mean(keepdims=True),
        lambda picture, change: np.quantile(change, [0.001, 0.01, 0.99, 0.999]),
        lambda picture, change: picture[[0, 0, -1, -1], [0, -1, 0, -1]].mean(keepdims=True),
    ):
        sides = [
            [tail(picture, change) for picture, change in zip(pictures, side, strict=True)]
            for pictures, side in zip((ours, plain), changes, strict=True)
        ]
        agree(sides[0], sides[1], floor=0.01)


def plain_iso_noise(image: np.ndarray, intensity: float, draws: np.random.Generator) -> np.ndarray:
    from albumentations.augmentations.pixel import functional

    return functional.iso_noise(image, 0.05, intensity, draws)


@pytest.mark.parametrize("name", list(PICTURES))
@pytest.mark.parametrize("intensity", [0.1, 0.3, 0.5])
def test_iso_noise_has_the_distribution_of_the_plain_one(name: str, intensity: float) -> None:
    image, count = PICTURES[name], 30
    draws = np.random.default_rng(1)
    ours = [add_iso_noise(image, intensity, draws) for _ in range(count)]
    plain = [plain_iso_noise(image, intensity, draws) for _ in range(count)]
    compare(image, ours, plain)


def test_iso_noise_counts_dots_by_poisson() -> None:
    """On two greys a pixel tells its count: grey g becomes g + k x intensity x (255 - g)."""
    image = np.full((400, 400, 3), 20, np.uint8)
    image[:200] = 80
    intensity, spread = 0.5, 30 / 255
    noisy = add_iso_noise(image, intensity, np.random.default_rng(3))
    counts = np.rint((noisy[..., 0].astype(float) - image[..., 0]) / (intensity * (255 - image[..., 0])))
    mean = intensity * spread
    for k in (0, 1, 2):
        share = math.exp(-mean) * mean**k / math.factorial(k)
        expected = share * counts.size
        assert abs((counts == k).sum() - expected) < 5 * math.sqrt(expected)
    assert (counts >= 2).sum() > 100  # two dots on one pixel do come
    # Where they fall is even: rows and columns of an 8 x 8 board hold about the same number.
    board = (counts > 0)[:400].reshape(8, 50, 8, 50).sum(axis=(1, 3))
    assert np.abs(board - board.mean()).max() < 5 * math.sqrt(board.mean())


def test_a_dot_keeps_hue_and_saturation() -> None:
    """The standard library's HLS, colour by colour."""
    image = np.tile(colours(), (12, 12, 1))
    intensity = 0.4
    noisy = add_iso_noise(image, intensity, np.random.default_rng(4))
    changed = np.argwhere((noisy != image).any(axis=-1))
    assert len(changed) > 1000
    right = 0
    for row, column in changed:
        hue, light, saturation = colorsys.rgb_to_hls(*(image[row, column] / 255))
        wanted = [
            255 * np.array(colorsys.hls_to_rgb(hue, min(1, light + k * intensity * (1 - light)), saturation))
            for k in (1, 2, 3, 4)
        ]
        right += min(np.abs(noisy[row, column] - w).max() for w in wanted) <= 0.51
    assert right == len(changed)


def test_the_plain_turn_of_hue_does_not_survive_rounding() -> None:
    """Where no dot falls albumentations gives the colour back, at its strongest: so nothing is lost without it."""
    image = np.tile(colours(), (4, 4, 1))
    from albumentations.augmentations.pixel import functional

    class Dotless:
        """A generator whose Poisson numbers are all zero."""

        def __init__(self) -> None:
            self.normal = np.random.default_rng(0).normal

        def poisson(self, mean: float, size: tuple[int, int]) -> np.ndarray:
            return np.zeros(size)

    generator: Any = Dotless()
    turned = functional.iso_noise(image, 0.05, 0.5, generator).astype(int)
    assert np.abs(turned - image).max() <= 1
    assert (turned != image).mean() < 1e-3


@pytest.mark.parametrize("name", [*PICTURES, "colours"])
@pytest.mark.parametrize("limit", [1.0, 1.37, 2.0])
def test_clahe_gives_the_plain_pixels(name: str, limit: float) -> None:
    import albumentations as A

    image = np.tile(colours(), (3, 3, 1)) if name == "colours" else PICTURES[name]
    wanted = A.CLAHE(clip_limit=(limit, limit), p=1.0)(image=image)["image"]
    np.testing.assert_array_equal(equalize_lightness(image, limit), wanted)


def test_a_shift_of_channels_is_the_plain_one() -> None:
    import albumentations as A

    image = np.tile(colours(), (2, 2, 1))
    # Within 1 the library takes a limit for a share of the range.
    for shifts in ((14.6, -3.2, 0.0), (-14.9, 14.9, 7.5), (2.5, -2.5, 1.9)):
        wanted = A.RGBShift(*((value, value) for value in shifts), p=1.0)(image=image)["image"]
        np.testing.assert_array_equal(shift_channels(image, np.array(shifts)), wanted)


def test_shifts_are_drawn_as_the_plain_ones() -> None:
    import albumentations as A

    image, draws = np.full((8, 8, 3), 128, np.uint8), np.random.default_rng(6)
    plain = Plain(A.RGBShift(15, 15, 15, p=1.0))
    ours = np.array([RGBShift(15)(image, draws)[0, 0] for _ in range(800)], float) - 128
    theirs = np.array([plain(image, draws)[0, 0] for _ in range(800)], float) - 128
    for shifts in (ours, theirs):
        # Whole numbers from -14 to 14, of which 0 is twice as likely: from -1 to 1 all is cut to it.
        assert np.abs(shifts).max() == 14
        assert np.abs(shifts.mean(axis=0)).max() < 5 * 8.2 / 800**0.5
        spread = math.sqrt(2 * sum(k * k for k in range(1, 15)) / 30)
        np.testing.assert_allclose(shifts.std(axis=0), spread, rtol=0.08)
        assert np.abs(np.corrcoef(shifts.T) - np.eye(3)).max() < 0.18


@pytest.mark.parametrize("name", list(PICTURES))
@pytest.mark.parametrize("std", [0.005, 0.02])
def test_normal_noise_has_the_distribution_of_the_plain_one(name: str, std: float) -> None:
    import albumentations as A

    image, draws, count = PICTURES[name], np.random.default_rng(7), 20
    plain = Plain(A.GaussNoise(std_range=(std, std), p=1.0))
    compare(
        image,
        [add_normal_noise(image, 255 * std, draws) for _ in range(count)],
        [plain(image, draws) for _ in range(count)],
    )


@pytest.mark.parametrize("side", [64, 256, 700])
def test_normal_noise_is_normal_at_every_size(side: int) -> None:
    """Standard deviation, tails and independence of neighbours; 700 pixels are drawn, not read from the bank."""
    grey = np.full((side, side, 3), 128, np.uint8)
    draws = np.random.default_rng(8)
    noise = add_normal_noise(grey, 12.0, draws).astype(float) - 128
    other = add_normal_noise(grey, 12.0, draws).astype(float) - 128
    few = 6 / math.sqrt(noise.size)
    # Cut towards 0: E[floor(|z|)^2] of z with deviation 12, summed level by level.
    levels = np.arange(1, 100)
    beyond = np.array([math.erfc(level / 12 / math.sqrt(2)) for level in levels])
    spread = math.sqrt(((2 * levels - 1) * beyond).sum())
    assert noise.std() == pytest.approx(spread, rel=few)
    for level in (1, 12, 24, 36, 48):
        share = math.erfc(level / 12 / math.sqrt(2))
        assert abs(np.mean(np.abs(noise) >= level) - share) < 6 * math.sqrt(share / noise.size)
    assert abs(np.mean(noise)) < 12 * few
    for shifted in (noise[:, 1:] * noise[:, :-1], noise[1:] * noise[:-1], noise[..., :2] * noise[..., 1:]):
        assert abs(shifted.mean()) / 144 < few * 1.3
    assert abs(np.mean(noise * other)) / 144 < few * 1.3


OPERATIONS = {
    "iso": ISONoise((0.1, 0.5)),
    "shift": RGBShift(15),
    "normal": GaussNoise((0.005, 0.02)),
    "clahe": CLAHE((1.0, 2.0)),
}


@pytest.mark.parametrize("name", list(OPERATIONS))
def test_the_generator_alone_decides_and_the_picture_given_stays(name: str) -> None:
    image = cell(160)  # smaller, and the clip limits of CLAHE round to one
    before = image.copy()
    image.flags.writeable = False
    operation = OPERATIONS[name]
    first = operation(image, np.random.default_rng(5))
    np.random.seed(1)
    random.seed(1)
    np.testing.assert_array_equal(operation(image, np.random.default_rng(5)), first)
    assert len({operation(image, np.random.default_rng(seed)).tobytes() for seed in range(12)}) > 1
    assert (first.dtype, first.shape) == (np.uint8, image.shape)
    np.testing.assert_array_equal(image, before)


def test_chances_are_kept() -> None:
    image, draws = np.zeros((1, 1, 3), np.uint8), np.random.default_rng(9)
    one, two, three = ((lambda picture, draws, level=level: picture + np.uint8(level)) for level in (1, 2, 3))
    operation = Sometimes(0.3, OneOf([one, two, three]))
    seen = Counter(int(operation(image, draws)[0, 0, 0]) for _ in range(4000))
    assert abs(seen[0] - 2800) < 5 * 29
    assert all(abs(seen[level] - 400) < 5 * 19 for level in (1, 2, 3))


def test_plain_operations_draw_from_the_generator_given() -> None:
    import albumentations as A

    image, operation = cell(64), Plain(A.ImageCompression(quality_range=(9, 100), p=1.0))
    first = operation(image, np.random.default_rng(2))
    random.seed(0)
    np.testing.assert_array_equal(operation(image, np.random.default_rng(2)), first)
    assert len({operation(image, np.random.default_rng(seed)).tobytes() for seed in range(20)}) > 10


@pytest.mark.slow
def test_costly_operations_cost_a_fraction_of_the_plain_ones() -> None:
    """CPU time on one thread, in turns; measured 8, 15 and 3 times less on an idle core."""
    import albumentations as A
    import cv2

    from cytodino_hf.data.geometry import Pose, pose_after_resize

    image, draws = cell(256), np.random.default_rng(0)
    turn = A.Rotate(limit=(37, 37), p=1.0)
    pairs: dict[str, tuple[Any, Any, float]] = {
        "iso": (
            A.ISONoise(intensity=(0.3, 0.3), p=1.0),
            lambda picture: add_iso_noise(picture, 0.3, draws),
            3.0,
        ),
        "normal": (
            A.GaussNoise(std_range=(0.01, 0.01), p=1.0),
            lambda picture: add_normal_noise(picture, 2.5, draws),
            3.0,
        ),
        "turn": (
            turn,
            lambda picture: pose_after_resize(
                picture, Pose(turn_degrees=37.0), lambda p: p, size_px=256, crop_px=None
            ),
            1.5,
        ),
    }
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        for name, (plain, ours, least) in pairs.items():
            seconds: dict[str, list[float]] = {"plain": [], "ours": []}
            for _ in range(9):
                for who, call in (
                    ("plain", lambda p=plain: p(image=image)),
                    ("ours", lambda o=ours: o(image)),
                ):
                    started = time.process_time()
                    for _ in range(20):
                        call()
                    seconds[who].append(time.process_time() - started)
            ratio = float(np.median(seconds["plain"]) / np.median(seconds["ours"]))
            assert ratio > least, f"{name}: {ratio:.1f}"
    finally:
        cv2.setNumThreads(threads)


@pytest.mark.real_data
def test_iso_noise_has_the_distribution_of_the_plain_one_on_real_cells(real_data: Path) -> None:
    from cytodino_hf.data.images import read_rgb

    draws = np.random.default_rng(10)
    for path in sorted((real_data / "mll7").rglob("*.jpg"))[::350]:
        image = read_rgb(path)
        ours = [add_iso_noise(image, 0.3, draws) for _ in range(12)]
        compare(image, ours, [plain_iso_noise(image, 0.3, draws) for _ in range(12)])
