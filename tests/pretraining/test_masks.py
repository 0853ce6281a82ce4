"""Masks: how many patches, in what shape, how often."""

from __future__ import annotations

import time

import numpy as np
import pytest

from cytodino_hf.pretraining.masks import BlockMasks, block_mask, filled_up, masked_places
from cytodino_hf.pretraining.recipe import ObjectiveSection, objective_contradictions


@pytest.mark.parametrize("grid", [(8, 8), (14, 14), (5, 12), (1, 9), (2, 2), (1, 1)])
def test_every_count_is_reached_exactly(grid: tuple[int, int]) -> None:
    for count in range(grid[0] * grid[1] + 1):
        for seed in range(3):
            mask = block_mask(grid, count, (0.3, 3.3), np.random.default_rng(seed))
            assert mask.shape == grid
            assert int(mask.sum()) == count


class Scripted:
    """Draws one block as written, then blocks too tall for any grid; single patches follow from the first row on."""

    def __init__(self, area: float, shape: float, down: float, right: float) -> None:
        self.attempts = [(area, shape, down, right)]

    def random(self, shape: tuple[int, int]) -> np.ndarray:
        attempts, self.attempts = self.attempts, []
        return np.array([*attempts, *[(1.0, 20.0, 0.0, 0.0)] * (10 - len(attempts))]).reshape(shape)

    def choice(self, free: np.ndarray, count: int, replace: bool) -> np.ndarray:
        return free[:count]


@pytest.mark.parametrize(
    ("area", "shape", "height", "width"),
    [
        # area is uniform from (12 // 3)^2 = 16 to 36 patches; height / width = 0.25^(1 - shape) x 4^shape
        (1.0, 0.5, 6, 6),
        (0.0, 0.5, 4, 4),
        (0.0, 0.0, 2, 8),
        (0.0, 1.0, 8, 2),
        (1.0, 0.0, 3, 12),
        (0.0, 0.25, 3, 6),  # sqrt(16 x 0.5) = 2.8, sqrt(16 / 0.5) = 5.7
    ],
)
def test_a_block_has_the_area_shape_and_place_that_were_drawn(
    area: float, shape: float, height: int, width: int
) -> None:
    scripted = Scripted(area, shape, 0.999, 0.5)
    mask = block_mask((12, 12), 36, (0.25, 4.0), scripted)  # type: ignore[arg-type]
    top, left = 12 - height, (13 - width) // 2  # .999 is the last place, .5 the middle one
    block = np.zeros((12, 12), dtype=bool)
    block[top:, left : left + width] = True
    rest = np.flatnonzero(~block)[: 36 - height * width]
    block.flat[rest] = True
    assert np.array_equal(mask, block)


def test_masked_patches_lie_together() -> None:
    """In blocks most neighbours of a masked patch are masked; by chance it would be the masked share."""
    generator = np.random.default_rng(0)
    together = []
    for _ in range(200):
        mask = block_mask((14, 14), 59, (0.3, 3.3), generator)
        pairs = mask[:, :-1] & mask[:, 1:]
        together.append(pairs.sum() / mask[:, :-1].sum())
    assert np.mean(together) > 2 * 59 / 196


def test_blocks_fall_everywhere() -> None:
    generator = np.random.default_rng(0)
    mean = np.mean([block_mask((8, 8), 19, (0.3, 3.3), generator) for _ in range(2000)], axis=0)
    assert mean.min() > 0.05
    np.testing.assert_allclose(mean, mean[::-1, ::-1], atol=0.06)
    np.testing.assert_allclose(mean, mean.T, atol=0.06)


def test_half_of_the_views_lose_ten_to_fifty_percent() -> None:
    draw = BlockMasks((14, 14), ObjectiveSection())
    generator = np.random.default_rng(0)
    shares = np.concatenate([draw(generator).mean(axis=1) for _ in range(1500)])
    masked = shares[shares > 0]
    # 3000 coins: standard deviation .009
    assert len(masked) / len(shares) == pytest.approx(0.5, abs=0.03)
    assert masked.min() >= 0.1 - 0.5 / 196
    assert masked.max() <= 0.5 + 0.5 / 196
    assert masked.mean() == pytest.approx(0.3, abs=0.01)
    assert masked.std() == pytest.approx(0.4 / np.sqrt(12), rel=0.05)


def test_views_are_masked_independently() -> None:
    draw = BlockMasks((8, 8), ObjectiveSection())
    generator = np.random.default_rng(1)
    pairs = np.array([draw(generator).any(axis=1) for _ in range(1500)])
    assert np.mean(pairs[:, 0] & pairs[:, 1]) == pytest.approx(0.25, abs=0.04)


def test_extremes() -> None:
    generator = np.random.default_rng(0)
    assert not BlockMasks((4, 6), ObjectiveSection(mask_probability=0.0))(generator).any()
    everything = ObjectiveSection(mask_probability=1.0, mask_ratio=1.0, mask_ratio_variance=0.0)
    assert BlockMasks((4, 6), everything, views=3)(generator).all()
    assert BlockMasks((4, 6), everything, views=3)(generator).shape == (3, 24)


def test_the_generator_decides() -> None:
    draw = BlockMasks((8, 8), ObjectiveSection(mask_probability=1.0))
    first, again = draw(np.random.default_rng(7)), draw(np.random.default_rng(7))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, draw(np.random.default_rng(8)))


def test_a_picture_takes_a_fraction_of_a_millisecond() -> None:
    draw = BlockMasks((14, 14), ObjectiveSection())
    generator = np.random.default_rng(0)
    start = time.process_time()
    for _ in range(500):
        draw(generator)
    assert (time.process_time() - start) / 500 < 1e-3  # measured 0.02 ms


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"mask_aspect": [2.0, 0.5]}, "mask_aspect"),
        ({"mask_aspect": [0.0, 2.0]}, "mask_aspect"),
        ({"mask_ratio": 0.1}, "mask_ratio_variance"),
        ({"mask_ratio": 0.9}, "mask_ratio_variance"),
    ],
)
def test_masks_that_cannot_be_are_named(values: dict, named: str) -> None:
    problems = objective_contradictions(ObjectiveSection(**values))
    assert len(problems) == 1
    assert problems[0].startswith(f"objective.{named} = ")
    assert objective_contradictions(ObjectiveSection()) == []


def test_places_and_weights_of_masked_patches() -> None:
    masks = np.zeros((4, 5), dtype=bool)
    masks[0, [0, 3]] = masks[2, [1]] = masks[3, :] = True  # view 1 has no mask
    places, weights = masked_places(masks)
    assert places[:8].tolist() == [0, 3, 11, 15, 16, 17, 18, 19]
    assert weights[:8] == pytest.approx([1 / 8] * 2 + [1 / 4] + [1 / 20] * 5)
    assert len(places) == len(weights) == 256
    assert not places[8:].any()
    assert not weights[8:].any()
    assert places.dtype == np.int64
    assert weights.dtype == np.float32
    nothing = masked_places(np.zeros((4, 5), dtype=bool))
    assert [len(values) for values in nothing] == [256, 256]
    assert not any(values.any() for values in nothing)


@pytest.mark.parametrize(("masked", "rows"), [(0, 256), (1, 256), (256, 256), (257, 512), (1000, 1024)])
def test_rows_are_filled_up_to_whole_blocks(masked: int, rows: int) -> None:
    assert filled_up(masked) == rows
    masks = np.arange(1200).reshape(2, 600) < masked
    assert len(masked_places(masks)[0]) == rows
