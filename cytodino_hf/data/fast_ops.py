"""Colour and noise for training pictures: what albumentations 2.0.8 does to a picture, for less where it costs much.

An operation is called with a picture and a generator and gives a new picture. `CLAHE` and `RGBShift` give
albumentations' pixels, `ISONoise` and `GaussNoise` its distribution of them. What is cheap or rare there stays
albumentations' own, in `Plain`. `tests/data/test_fast_ops.py` compares each with the original.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

# Normal numbers are drawn once per process and read from a drawn place on: 100 us instead of 700.
_BANK_LENGTH = 1 << 21
_TILES = (8, 8)


class Operation(Protocol):
    """Varies a picture by what it draws."""

    def __call__(self, image: np.ndarray, draws: np.random.Generator) -> np.ndarray:
        """uint8 (height, width, 3) to a picture of the same kind; the one given is left as it is."""
        ...


@dataclass(frozen=True)
class Sometimes:
    """One operation with probability `p`."""

    p: float
    operation: Operation

    def __call__(self, image: np.ndarray, draws: np.random.Generator) -> np.ndarray:
        return self.operation(image, draws) if draws.random() < self.p else image


@dataclass(frozen=True)
class OneOf:
    """One of several operations, each as likely."""

    operations: Sequence[Operation]

    def __call__(self, image: np.ndarray, draws: np.random.Generator) -> np.ndarray:
        return self.operations[int(draws.integers(len(self.operations)))](image, draws)


@dataclass(frozen=True)
class Plain:
    """An operation of albumentations, built with `p=1`, without the cost of a pipeline around it."""

    transform: Any

    def __call__(self, image: np.ndarray, draws: np.random.Generator) -> np.ndarray:
        self.transform.set_random_state(draws, random.Random(int(draws.integers(1 << 63))))
        varied: np.ndarray = self.transform(image=image)["image"]
        return varied


@dataclass(frozen=True)
class ISONoise:
    """albumentations' ISONoise: white dots whose number grows with the picture's contrast.

    Its turn of hue is left out: at most 0.05 x 0.5 degrees at one standard deviation, a tenth of a grey level in
    the purest colour, it does not survive rounding.

    Args:
        intensity: Range of how many dots there are and how far each lifts its pixel towards white.
    """

    intensity: tuple[float, float]

    def __call__(self, image: np.ndarray, draws: np.random.Generator) -> np.ndarray:
        return add_iso_noise(image, draws.uniform(*self.intensity), draws)


@dataclass(frozen=True)
class RGBShift:
    """A whole number of grey levels added to each channel: evenly drawn, then cut towards 0.

    Args:
        limit: Largest shift, in grey levels.
    """

    limit: float

    def __call__(self, image: np.ndarray, draws: np.random.Generator) -> np.ndarray:
        return shift_channels(image, draws.uniform(-self.limit, self.limit, size=3))


@dataclass(frozen=True)
class GaussNoise:
    """Normal noise, independent in each pixel and channel.

    Args:
        std: Range of the standard deviation, of 1.
    """

    std: tuple[float, float]

    def __call__(self, image: np.ndarray, draws: np.random.Generator) -> np.ndarray:
        return add_normal_noise(image, 255 * draws.uniform(*self.std), draws)


@dataclass(frozen=True)
class CLAHE:
    """Contrast-limited adaptive histogram equalisation of the lightness L*.

    Args:
        clip_limit: Range of the limit.
    """

    clip_limit: tuple[float, float]

    def __call__(self, image: np.ndarray, draws: np.random.Generator) -> np.ndarray:
        return equalize_lightness(image, draws.uniform(*self.clip_limit))


def add_iso_noise(image: np.ndarray, intensity: float, draws: np.random.Generator) -> np.ndarray:
    """Lift the HLS lightness l of each pixel by k x intensity x (1 - l), k Poisson of mean intensity x SD of l.

    Nearly all k are 0. So the number of dots is drawn, itself Poisson, and each dot's pixel: the counts of all
    pixels are then independent Poisson numbers of the same mean, and only pixels with a dot are worked out.

    Args:
        image: uint8 RGB.
        intensity: 0 leaves the picture as it is.
        draws: Where the dots are drawn from.
    """
    import cv2

    red, green, blue = cv2.split(image)
    brightest, darkest = cv2.max(cv2.max(red, green), blue), cv2.min(cv2.min(red, green), blue)
    twice_light = cv2.add(brightest, darkest, dtype=cv2.CV_16U)
    _, deviation = cv2.meanStdDev(twice_light)
    dots = draws.poisson(intensity * float(deviation[0, 0]) / 510 * red.size)
    where, counts = np.unique(draws.integers(red.size, size=dots), return_counts=True)
    noisy = image.copy()
    pixels = noisy.reshape(-1, 3)
    light = twice_light.reshape(-1)[where] * np.float32(0.5)
    pixels[where] = _lifted(pixels[where].astype(np.float32), light, counts.astype(np.float32) * intensity)
    return noisy


def _lifted(pixels: np.ndarray, light: np.ndarray, amount: np.ndarray) -> np.ndarray:
    """Lightness l becomes l + amount (1 - l), at most 1, at the same HLS hue and saturation: (n, 3) of 255."""
    lifted = np.minimum(light + amount * (255 - light), 255)
    # At one saturation a channel's distance from the lightness is proportional to the way to black or white.
    room, new_room = np.minimum(light, 255 - light), np.minimum(lifted, 255 - lifted)
    ratio = np.divide(new_room, room, out=np.zeros_like(room), where=room > 0)
    return np.clip(np.rint(lifted[:, None] + (pixels - light[:, None]) * ratio[:, None]), 0, 255)


def shift_channels(image: np.ndarray, shifts: np.ndarray) -> np.ndarray:
    """Add a number of grey levels to each channel, cut to whole ones towards 0, and keep within 0 to 255."""
    import cv2

    return cv2.add(image, (*np.trunc(shifts).tolist(), 0.0))


def add_normal_noise(image: np.ndarray, deviation: float, draws: np.random.Generator) -> np.ndarray:
    """Add normal noise of this standard deviation in grey levels, cut to whole ones towards 0; keep within 0 to 255.

    So does albumentations: noise of 1.3 levels comes out as 0.9. Small pictures read the numbers from a bank, from a
    drawn place on.
    """
    import cv2

    if 2 * image.size > _BANK_LENGTH:
        noise = draws.standard_normal(image.size, dtype=np.float32)
    else:
        start = int(draws.integers(_BANK_LENGTH - image.size))
        noise = _normal_bank()[start : start + image.size]
    levels = (noise * np.float32(deviation)).astype(np.int16).reshape(image.shape)
    return cv2.add(image, levels, dtype=cv2.CV_8U)


@functools.cache
def _normal_bank() -> np.ndarray:
    return np.random.default_rng(0).standard_normal(_BANK_LENGTH, dtype=np.float32)


def equalize_lightness(image: np.ndarray, clip_limit: float) -> np.ndarray:
    """CLAHE of L* in 8 x 8 tiles at the same a* and b*, by the steps of albumentations on whole channels."""
    import cv2

    lab = cv2.cvtColor(image, cv2.COLOR_RGB2LAB)
    lightness = cv2.createCLAHE(clip_limit, _TILES).apply(cv2.extractChannel(lab, 0))
    cv2.insertChannel(lightness, lab, 0)
    return cv2.cvtColor(lab, cv2.COLOR_LAB2RGB, dst=lab)
