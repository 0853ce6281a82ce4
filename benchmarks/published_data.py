"""The data path as CytoDINO published it, plainly: Pillow, a list of albumentations ops, float32, one by one.

Source: what arXiv 2512.17930 and its README say (ops, order, probabilities, ranges), in code of our own. It is the
yardstick, so it is neither slowed nor mended: black corners and JPEG quality from 9 belong to it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from glob import glob
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

IMAGE_SIZE_PX = 256
#: Of the MLL set, as published.
IMAGE_MEAN = (0.5631, 0.4959, 0.7355)
IMAGE_STD = (0.2419, 0.2835, 0.1761)
_SUFFIXES = ("jpg", "jpeg", "png", "bmp", "tif", "tiff")


def training_transform() -> Any:
    """Resize, the published variation in its order, normalise, to a tensor."""
    ops = _albumentations()
    import cv2

    return ops.Compose(
        [
            ops.Resize(IMAGE_SIZE_PX, IMAGE_SIZE_PX),
            ops.HorizontalFlip(p=0.5),
            ops.VerticalFlip(p=0.5),
            ops.Rotate(limit=180, border_mode=cv2.BORDER_CONSTANT, fill=0, p=0.5),
            ops.OneOf(
                [
                    ops.ColorJitter(
                        brightness=(0.9, 1.1),
                        contrast=(0.9, 1.1),
                        saturation=(0.85, 1.15),
                        hue=(-0.03, 0.03),
                        p=1,
                    ),
                    ops.RGBShift(r_shift_limit=15, g_shift_limit=15, b_shift_limit=15, p=1),
                ],
                p=0.5,
            ),
            ops.OneOf(
                [
                    ops.GaussianBlur(blur_limit=(3, 5), p=1),
                    ops.ISONoise(color_shift=(0.01, 0.05), intensity=(0.1, 0.5), p=1),
                    ops.ImageCompression(quality_range=(9, 100), p=1),
                ],
                p=0.3,
            ),
            ops.CLAHE(clip_limit=2.0, p=0.3),
            *_to_tensor(),
        ]
    )


def evaluation_transform() -> Any:
    """Resize, normalise, to a tensor."""
    ops = _albumentations()
    return ops.Compose([ops.Resize(IMAGE_SIZE_PX, IMAGE_SIZE_PX), *_to_tensor()])


def _to_tensor() -> list[Any]:
    ops = _albumentations()
    return [ops.Normalize(mean=IMAGE_MEAN, std=IMAGE_STD), ops.ToTensorV2()]


def _albumentations() -> Any:
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    import albumentations

    return albumentations


class PublishedDataset(Dataset[tuple[torch.Tensor, int]]):
    """Open with Pillow, convert to RGB, make an array, transform.

    Args:
        paths: Image files.
        labels: One label for each.
        transform: One of the two above.
    """

    def __init__(self, paths: Sequence[str], labels: Sequence[int], transform: Any) -> None:
        self.paths = list(paths)
        self.labels = list(labels)
        self.transform = transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
        picture = np.array(Image.open(self.paths[row]).convert("RGB"))
        return self.transform(image=picture)["image"], self.labels[row]


def index_folder(root: Path) -> list[tuple[str, str]]:
    """Files and classes by one glob for each class and spelling of a suffix, twelve a class."""
    found = []
    for code in sorted(os.listdir(root)):
        for suffix in _SUFFIXES:
            for spelling in (suffix, suffix.upper()):
                found += [
                    (path, code) for path in glob(str(root / code / "**" / f"*.{spelling}"), recursive=True)
                ]
    return found
