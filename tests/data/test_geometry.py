"""Poses: what is drawn, where points go, and that one warp shows what separate operations show."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from cytodino_hf.data.geometry import Pose, flipped, pose_after_resize, pose_before_crop
from cytodino_hf.data.transforms import build_augmentation
from cytodino_hf.model.image_processing_cytodino import CytoDinoImageProcessor
from cytodino_hf.model_builder import build_processor
from cytodino_hf.recipe import DataSection


def smooth(height: int = 250, width: int = 250, seed: int = 0) -> np.ndarray:
    """Structure of some pixels' width, so that interpolation errs little."""
    noise = np.random.default_rng(seed).normal(0, 1, (height, width, 3)).astype(np.float32)
    blurred = cv2.GaussianBlur(noise, (0, 0), 5)
    return np.clip(128 + 45 * blurred / blurred.std(), 0, 255).astype(np.uint8)


def processor(size: int, crop: int | None = None) -> CytoDinoImageProcessor:
    return build_processor(DataSection(image_size_px=size, center_crop_px=crop))


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_flips_and_quarter_turns_move_pixels_as_numpy_does(mirrored: bool, turns: int) -> None:
    image = smooth(40, 60)
    wanted = np.rot90(image[:, ::-1] if mirrored else image, turns)
    np.testing.assert_array_equal(flipped(image, Pose(mirrored, turns)), wanted)


@pytest.mark.parametrize(
    "pose", [Pose(True, 1), Pose(False, 3), Pose(True, 2), Pose(True, 0), Pose(False, 0)]
)
def test_the_matrix_says_the_same_as_the_flips(pose: Pose) -> None:
    """A pose that is all but plain is warped; it must land where the plain one does."""
    image = smooth(64, 64)
    tilted = Pose(pose.is_mirrored, pose.quarter_turns, turn_degrees=1e-9)
    resize = processor(64).crop_and_resize
    for lay_down in (pose_before_crop, pose_after_resize):
        warped = lay_down(image, tilted, resize, size_px=64, crop_px=None)
        assert np.abs(warped.astype(int) - flipped(image, pose)).max() <= 1


def test_turns_go_counter_clockwise_and_shifts_right_and_down() -> None:
    image = np.zeros((101, 101, 3), np.uint8)
    image[48:53, 78:83] = 255  # right of the centre

    def place(pose: Pose) -> tuple[float, float]:
        out = pose_before_crop(image, pose, lambda picture: picture, size_px=101, crop_px=None)[..., 0] > 127
        rows, columns = np.nonzero(out)
        return float(columns.mean()) - 50, float(rows.mean()) - 50

    assert place(Pose(turn_degrees=90.0)) == pytest.approx((0, -30), abs=0.6)
    assert place(Pose(turn_degrees=30.0)) == pytest.approx((30 * 0.866, -15), abs=0.6)
    assert place(Pose(zoom=1.1)) == pytest.approx((33, 0), abs=0.6)
    assert place(Pose(shift=(4.0, -7.0))) == pytest.approx((34, -7), abs=0.6)
    assert place(Pose(is_mirrored=True, shift=(4.0, 0.0))) == pytest.approx((-26, 0), abs=0.6)


@pytest.mark.parametrize(("size", "crop"), [(256, None), (224, 160), (64, 160), (96, None)])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_one_warp_shows_what_separate_steps_show_before_the_crop(
    size: int, crop: int | None, seed: int
) -> None:
    """Steps one by one with OpenCV: flips, an affine on the whole picture, then the processor."""
    rng = np.random.default_rng(seed)
    image, own = smooth(seed=seed), processor(size, crop)
    pose = Pose(
        bool(rng.integers(2)),
        int(rng.integers(4)),
        turn_degrees=rng.uniform(-45, 45),
        zoom=rng.uniform(0.9, 1.1),
        shift=(rng.uniform(-6, 6), rng.uniform(-6, 6)),
    )
    turned = cv2.getRotationMatrix2D((124.5, 124.5), pose.turn_degrees, pose.zoom)
    turned[:, 2] += pose.shift
    plain = cv2.warpAffine(
        np.ascontiguousarray(flipped(image, Pose(pose.is_mirrored, pose.quarter_turns))),
        turned,
        (250, 250),
        borderMode=cv2.BORDER_REFLECT_101,
    )
    wanted = own.crop_and_resize(plain).astype(float)
    got = pose_before_crop(image, pose, own.crop_and_resize, size_px=size, crop_px=crop)
    assert np.abs(got - wanted).mean() < 1.2


