"""Rows become tensors: read, vary (training only), cut and resize; uint8 leaves the workers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Dataset

from ..errors import DataError
from .images import read_rgb
from .samples import CellImages

if TYPE_CHECKING:
    from ..model.image_processing_cytodino import CytoDinoImageProcessor
    from .transforms import Augmentation

#: What the sampler hands to the training set: row, epoch, position in the epoch.
SampleKey = tuple[int, int, int]


class CellDataset(Dataset[dict[str, Any]]):
    """Images of one fold as the model takes them but for the normalisation.

    Indexed with a row number it gives the picture as evaluation and `pipeline()` see it. Indexed with a key
    `(row, epoch, position)` it varies the picture by draws that depend on `(seed, epoch, position)` alone, so that
    the number of workers changes nothing and a repeated image is never varied twice alike.

    Args:
        images: The rows.
        processor: Gives the geometry (`crop_and_resize`).
        augmentation: Applied to keys; None leaves the picture as it is.
        seed: Seed of the variation.
    """

    def __init__(
        self,
        images: CellImages,
        processor: CytoDinoImageProcessor,
        augmentation: Augmentation | None = None,
        *,
        seed: int = 0,
    ) -> None:
        self.processor = processor
        self.augmentation = augmentation
        self.seed = seed
        self.rows = images.dataset
        self.labels = images.labels

    def __len__(self) -> int:
        return len(self.labels)

    def original(self, row: int) -> np.ndarray:
        """The picture as it is in the file, uint8 (height, width, 3)."""
        return read_rgb(self.rows[row]["image"])

    def pixels(self, key: int | SampleKey) -> np.ndarray:
        """The picture, uint8 (height, width, 3).

        Raises:
            DataError: The file cannot be read; names it.
        """
        row = key if isinstance(key, int) else key[0]
        picture = self.processor.hide_center(self.original(row))
        if isinstance(key, int) or self.augmentation is None:
            return self.processor.crop_and_resize(picture)
        _, epoch, position = key
        return self.augmentation(picture, self.processor.crop_and_resize, key=(self.seed, epoch, position))

    def __getitem__(self, key: int | SampleKey) -> dict[str, Any]:
        row = key if isinstance(key, int) else key[0]
        return {"pixel_values": self.pixels(key), "labels": self.labels[row]}


def collate(items: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
    """Stack to uint8 `pixel_values` (batch, 3, height, width), channels last in memory, and int64 `labels`."""
    pixels = torch.from_numpy(np.stack([item["pixel_values"] for item in items]))
    return {
        "pixel_values": pixels.permute(0, 3, 1, 2),
        "labels": torch.tensor([item["labels"] for item in items], dtype=torch.int64),
    }


def read_into_memory(images: CellImages) -> CellImages:
    """The same rows with the encoded bytes of every file in the table, read once (`data.cache: bytes`).

    Raises:
        DataError: A file cannot be read; names it.
    """
    from datasets import Image
    from tqdm.auto import tqdm

    content = []
    for path in tqdm(images.dataset["path"], desc="reading images", unit="image"):
        file = images.root / path
        try:
            content.append({"path": str(file), "bytes": Path(file).read_bytes()})
        except OSError as error:
            raise DataError(f"{file}: cannot be read ({error})") from error
    dataset = images.dataset.remove_columns("image").add_column("image", content, feature=Image(decode=False))
    return replace(images, dataset=dataset)


def pick_examples(images: CellImages, per_class: int) -> dict[str, list[int]]:
    """Row numbers of the first few images of each class, for pictures of what was trained on."""
    chosen: dict[str, list[int]] = {code: [] for code in images.taxonomy.codes}
    for row, label in enumerate(images.labels):
        rows = chosen[images.taxonomy.codes[label]]
        if len(rows) < per_class:
            rows.append(row)
    return chosen
