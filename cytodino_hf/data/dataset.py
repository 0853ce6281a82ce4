"""Rows become batches: read, vary (training only), cut and resize; uint8 leaves the workers."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Dataset, get_worker_info

from .pictures import pictures_of
from .samples import CellImages

if TYPE_CHECKING:
    from ..model.image_processing_cytodino import CytoDinoImageProcessor
    from .transforms import Augmentation

#: What the sampler hands to the training set: row, epoch, position in the epoch.
SampleKey = tuple[int, int, int]


# Pictures worked on at once: few enough that the core's own cache and the memory just freed serve all of them.
_AT_ONCE = 4
# Just below the largest block that glibc learns from (32 MiB).
_LARGEST_KEPT_BLOCK = 31 << 20


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
        self.labels = images.labels
        # Plain columns: decoding a row of the table takes longer than reading its picture out of a pack.
        self._pictures = pictures_of(images)
        self._label_of_row = np.asarray(self.labels, dtype=np.int64)
        self._ids = images.dataset.select_columns(["id"]).with_format("arrow")[:]["id"].combine_chunks()

    def __len__(self) -> int:
        return len(self.labels)

    def ids(self, rows: Sequence[int]) -> list[str]:
        """Ids of some rows, to name them in a message."""
        return [self._ids[int(row)].as_py() for row in rows]

    def original(self, row: int) -> np.ndarray:
        """The picture as it is in the file, uint8 (height, width, 3), writable."""
        return np.require(self._pictures.read(row), requirements=["W"])

    def pixels(self, key: int | SampleKey) -> np.ndarray:
        """The picture, uint8 (height, width, 3); perhaps not writable.

        Raises:
            DataError: The file cannot be read; names it.
        """
        return self._laid_out(self._pictures.read(_row(key)), key)

    def _laid_out(self, picture: np.ndarray, key: int | SampleKey) -> np.ndarray:
        picture = self.processor.hide_center(picture)
        if isinstance(key, int) or self.augmentation is None:
            return self.processor.crop_and_resize(picture)
        _, epoch, position = key
        return self.augmentation(picture, self.processor.crop_and_resize, key=(self.seed, epoch, position))

    def __getitem__(self, key: int | SampleKey) -> dict[str, Any]:
        row = _row(key)
        return {"pixel_values": self.pixels(key), "labels": self.labels[row], "rows": row}

    def __getitems__(self, keys: Sequence[int | SampleKey]) -> dict[str, torch.Tensor]:
        """A whole batch at once, as `collate` makes it of single items; DataLoader asks for it."""
        keep_to_one_core()
        keep_freed_memory()
        assert keys, "a batch of no images"
        rows = [_row(key) for key in keys]
        pictures = [self._pictures.read(rows[0])]
        pixels = np.empty((len(keys), *self.processor.size_after(pictures[0]), 3), np.uint8)
        pile = np.empty((_AT_ONCE, *pictures[0].shape), np.uint8)
        for start in range(0, len(keys), _AT_ONCE):
            some = slice(start, start + _AT_ONCE)
            for row in rows[some][len(pictures) :]:
                pictures.append(self._pictures.read(row, pile[len(pictures)]))
            self._fill(pixels[some], pictures, keys[some], pile)
            pictures = []
        return _batch(pixels, self._label_of_row[rows], np.asarray(rows))

    def _fill(
        self,
        pixels: np.ndarray,
        pictures: list[np.ndarray],
        keys: Sequence[int | SampleKey],
        pile: np.ndarray,
    ) -> None:
        """Work on pictures that are read already: a decoder between the other steps slows both."""
        if self.augmentation is not None and not all(isinstance(key, int) for key in keys):
            for place, (picture, key) in enumerate(zip(pictures, keys, strict=True)):
                pixels[place] = self._laid_out(picture, key)
            return
        pictures = [self.processor.hide_center(picture) for picture in pictures]
        self.processor.crop_and_resize_batch(_piled(pictures, pile), pixels)


def _piled(pictures: list[np.ndarray], pile: np.ndarray) -> np.ndarray | list[np.ndarray]:
    """Pictures of one size as one array, without a copy of those that were decoded into their place."""
    if any(picture.shape != pile.shape[1:] for picture in pictures):
        return pictures
    for picture, place in zip(pictures, pile, strict=False):
        if not np.may_share_memory(picture, place):
            place[...] = picture
    return pile[: len(pictures)]


def _row(key: int | SampleKey) -> int:
    return key if isinstance(key, int) else key[0]


def keep_to_one_core() -> None:
    """In a worker OpenCV works alone: its threads do not survive the fork, and the cores are for the other workers."""
    if get_worker_info() is not None:
        import cv2

        cv2.setNumThreads(0)


@functools.cache
def keep_freed_memory() -> None:
    """Let glibc keep the pictures' memory for the next ones, a sixth of the time of an evaluation item.

    Once a block this large was freed, blocks up to its size are no longer given back to the system each time, to be
    cleared and mapped anew (mallopt(3), M_MMAP_THRESHOLD, "dynamic"). Other systems' allocators take no notice.
    """
    np.empty(_LARGEST_KEPT_BLOCK, np.uint8)  # freed at once


def collate(items: Mapping[str, torch.Tensor] | Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
    """One batch: uint8 `pixel_values` (batch, 3, height, width), channels last in memory, int64 `labels` and `rows`.

    Args:
        items: Single items of a `CellDataset`, or what its `__getitems__` gave, which is a batch already.
    """
    if isinstance(items, Mapping):
        return dict(items)
    pixels = np.stack([item["pixel_values"] for item in items])
    labels, rows = (np.array([item[name] for item in items]) for name in ("labels", "rows"))
    return _batch(pixels, labels, rows)


def _batch(pixels: np.ndarray, labels: np.ndarray, rows: np.ndarray) -> dict[str, torch.Tensor]:
    return {
        "pixel_values": torch.from_numpy(pixels).permute(0, 3, 1, 2),
        "labels": torch.from_numpy(labels.astype(np.int64)),
        "rows": torch.from_numpy(rows.astype(np.int64)),  # to name images later
    }


def pick_examples(images: CellImages, per_class: int) -> dict[str, list[int]]:
    """Row numbers of the first few images of each class, for pictures of what was trained on."""
    chosen: dict[str, list[int]] = {code: [] for code in images.taxonomy.codes}
    for row, label in enumerate(images.labels):
        rows = chosen[images.taxonomy.codes[label]]
        if len(rows) < per_class:
            rows.append(row)
    return chosen
