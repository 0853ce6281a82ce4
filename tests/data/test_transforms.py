"""Augmentation presets: keyed draws, no empty corners by default, and the published operations."""

from __future__ import annotations

import dataclasses
import os
import pickle
import random
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
import torch

from cytodino_hf.data.fast_ops import CLAHE, ISONoise, Operation, RGBShift, Sometimes
from cytodino_hf.data.geometry import Pose, pose_after_resize
from cytodino_hf.data.samplers import OversamplingSampler
from cytodino_hf.data.transforms import AUGMENTATIONS, Augmentation, build_augmentation
from cytodino_hf.model_builder import build_processor
from cytodino_hf.recipe import DataSection

NAMES = list(AUGMENTATIONS)
RANDOM = ["default", "published"]


class Resize:
    """Centre crop and area resize in the place of the image processor's geometry; picklable."""

    def __init__(self, size: int, crop: int | None = None) -> None:
        self.size, self.crop = size, crop

    def __call__(self, image: np.ndarray) -> np.ndarray:
        import cv2

        if self.crop is not None:
            top, left = (max(0, (side - self.crop) // 2) for side in image.shape[:2])
            image = image[top : top + self.crop, left : left + self.crop]
        return cv2.resize(image, (self.size, self.size), interpolation=cv2.INTER_AREA)


def cell(height: int = 250, width: int = 250) -> np.ndarray:
    """A dark disc with a notch, off centre on a light ground with a slope: no symmetry."""
    y, x = np.mgrid[:height, :width].astype(np.float64)
    y, x = y / height - 0.5, x / width - 0.5
    image = np.stack([210 + 30 * x, 200 + 30 * y, 230 + 20 * x * y], axis=-1)
    nucleus = (np.hypot(x - 0.05, y + 0.02) < 0.2) & ~((x > 0.05) & (np.abs(y) < 0.03))
    image[nucleus] = (90, 50, 140)
    return image.astype(np.uint8)


def make(name: str, size: int = 64, crop: int | None = None) -> Augmentation:
    return build_augmentation(name, image_size_px=size, center_crop_px=crop)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("size", "crop", "shape"),
    [
        (64, 64, (250, 250)),
        (64, None, (250, 250)),
        (48, 160, (120, 131)),
        (224, 225, (250, 250)),
        (32, 40, (41, 40)),
    ],
)
def test_output_is_a_uint8_picture_of_the_models_size(
    name: str, size: int, crop: int | None, shape: tuple[int, int]
) -> None:
    augmentation = make(name, size, crop)
    for position in range(12):
        image = cell(*shape)
        out = augmentation(image, Resize(size, crop), key=(1, 0, position))
        assert out.shape == (size, size, 3)
        assert out.dtype == np.uint8
        np.testing.assert_array_equal(image, cell(*shape))


def test_none_is_the_processors_geometry_only() -> None:
    resize = Resize(64, 200)
    np.testing.assert_array_equal(make("none", 64, 200)(cell(), resize, key=(0, 0, 0)), resize(cell()))


@pytest.mark.parametrize("name", RANDOM)
def test_the_key_alone_decides_the_pixels(name: str) -> None:
    image, resize = cell(), Resize(64)
    one, other = make(name), make(name)
    keys = [(3, epoch, position) for epoch in range(3) for position in range(10)]
    first = [one(image, resize, key=key) for key in keys]
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    again = [other(image, resize, key=key) for key in reversed(keys)][::-1]
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert len({picture.tobytes() for picture in first}) >= 28
    assert not np.array_equal(one(image, resize, key=(4, 0, 0)), first[0])


@pytest.mark.parametrize("name", RANDOM)
def test_global_generators_are_not_moved(name: str) -> None:
    before = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    augmentation = make(name)
    for position in range(20):
        augmentation(cell(), Resize(64), key=(0, 0, position))
    assert random.getstate() == before[0]
    assert (np.random.get_state()[1] == before[1]).all()
    assert torch.equal(torch.get_rng_state(), before[2])


def test_operations_and_pose_do_not_come_together() -> None:
    """Two operations at one half each and a flip: the eight cases come about alike often."""

    def raised(level: int) -> Operation:
        return Sometimes(0.5, lambda image, draws: image + np.uint8(level))

    published = make("published").preset
    assert published is not None
    flips = dataclasses.replace(published, operations=(raised(1), raised(2)))
    augmentation = Augmentation("flips", 64, None, flips)
    image = np.zeros((64, 64, 3), np.uint8)
    image[:, :20] = 100
    seen: Counter[tuple[int, bool]] = Counter()
    for position in range(800):
        out = augmentation(image, lambda picture: picture, key=(0, 0, position))
        if out[32, 2, 0] >= 100 or out[32, -3, 0] >= 100:  # not turned to an odd angle
            seen[int(out[32, 32, 0]), bool(out[32, 2, 0] >= 100)] += 1
    assert set(seen) == {(level, left) for level in range(4) for left in (False, True)}
    assert min(seen.values()) > 0.06 * sum(seen.values())
    assert max(seen.values()) < 0.20 * sum(seen.values())


class Items(torch.utils.data.Dataset):
    """Keys in, varied pictures out, as the training data set does it."""

    def __init__(self, name: str) -> None:
        self.augmentation, self.resize = make(name, 32, 100), Resize(32, 100)

    def __getitem__(self, key: tuple[int, int, int]) -> torch.Tensor:
        index, epoch, position = key
        image = np.roll(cell(), index, axis=1)
        return torch.from_numpy(self.augmentation(image, self.resize, key=(7, epoch, position)).copy())


def load(name: str, workers: int, epochs: int = 2, context: str | None = None) -> list[torch.Tensor]:
    sampler = OversamplingSampler([0] * 9 + [1] * 3, power=0.7, multiplier=2.0, seed=0)
    loader = torch.utils.data.DataLoader(
        Items(name), batch_size=5, sampler=sampler, num_workers=workers, multiprocessing_context=context
    )
    batches = []
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        batches.append(torch.cat(list(loader)))
    return batches


@pytest.mark.parametrize("name", RANDOM)
def test_two_workers_see_the_pixels_of_none(name: str) -> None:
    alone, shared = load(name, 0), load(name, 2)
    for a, b in zip(alone, shared, strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(alone[0], alone[1])
    assert len({picture.numpy().tobytes() for picture in alone[0]}) > 20


@pytest.mark.slow
def test_spawned_workers_see_the_same_pixels() -> None:
    assert torch.equal(load("default", 0, epochs=1)[0], load("default", 1, epochs=1, context="spawn")[0])


@pytest.mark.parametrize("name", NAMES)
def test_presets_survive_pickling(name: str) -> None:
    augmentation = make(name, 48, 120)
    again = pickle.loads(pickle.dumps(augmentation))
    assert len(pickle.dumps(augmentation)) < 500
    for position in range(10):
        key = (0, 1, position)
        np.testing.assert_array_equal(
            again(cell(), Resize(48, 120), key=key), augmentation(cell(), Resize(48, 120), key=key)
        )


@pytest.mark.parametrize("name", NAMES)
def test_presets_build_and_run_without_a_warning(name: str) -> None:
    """albumentations only warns of an argument it does not know, and then ignores it."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        augmentation = make(name, 64, 100)
        for position in range(40):
            augmentation(cell(), Resize(64, 100), key=(0, 0, position))


def darkest(augmentation: Augmentation, resize: Resize, keys: int) -> list[int]:
    bright = np.full((250, 250, 3), 225, np.uint8)
    return [int(augmentation(bright, resize, key=(0, 0, i)).min()) for i in range(keys)]


@pytest.mark.parametrize("crop", [None, 64, 160, 224, 250])
def test_default_shows_no_empty_corner_and_published_does(crop: int | None) -> None:
    resize = Resize(64, crop)
    assert min(darkest(make("default", 64, crop), resize, 150)) > 130
    corners = sum(value < 30 for value in darkest(make("published", 64, crop), resize, 60))
    assert 15 < corners < 50  # about one half is turned


def without(name: str, *, operations: bool, size: int = 64, crop: int | None = None) -> Augmentation:
    """A preset without its operations, or without its poses."""
    augmentation = make(name, size, crop)
    assert augmentation.preset is not None
    changes: dict = {"operations": ()} if operations else {"draw_pose": lambda draws, seen: Pose()}
    return dataclasses.replace(augmentation, preset=dataclasses.replace(augmentation.preset, **changes))


def test_default_turns_to_any_angle_and_mirrors() -> None:
    """Direction of a mark right of the centre, and whether a second mark lies left or right of it."""
    image = np.full((201, 201, 3), 255, np.uint8)
    image[96:105, 150:160] = 0
    image[120:126, 150:156] = (0, 255, 0)
    geometry = without("default", operations=True, size=140, crop=140)
    angles, hands = [], []
    for position in range(300):
        out = geometry(image, Resize(140, 140), key=(0, 0, position)).astype(int)
        ys, xs = np.nonzero(out.sum(axis=-1) < 200)
        gy, gx = np.nonzero((out[..., 1] > 180) & (out[..., 0] < 90))
        main = complex(xs.mean() - 69.5, ys.mean() - 69.5)
        second = complex(gx.mean() - 69.5, gy.mean() - 69.5)
        angles.append(np.degrees(np.angle(main)) % 360)
        hands.append(np.angle(second / main) > 0)
    counts, _ = np.histogram(angles, bins=12, range=(0, 360))
    assert counts.min() >= 8
    assert 100 < sum(hands) < 200


def test_default_colour_varies_mildly_and_about_the_original() -> None:
    colour = without("default", operations=False)
    plain = Resize(64)(cell()).astype(float)
    means = np.array(
        [colour(cell(), Resize(64), key=(0, 0, i)).mean(axis=(0, 1)) for i in range(300)]
    ) - plain.mean(axis=(0, 1))
    assert np.abs(means.mean(axis=0)).max() < 6
    assert (means.std(axis=0) > 4).all()
    assert (means.std(axis=0) < 25).all()


def test_published_is_the_published_list_in_its_order() -> None:
    preset = make("published", 256).preset
    assert preset is not None
    assert preset.lay_down is pose_after_resize  # what poses are drawn: tests/data/test_geometry.py
    colour, fault, clahe = preset.operations
    assert (colour.p, fault.p, clahe.p) == (0.5, 0.3, 0.3)
    jitter, shift = colour.operation.operations
    assert (type(jitter.transform).__name__, jitter.transform.p) == ("ColorJitter", 1.0)
    assert jitter.transform.brightness == (0.9, 1.1)
    assert jitter.transform.contrast == (0.9, 1.1)
    assert jitter.transform.saturation == (0.85, 1.15)
    assert jitter.transform.hue == (-0.03, 0.03)
    assert shift == RGBShift(15)
    blur, noise, jpeg = fault.operation.operations
    assert (type(blur.transform).__name__, blur.transform.p) == ("GaussianBlur", 1.0)
    assert tuple(blur.transform.blur_limit) == (3, 5)
    assert noise == ISONoise((0.1, 0.5))
    assert (type(jpeg.transform).__name__, jpeg.transform.p) == ("ImageCompression", 1.0)
    assert tuple(jpeg.transform.quality_range) == (9, 100)
    assert clahe.operation == CLAHE((1.0, 2.0))


def plain_published(size: int) -> Callable[[np.ndarray], np.ndarray]:
    """The published list by albumentations alone."""
    import albumentations as A
    import cv2

    ops = A.Compose(
        [
            A.Resize(size, size),
            A.HorizontalFlip(p=0.5),
            A.VerticalFlip(p=0.5),
            A.Rotate(limit=180, border_mode=cv2.BORDER_CONSTANT, fill=0, p=0.5),
            A.OneOf(
                [
                    A.ColorJitter(brightness=0.1, contrast=0.1, saturation=0.15, hue=0.03),
                    A.RGBShift(r_shift_limit=15, g_shift_limit=15, b_shift_limit=15),
                ],
                p=0.5,
            ),
            A.OneOf(
                [
                    A.GaussianBlur(blur_limit=(3, 5)),
                    A.ISONoise(color_shift=(0.01, 0.05), intensity=(0.1, 0.5)),
                    A.ImageCompression(quality_range=(9, 100)),
                ],
                p=0.3,
            ),
            A.CLAHE(clip_limit=2.0, p=0.3),
        ]
    )
    ops.set_random_state(np.random.default_rng(1), random.Random(1))
    return lambda image: ops(image=image)["image"]


def test_the_published_preset_gives_pictures_distributed_as_the_plain_list_does() -> None:
    """Of 600 pictures each: means, spreads, corners, black and white shares and fine structure, each compared
    by its distribution (Kolmogorov-Smirnov, 1 in 10,000 each). The picture has the model's size: where it is resized
    the plain list interpolates once more and is a little softer."""
    import cv2
    from scipy.stats import ks_2samp

    size, count = 96, 600
    image = cv2.GaussianBlur(cell(size, size), (0, 0), 1.5)
    processor = build_processor(DataSection(image_size_px=size))
    fast = make("published", size)
    plain = plain_published(size)

    def describe(picture: np.ndarray) -> list[float]:
        values = picture.astype(float)
        middle = values[16:-16, 16:-16]
        return [
            *middle.mean(axis=(0, 1)),
            *middle.std(axis=(0, 1)),
            values[:4, :4].mean(),
            float((picture == 0).mean()),
            float((picture == 255).mean()),
            cv2.Laplacian(middle, cv2.CV_64F).std(),
        ]

    ours = np.array([describe(fast(image, processor.crop_and_resize, key=(0, 0, i))) for i in range(count)])
    theirs = np.array([describe(plain(image)) for _ in range(count)])
    for column in range(ours.shape[1]):
        assert ks_2samp(ours[:, column], theirs[:, column]).pvalue > 1e-4, column


def test_an_unknown_preset_is_named() -> None:
    with pytest.raises(
        ValueError, match=r"unknown augmentation 'strong' \(known: none, default, published\)"
    ):
        make("strong")


@pytest.mark.slow
def test_importing_the_module_loads_no_albumentations_and_sets_nothing() -> None:
    code = (
        "import os, sys, cytodino_hf.data.transforms; "
        "print('albumentations' in sys.modules, 'cv2' in sys.modules, 'NO_ALBUMENTATIONS_UPDATE' in os.environ)"
    )
    environment = {k: v for k, v in os.environ.items() if k != "NO_ALBUMENTATIONS_UPDATE"}
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert result.stdout.split() == ["False", "False", "False"]
