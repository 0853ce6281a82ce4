"""The order of training images: every image once, and rare classes more often."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler


class OversamplingSampler(Sampler[tuple[int, int, int]]):
    """Every image once plus N (multiplier - 1) weighted draws, shuffled together, anew each epoch.

    A draw, with replacement, takes an image with probability proportional to (n + 1)^-power, n being the
    images of its class. The order depends on labels, seed and epoch alone: no global generator is read or
    moved, so every process and a resumed run see the same order.

    It yields `(index, epoch, position)`: the augmentation is keyed by epoch and position, so that the copies
    of one image differ and the pixels do not depend on which worker makes them.

    Args:
        labels: Label of every training image.
        power: 0 draws all images evenly; 1 draws all classes about evenly.
        multiplier: Length of an epoch in units of the N images, at least 1; 1 is a plain shuffle.
        seed: Zero or more.

    Raises:
        ValueError: No images, or a number out of range.

    Source:
        The weighting is that of CytoDINO (arXiv 2512.17930), with power 0.7 and multiplier 2.
    """

    def __init__(self, labels: Sequence[int], *, power: float, multiplier: float, seed: int) -> None:
        if not len(labels):
            raise ValueError("no training images to sample from")
        if not (np.isfinite(power) and power >= 0):
            raise ValueError(f"oversampling power must be zero or more, not {power}")
        if not (np.isfinite(multiplier) and multiplier >= 1):
            raise ValueError(f"oversampling multiplier must be at least 1, not {multiplier}")
        if seed < 0:
            raise ValueError(f"seed must be zero or more, not {seed}")
        self._labels = np.asarray(labels, dtype=np.int64)
        self.power = power
        self.seed = seed
        self.epoch = 0
        self.draws = round(len(self._labels) * (multiplier - 1))

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration gives."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self._labels) + self.draws

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        epoch = self.epoch
        for position, index in enumerate(self._order(epoch).tolist()):
            yield index, epoch, position

    def expected_views(self) -> np.ndarray:
        """How often each image is seen in one epoch on average: float64 (images,)."""
        return 1.0 + self.draws * self._probabilities()

    def _probabilities(self) -> np.ndarray:
        counts = np.bincount(self._labels)
        weights = (counts[self._labels] + 1.0) ** -self.power
        return weights / weights.sum()

    def _order(self, epoch: int) -> np.ndarray:
        generator = np.random.default_rng(np.random.SeedSequence((self.seed, epoch)))
        images = np.arange(len(self._labels))
        extra = generator.choice(len(images), size=self.draws, p=self._probabilities())
        return generator.permutation(np.concatenate([images, extra]))