@pytest.mark.parametrize(("size", "shape"), [(256, (250, 250)), (256, (240, 200)), (64, (250, 250))])
@pytest.mark.parametrize("seed", [1, 2])
def test_one_warp_shows_what_separate_steps_show_after_the_resize(
    size: int, shape: tuple[int, int], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    image, own = smooth(*shape, seed=seed), processor(size)
    pose = Pose(bool(seed % 2), 2 * (seed // 2), turn_degrees=rng.uniform(-180, 180))
    resized = flipped(cv2.resize(image, (size, size)), Pose(pose.is_mirrored, pose.quarter_turns))
    middle = (size - 1) / 2
    turn = cv2.getRotationMatrix2D((middle, middle), pose.turn_degrees, 1.0)
    wanted = cv2.warpAffine(np.ascontiguousarray(resized), turn, (size, size)).astype(float)
    got = pose_after_resize(image, pose, own.crop_and_resize, size_px=size, crop_px=None)
    assert np.abs(got - wanted).mean() < (1.2 if size > 64 else 3.0)
    # The same corners are empty.
    black, wanted_black = got.max(axis=-1) == 0, wanted.max(axis=-1) == 0
    assert np.mean(black != wanted_black) < 0.01


def test_a_plain_pose_interpolates_nothing_but_the_processor() -> None:
    image, own = smooth(), processor(256)
    pose = Pose(True, 2)
    for lay_down in (pose_before_crop, pose_after_resize):
        got = lay_down(image, pose, own.crop_and_resize, size_px=256, crop_px=None)
        np.testing.assert_array_equal(got, own.crop_and_resize(image)[::-1])


def poses(name: str, count: int = 4000) -> list[Pose]:
    preset = build_augmentation(name, image_size_px=256, center_crop_px=None).preset
    assert preset is not None
    draws = np.random.default_rng(11)
    return [preset.draw_pose(draws, (250, 200)) for _ in range(count)]


def uniform(values: list[float], low: float, high: float) -> None:
    """Range, mean and spread of an even distribution, to five standard errors."""
    array = np.array(values)
    assert low <= array.min() and array.max() <= high  # noqa: PT018
    assert array.min() < low + 0.02 * (high - low)
    assert array.max() > high - 0.02 * (high - low)
    spread = (high - low) / 12**0.5
    assert abs(array.mean() - (low + high) / 2) < 5 * spread / len(array) ** 0.5
    assert array.std() == pytest.approx(spread, rel=0.06)


def test_default_poses_are_drawn_from_the_ranges_of_the_plain_operations() -> None:
    drawn = poses("default")
    turns = np.bincount([2 * p.quarter_turns + p.is_mirrored for p in drawn], minlength=8)
    assert (np.abs(turns - 500) < 5 * (4000 * 7 / 64) ** 0.5).all()  # all eight of a square alike
    tilted = [p for p in drawn if not p.needs_no_warp]
    assert abs(len(tilted) - 2800) < 5 * (4000 * 0.7 * 0.3) ** 0.5
    uniform([p.turn_degrees for p in tilted], -45, 45)
    uniform([p.zoom for p in tilted], 0.9, 1.1)
    uniform([p.shift[0] for p in tilted], -10, 10)  # 4 % of 250
    uniform([p.shift[1] for p in tilted], -8, 8)  # 4 % of 200
    columns = np.array([[p.turn_degrees, p.zoom, *p.shift, p.is_mirrored] for p in tilted])
    assert np.abs(np.corrcoef(columns.T) - np.eye(5)).max() < 0.1


def test_published_poses_are_two_coins_and_a_turn_in_half_of_the_cases() -> None:
    drawn = poses("published")
    # Across and over: a flip over is a flip across and half a turn.
    over = [p.quarter_turns == 2 for p in drawn]
    across = [p.is_mirrored != o for p, o in zip(drawn, over, strict=True)]
    turned = [not p.needs_no_warp for p in drawn]
    for coin in (over, across, turned):
        assert abs(sum(coin) - 2000) < 5 * 1000**0.5
    assert np.abs(np.corrcoef([over, across, turned]) - np.eye(3)).max() < 0.1
    uniform([p.turn_degrees for p in drawn if not p.needs_no_warp], -180, 180)
    assert all(p.zoom == 1 and p.shift == (0, 0) for p in drawn)
