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

import numpy as np
import pytest
import torch

from cytodino_hf.data.samplers import OversamplingSampler
from cytodino_hf.data.transforms import AUGMENTATIONS, Augmentation, build_augmentation

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


def test_operations_do_not_come_together() -> None:
    """Two flips at one half each: the four cases come about 100 times each in 400 keys (never 0 or 200)."""
    import albumentations as A

    flips = A.Compose([A.HorizontalFlip(p=0.5), A.VerticalFlip(p=0.5)])
    augmentation = Augmentation("flips", 64, None, before=None, after=flips)
    image, resize = cell(), Resize(64)
    plain = resize(image)
    names = {plain.tobytes(): "none", plain[:, ::-1].tobytes(): "h", plain[::-1].tobytes(): "v"}
    names[plain[::-1, ::-1].tobytes()] = "both"
    seen = Counter(names[augmentation(image, resize, key=(0, 0, i)).tobytes()] for i in range(400))
    assert set(seen) == {"none", "h", "v", "both"}
    assert min(seen.values()) > 65
    assert max(seen.values()) < 140


def test_geometry_and_colour_have_streams_of_their_own() -> None:
    """The same ops before and after must not draw the same numbers."""
    import albumentations as A

    def flip() -> A.Compose:
        return A.Compose([A.HorizontalFlip(p=0.5)])

    augmentation = Augmentation("flips", 64, None, before=flip(), after=flip())
    resize = Resize(64)
    plain = resize(cell())
    flipped = sum(not np.array_equal(augmentation(cell(), resize, key=(0, 0, i)), plain) for i in range(100))
    assert 25 < flipped < 75


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


def test_no_operation_of_the_default_empties_corners_by_itself() -> None:
    import albumentations as A

    augmentation = make("default", 64, None)
    bright = np.full((90, 70, 3), 225, np.uint8)
    assert augmentation.before is not None
    assert augmentation.after is not None
    singles = [*augmentation.before.transforms, *augmentation.after.transforms]
    for op in singles:
        for inner in op.transforms if isinstance(op, A.OneOf) else [op]:
            alone = Augmentation("one", 64, None, before=A.Compose([A.OneOf([inner], p=1.0)]), after=None)
            for position in range(25):
                assert alone(bright, lambda image: image, key=(0, 0, position)).min() > 130


@pytest.mark.parametrize("side", [250, 251, 249])
@pytest.mark.parametrize("crop", [40, 64, 101])
def test_cutting_the_centre_first_changes_nothing_that_is_seen(side: int, crop: int) -> None:
    """The same draws on the whole picture give the same pixels (to one level: other interpolation grid)."""
    image = np.random.default_rng(0).integers(0, 256, (side, side + 3, 3)).astype(np.uint8)
    augmentation = dataclasses.replace(make("default", crop, crop), after=None)
    assert augmentation.cut_px is not None
    assert augmentation.cut_px < side
    whole = dataclasses.replace(augmentation, cut_px=None)
    for position in range(30):
        with_cut, without = (
            a(image, Resize(crop, crop), key=(0, 0, position)) for a in (augmentation, whole)
        )
        assert np.abs(with_cut.astype(int) - without).mean() < 1.5


def test_default_turns_to_any_angle_and_mirrors() -> None:
    """Direction of a mark right of the centre, and whether a second mark lies left or right of it."""
    image = np.full((201, 201, 3), 255, np.uint8)
    image[96:105, 150:160] = 0
    image[120:126, 150:156] = (0, 255, 0)
    geometry = dataclasses.replace(make("default", 140, 140), after=None)
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
    colour = dataclasses.replace(make("default"), before=None)
    plain = Resize(64)(cell()).astype(float)
    means = np.array(
        [colour(cell(), Resize(64), key=(0, 0, i)).mean(axis=(0, 1)) for i in range(300)]
    ) - plain.mean(axis=(0, 1))
    assert np.abs(means.mean(axis=0)).max() < 6
    assert (means.std(axis=0) > 4).all()
    assert (means.std(axis=0) < 25).all()


def test_published_is_the_published_list_in_its_order() -> None:
    augmentation = make("published", 256)
    assert augmentation.before is None
    assert augmentation.after is not None
    described = [
        (type(op).__name__, op.p, [type(inner).__name__ for inner in getattr(op, "transforms", [])])
        for op in augmentation.after.transforms
    ]
    assert described == [
        ("HorizontalFlip", 0.5, []),
        ("VerticalFlip", 0.5, []),
        ("Rotate", 0.5, []),
        ("OneOf", 0.5, ["ColorJitter", "RGBShift"]),
        ("OneOf", 0.3, ["GaussianBlur", "ISONoise", "ImageCompression"]),
        ("CLAHE", 0.3, []),
    ]
    _, _, rotate, colour, fault, clahe = augmentation.after.transforms
    assert tuple(rotate.limit) == (-180, 180)
    jitter, shift = colour.transforms
    assert jitter.brightness == (0.9, 1.1)
    assert jitter.contrast == (0.9, 1.1)
    assert jitter.saturation == (0.85, 1.15)
    assert jitter.hue == (-0.03, 0.03)
    assert tuple(shift.r_shift_limit) == (-15, 15)
    blur, noise, jpeg = fault.transforms
    assert tuple(blur.blur_limit) == (3, 5)
    assert tuple(noise.color_shift) == (0.01, 0.05)
    assert tuple(noise.intensity) == (0.1, 0.5)
    assert tuple(jpeg.quality_range) == (9, 100)
    assert tuple(clahe.clip_limit) == (1, 2)


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
