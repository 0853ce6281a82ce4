"""Which cell comes next, and its views: a sampler that mixes sources, a data set that draws."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset, Sampler

from ..data.dataset import SampleKey, keep_freed_memory, keep_to_one_core
from ..data.pictures import Pictures
from .views import Views, ViewsSection

# What random numbers of the sampler are for.
_ROUNDS, _MIXED = 1, 2
#: Draws the masks of the global views of one picture: bool (2, patches).
DrawMasks = Callable[[np.random.Generator], npt.NDArray[np.bool_]]


class ViewDataset(Dataset[dict[str, Any]]):
    """Views and masks of the images of a mixture.

    Indexed with `(row, epoch, position)`. What is drawn depends on `(seed, epoch, position)` alone, so that the number
    of workers changes nothing and an image that comes twice is never seen twice alike.

    Args:
        pictures: Of each source.
        rows: Of each source, the rows of `pictures` that are drawn; they are counted on from source to source.
        views: How a picture becomes views.
        masks: Draws the masks.
        seed: Zero or more.
    """

    def __init__(
        self,
        pictures: Sequence[Pictures],
        rows: Sequence[npt.NDArray[np.int64]],
        views: ViewsSection,
        masks: DrawMasks,
        *,
        seed: int,
    ) -> None:
        self.views, self.masks, self.seed = views, masks, seed
        self._pictures, self._rows = list(pictures), list(rows)
        self._starts = np.cumsum([0, *map(len, rows)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def original(self, row: int) -> np.ndarray:
        """The picture as it is in the file, uint8 (height, width, 3); perhaps not writable."""
        source = int(np.searchsorted(self._starts, row, side="right")) - 1
        return self._pictures[source].read(int(self._rows[source][row - self._starts[source]]))

    def __getitem__(self, key: SampleKey) -> dict[str, torch.Tensor]:
        return {name: values[0] for name, values in self.__getitems__([key]).items()}

    def __getitems__(self, keys: Sequence[SampleKey]) -> dict[str, torch.Tensor]:
        """A whole batch at once; DataLoader asks for it.

        Returns:
            `global_views` uint8 (batch, 2, size, size, 3), `masks` bool (batch, 2, patches), `rows` int64 (batch,), and
            `local_views` uint8 (batch, crops, size, size, 3) where there are any.
        """
        keep_to_one_core()
        keep_freed_memory()
        section = self.views
        draw_views = Views(section)
        size, small = section.global_size_px, section.local_size_px
        global_views = np.empty((len(keys), 2, size, size, 3), np.uint8)
        local_views = np.empty((len(keys), section.local_crops, small, small, 3), np.uint8)
        masks = []
        for place, (row, epoch, position) in enumerate(keys):
            draws = np.random.default_rng(np.random.SeedSequence((self.seed, epoch, position)))
            masks.append(self.masks(draws))
            draw_views(self.original(row), draws, global_views[place], local_views[place])
        batch = {
            "global_views": torch.from_numpy(global_views),
            "masks": torch.from_numpy(np.stack(masks)),
            "rows": torch.tensor([row for row, _, _ in keys], dtype=torch.int64),
        }
        return batch | ({"local_views": torch.from_numpy(local_views)} if section.local_crops else {})


class MixtureSampler(Sampler[SampleKey]):
    """Draws images of several sources, each source its share of every epoch.

    Within a source the images come in one shuffled round after another, and an epoch goes on where the last one
    stopped: after any number of epochs no image was drawn more than once oftener than another of its source. The order
    depends on seed and epoch alone, so every process and a resumed run see the same.

    Args:
        sizes: Images of each source.
        draws: Of each source in an epoch.
        seed: Zero or more.
    """

    def __init__(self, sizes: Sequence[int], draws: Sequence[int], *, seed: int) -> None:
        self.sizes, self.draws, self.seed = list(sizes), list(draws), seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration gives."""
        self.epoch = epoch

    def __len__(self) -> int:
        return sum(self.draws)

    def __iter__(self) -> Iterator[SampleKey]:
        epoch = self.epoch
        starts = np.cumsum([0, *self.sizes])
        drawn = np.concatenate([starts[i] + self._of_source(i, epoch) for i in range(len(self.sizes))])
        mixed = _generator(_MIXED, self.seed, epoch).permutation(drawn)
        for position, row in enumerate(mixed.tolist()):
            yield row, epoch, position

    def _of_source(self, source: int, epoch: int) -> npt.NDArray[np.int64]:
        """What an epoch takes out of the endless row of rounds of a source."""
        size, draws = self.sizes[source], self.draws[source]
        if not draws:
            return np.empty(0, np.int64)
        first, last = epoch * draws, (epoch + 1) * draws
        rounds = range(first // size, -(-last // size))
        order = np.concatenate([self._round(source, number) for number in rounds])
        return order[first - rounds.start * size : last - rounds.start * size]

    def _round(self, source: int, number: int) -> npt.NDArray[np.int64]:
        return _generator(_ROUNDS, self.seed, source, number).permutation(self.sizes[source])


def _generator(purpose: int, *key: int) -> np.random.Generator:
    # Without the purpose (0, 1) and (0, 1, 0) would be one key.
    return np.random.default_rng(np.random.SeedSequence(key, spawn_key=(purpose,)))


def shares_to_draws(shares: Sequence[float], images: int) -> list[int]:
    """Whole numbers in the ratio of some shares that sum to `images`: rounded down, the rest to the largest parts."""
    exact = np.asarray(shares, dtype=np.float64) / np.sum(shares) * images
    draws = np.floor(exact).astype(np.int64)
    most_missing = np.argsort(-(exact - draws), kind="stable")
    draws[most_missing[: images - int(draws.sum())]] += 1
    return [int(count) for count in draws]
