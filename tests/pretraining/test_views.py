"""Views: where every pixel comes from, what is drawn how often, what colour may do."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
from scipy.stats import kstest

from cytodino_hf.data.geometry import Pose
from cytodino_hf.data.stain import MAY_GRUNWALD_GIEMSA, optical_density
from cytodino_hf.pretraining.views import (
    Crop,
    Pyramid,
    Views,
    ViewsSection,
    change_light,
    draw_crop,
    lay_down,
    views_contradictions,
)

NO_COLOUR = dict.fromkeys(
    ("stain_probability", "light_probability", "blur_probability", "noise_probability"), 0.0
)


def views_of(picture: np.ndarray, number: int, **keys: Any) -> np.ndarray:
    """Global views of as many draws, (2 x number, size, size, 3)."""
    section = ViewsSection(**keys)
    size = section.global_size_px
    out = np.empty((number, 2, size, size, 3), np.uint8)
    none = np.empty((0, 8, 8, 3), np.uint8)
    for i in range(number):
        Views(section)(picture, np.random.default_rng(i), out[i], none)
    return out.reshape(-1, size, size, 3)


def test_crops_have_the_areas_and_proportions_asked_for() -> None:
    draws = np.random.default_rng(0)
    crops = [draw_crop(draws, (200, 300), (0.1, 0.3), (0.5, 2.0)) for _ in range(3000)]
    areas = np.array([crop.width * crop.height for crop in crops]) / (200 * 300)
    ratios = np.log2([crop.width / crop.height for crop in crops])
    # Every such crop fits: at most sqrt(.3 x 60000 x 2) = 190 pixels either way.
    assert kstest(areas, "uniform", (0.1, 0.2)).pvalue > 0.01
    assert kstest(ratios, "uniform", (-1.0, 2.0)).pvalue > 0.01
    for crop in crops:
        assert abs(crop.center[0]) + crop.width / 2 <= 150
        assert abs(crop.center[1]) + crop.height / 2 <= 100
    free = [crop.center[0] / ((300 - crop.width) / 2) for crop in crops]
    assert kstest(free, "uniform", (-1.0, 2.0)).pvalue > 0.01


def test_a_crop_that_never_fits_becomes_the_largest_one() -> None:
    crop = draw_crop(np.random.default_rng(0), (100, 1000), (0.9, 1.0), (0.75, 4 / 3))
    assert (crop.width, crop.height) == pytest.approx((400 / 3, 100))
    assert crop.center[1] == 0
    assert 0 < abs(crop.center[0]) < 450 - 50 / 3


@pytest.mark.parametrize("size", [64, 16])  # as it is; halved twice first, to sizes that are no halves
@pytest.mark.parametrize("is_mirrored", [False, True])
@pytest.mark.parametrize("degrees", [0.0, 90.0, 127.0])
def test_every_pixel_comes_from_where_the_pose_says(is_mirrored: bool, degrees: float, size: int) -> None:
    """On a picture whose red and green are the place itself; the way back by complex numbers."""
    rows, columns = np.mgrid[:203, :241]
    picture = np.stack([columns, rows, np.zeros_like(rows)], axis=-1).astype(np.uint8)
    crop = Crop(100, 80, (15.0, -20.0))
    pose = Pose(
        is_mirrored, quarter_turns=int(degrees) // 90, turn_degrees=degrees - 90 * (int(degrees) // 90)
    )
    view = lay_down(Pyramid(picture), crop, pose, size)
    steps = (np.arange(size) + 0.5) / size - 0.5
    seen = (
        steps[None, :] * crop.width - 1j * steps[:, None] * crop.height
    )  # right and up from the crop's centre
    turned_back = seen * np.exp(-1j * np.deg2rad(degrees))
    offset = -np.conj(turned_back) if is_mirrored else turned_back
    x, y = 120 + 15 + offset.real, 101 - 20 - offset.imag
    inside = (x > 4) & (x < 236) & (y > 4) & (y < 198)
    assert inside.mean() > 0.9
    assert np.abs(view[..., 0] - x)[inside].max() < 0.8
    assert np.abs(view[..., 1] - y)[inside].max() < 0.8


def test_without_crop_turn_and_colour_a_view_is_one_of_eight_orientations() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    whole = {"global_size_px": 32, "global_scale": [1.0, 1.0], "aspect": [1.0, 1.0], "turn_degrees": 0.0}
    turned = [np.rot90(side, turns) for side in (picture, picture[:, ::-1]) for turns in range(4)]
    seen = [
        [int(np.abs(view.astype(int) - one).max()) for one in turned]
        for view in views_of(picture, 60, **whole, **NO_COLOUR)
    ]
    assert {row.index(0) for row in seen} == set(range(8))


def test_a_large_picture_is_averaged_not_sampled() -> None:
    noise = np.random.default_rng(0).integers(0, 2, (1024, 1024, 1)) * 255
    picture = np.repeat(noise, 3, axis=2).astype(np.uint8)
    view = lay_down(Pyramid(picture), Crop(1024, 1024, (0.0, 0.0)), Pose(turn_degrees=10.0), 64)
    # The mean of 16 x 16 pixels has a deviation of 127.5 / 16 = 8; four of them sampled would have 64.
    assert view[8:-8, 8:-8].std() < 12
    assert abs(view.mean() - 127.5) < 2


def test_there_are_no_black_corners() -> None:
    picture = np.full((60, 90, 3), 200, np.uint8)
    views = views_of(picture, 50, global_size_px=32, global_scale=[0.9, 1.0], **NO_COLOUR)
    assert (views == 200).all()


def test_stain_is_jittered_within_its_limits_and_over_them_all() -> None:
    picture = np.broadcast_to(np.array([150, 110, 190], np.uint8), (40, 40, 3))
    unmix = np.linalg.inv(MAY_GRUNWALD_GIEMSA)
    before = optical_density(picture[0, 0]) @ unmix
    only = NO_COLOUR | {"stain_probability": 1.0}
    views = views_of(picture, 400, global_size_px=8, **only)
    after = optical_density(views[:, 0, 0]) @ unmix
    section = ViewsSection()
    limit = np.abs(before) * section.stain_scales + section.stain_shifts
    change = (after - before) / limit
    assert np.abs(change).max() < 1.06  # rounding to whole grey levels
    assert (change.min(axis=0) < -0.6).all()
    assert (change.max(axis=0) > 0.6).all()
    assert np.abs(change.mean(axis=0)).max() < 0.1


def test_views_stay_in_colour_and_near_it() -> None:
    colour = np.array([150, 100, 190])
    picture = np.broadcast_to(colour.astype(np.uint8), (40, 40, 3))
    means = views_of(picture, 300, global_size_px=16).reshape(600, -1, 3).mean(axis=1)
    # No grey: purple keeps less green than blue. No inversion: nothing moves by half of the range.
    assert (means[:, 2] - means[:, 1] > 20).all()
    assert np.abs(means - colour).max() < 110
    assert 10 < np.abs(means - colour).mean() < 40


def test_blur_and_noise_come_as_often_as_asked() -> None:
    picture = np.zeros((64, 64, 3), np.uint8)
    picture[:, 32:] = 200
    whole = {"global_size_px": 64, "global_scale": [1.0, 1.0], "aspect": [1.0, 1.0], "turn_degrees": 0.0}
    for key in ("blur", "noise"):
        only = NO_COLOUR | {f"{key}_probability": 0.3, f"{key}_sigma": [0.02, 0.03]}
        changed = [len(np.unique(view)) > 2 for view in views_of(picture, 200, **whole, **only)]
        assert abs(np.mean(changed) - 0.3) < 0.08  # 400 draws: 3.5 standard deviations


def test_light_against_numpy() -> None:
    view = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    mean = view.mean()
    expected = np.clip(np.rint((view - mean) * 0.8 + mean + 25.5), 0, 255)
    assert np.abs(change_light(view, 0.1, 0.8) - expected).max() <= 1


def test_centre_crop_and_hidden_centre() -> None:
    picture = np.zeros((100, 120, 3), np.uint8)
    picture[30:70, 40:80] = 180
    picture[49:51, 59:61] = (255, 0, 0)
    keys = {"global_size_px": 16, "center_crop_px": 40, **NO_COLOUR}
    assert (views_of(picture, 30, hide_center_px=4, **keys) == 180).all()
    assert (views_of(picture, 30, **keys)[..., 1] < 180).any()


def test_small_and_odd_pictures_give_views_of_one_size() -> None:
    for shape in ((8, 8), (9, 60), (700, 100)):
        picture = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
        assert views_of(picture, 3).shape == (6, 128, 128, 3)


def test_contradictions_are_all_named() -> None:
    assert views_contradictions(ViewsSection(), 16) == []
    assert views_contradictions(ViewsSection(local_size_px=60), 16) == []  # there are no local views
    wrong = ViewsSection(
        global_size_px=100,
        local_crops=1,
        local_size_px=60,
        global_scale=[0.5, 0.2],
        local_scale=[0.5, 1.5],
        aspect=[0.0, 1.0],
        blur_sigma=[0.0, 0.1],
        stain_scales=[1.5, 0.0, 0.0],
    )
    found = views_contradictions(wrong, 16)
    names = [
        "global_scale",
        "local_scale",
        "aspect",
        "blur_sigma",
        "stain_scales",
        "global_size_px",
        "local_size_px",
    ]
    assert [line.split()[0] for line in found] == [f"views.{name}" for name in names]
    assert "such as 96 or 112" in found[5]


@pytest.mark.real_data
def test_real_cells_stay_in_sight(real_data: Any) -> None:
    """Most of a cell's dark purple is in most views, and the background is not lost either."""
    files = sorted((real_data / "mll7" / "LYT").rglob("*.jpg"))[:10]
    shares = []
    for file in files:
        picture = cv2.cvtColor(cv2.imread(str(file)), cv2.COLOR_BGR2RGB)
        for view in views_of(picture, 10, **NO_COLOUR):
            shares.append((view[..., 1] < 120).mean())
    assert np.mean(np.array(shares) > 0.05) > 0.9
    assert np.mean(shares) < 0.6
