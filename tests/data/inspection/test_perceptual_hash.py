"""The hash by an independent transform, its turned forms by turning the picture, similarity by known cases."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.fft import dctn

from cytodino_hf.data.inspection.perceptual_hash import (
    HASH_BITS,
    LEAST_DETAIL,
    SYMMETRIES,
    THUMBNAIL_PX,
    detail_patterns,
    detail_strength,
    pack_signs,
    similarities,
    thumbnail,
    turned,
    turned_hash,
    wave_signs,
)


def smooth_noise(seed: int, count: int) -> np.ndarray:
    """Blobs of a few pixels, uint8 (count, 32, 32)."""
    waves = np.random.default_rng(seed).normal(size=(count, THUMBNAIL_PX, THUMBNAIL_PX))
    waves[:, 12:], waves[:, :, 12:] = 0, 0
    pictures = dctn(waves, type=3, axes=(1, 2))
    return np.clip(128 + 40 * pictures / pictures.std(), 0, 255).astype(np.uint8)


def hashes(pictures: np.ndarray) -> np.ndarray:
    return pack_signs(np.stack([wave_signs(np.ascontiguousarray(picture)) for picture in pictures]))


def test_the_hash_holds_the_signs_of_the_slowest_waves() -> None:
    picture = smooth_noise(0, 1)[0]
    transform = dctn(picture.astype(np.float64), type=2)
    slowest = [(u, v) for u in range(11) for v in range(11) if 1 <= u + v <= 10 and (u, v) != (5, 5)]
    assert len(slowest) == HASH_BITS
    positive = sum(transform[u, v] > 0 for u, v in slowest)
    assert wave_signs(picture).sum() == positive == int(np.bitwise_count(hashes(picture[None])[0]))
    # One wave alone: its bit is set and no other one can be, and the inverted picture has it cleared.
    for u, v in ((0, 1), (3, 2), (10, 0)):
        wave = np.zeros((THUMBNAIL_PX, THUMBNAIL_PX))
        wave[u, v] = 1
        shape = dctn(wave, type=3)
        up, down = (np.clip(128 + sign * 60 * shape, 0, 255).astype(np.uint8) for sign in (1, -1))
        assert np.sum(wave_signs(up) & ~wave_signs(down)) >= 1


def test_brightness_and_contrast_change_no_sign() -> None:
    pictures = smooth_noise(1, 20).astype(np.float64)
    changed = np.clip(pictures * 0.8 + 15, 0, 255).round().astype(np.uint8)
    difference = np.bitwise_count(hashes(pictures.astype(np.uint8)) ^ hashes(changed))
    assert difference.max() <= 2  # rounding and clipping


@pytest.mark.parametrize("symmetry", SYMMETRIES)
def test_the_hash_of_a_turned_picture_needs_no_picture(symmetry: tuple[bool, bool, bool]) -> None:
    pictures = smooth_noise(2, 50)
    expected = hashes(turned(pictures, symmetry))
    # A wave that is nearly absent may change its sign by rounding.
    assert np.bitwise_count(turned_hash(hashes(pictures), symmetry) ^ expected).max() <= 1


def test_the_eight_symmetries_are_different_and_those_of_a_square() -> None:
    square = np.arange(9).reshape(1, 3, 3)
    forms = {turned(square, symmetry).tobytes() for symmetry in SYMMETRIES}
    turns = {np.rot90(square[0], k).tobytes() for k in range(4)}
    assert len(forms) == 8
    assert turns < forms


def test_similarity_of_known_cases() -> None:
    patterns = detail_patterns(smooth_noise(3, 40))
    first, second = patterns[:20], patterns[20:]
    assert np.allclose(similarities(first, first), 1)
    assert np.allclose(similarities(first, 3 * first + 0.1), 1)
    assert similarities(first, -first).tolist() == [0] * 20
    assert similarities(first, second).max() < 0.6
    assert similarities(first, np.zeros_like(first)).max() < 1e-3
    # Half a pixel to the right: the mean of the picture and its neighbour.
    shifted = (first + np.roll(first, 1, axis=2)) / 2
    assert similarities(first, shifted).min() > 0.95


def test_detail_of_an_empty_field_is_nothing() -> None:
    ramp = np.add.outer(np.arange(250), np.arange(250))[..., None].repeat(3, 2) / 4
    assert detail_strength(thumbnail(np.full((250, 250, 3), 231, np.uint8))) < 1e-3
    assert detail_strength(thumbnail(ramp.astype(np.uint8))) < LEAST_DETAIL
    assert detail_strength(smooth_noise(0, 1)[0]) > 2


def test_a_thumbnail_is_the_mean_of_its_pixels() -> None:
    image = np.random.default_rng(0).integers(0, 256, (96, 64, 3)).astype(np.uint8)
    grey = image @ np.array([0.299, 0.587, 0.114])
    expected = grey.reshape(32, 3, 32, 2).mean(axis=(1, 3))
    assert np.abs(thumbnail(image) - expected).max() <= 1
