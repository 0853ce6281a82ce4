"""Which cell comes next, and that its views depend on the key alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from cytodino_hf.data.pictures import pictures_of
from cytodino_hf.data.samples import CellImages
from cytodino_hf.data.sources import image_folder
from cytodino_hf.pretraining.view_dataset import MixtureSampler, ViewDataset, shares_to_draws
from cytodino_hf.pretraining.views import ViewsSection
from cytodino_hf.taxonomy import MLL


def draw_masks(draws: np.random.Generator) -> np.ndarray:
    return draws.random((2, 4)) < 0.5


@pytest.fixture(scope="module")
def images(make_images: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> CellImages:
    root = make_images(tmp_path_factory.mktemp("cells"), per_class=4)
    return image_folder.load(root, MLL, image_folder.Options())


def dataset(images: CellImages, *, seed: int = 0, local_crops: int = 0) -> ViewDataset:
    pictures = pictures_of(images)
    rows = [np.array([2, 5, 7]), np.empty(0, np.int64), np.array([0, 11])]
    views = ViewsSection(global_size_px=16, local_crops=local_crops, local_size_px=8)
    return ViewDataset([pictures] * 3, rows, views, draw_masks, seed=seed)


def test_rows_are_counted_on_from_source_to_source(images: CellImages) -> None:
    data, pictures = dataset(images), pictures_of(images)
    assert len(data) == 5
    for row, place in enumerate((2, 5, 7, 0, 11)):
        assert np.array_equal(data.original(row), pictures.read(place))


def test_a_batch_is_what_the_trainer_takes(images: CellImages) -> None:
    batch = dataset(images, local_crops=3).__getitems__([(0, 0, 0), (4, 0, 1)])
    assert {name: (tuple(value.shape), value.dtype) for name, value in batch.items()} == {
        "global_views": ((2, 2, 16, 16, 3), torch.uint8),
        "local_views": ((2, 3, 8, 8, 3), torch.uint8),
        "masks": ((2, 2, 4), torch.bool),
        "rows": ((2,), torch.int64),
    }
    assert batch["rows"].tolist() == [0, 4]
    assert "local_views" not in dataset(images)[0, 0, 0]


def test_what_is_drawn_depends_on_seed_epoch_and_position_alone(images: CellImages) -> None:
    data = dataset(images, local_crops=1)
    whole = data.__getitems__([(1, 3, 7), (2, 3, 8)])
    alone = data[2, 3, 8]
    for name, value in alone.items():
        assert torch.equal(value, whole[name][1])
    views = [
        data[2, 3, 8]["global_views"],
        data[2, 4, 8]["global_views"],
        data[2, 3, 9]["global_views"],
        dataset(images, seed=1)[2, 3, 8]["global_views"],
    ]
    assert len({view.numpy().tobytes() for view in views}) == 4
    assert not torch.equal(views[0][0], views[0][1])


def test_the_number_of_workers_changes_nothing(images: CellImages) -> None:
    sampler = MixtureSampler([3, 0, 2], [6, 0, 3], seed=4)
    sampler.set_epoch(2)
    runs = [
        list(DataLoader(dataset(images), batch_size=4, sampler=sampler, num_workers=workers, collate_fn=dict))
        for workers in (0, 2)
    ]
    assert [len(batch["rows"]) for batch in runs[0]] == [4, 4, 1]
    for one, other in zip(*runs, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_each_epoch_has_exactly_the_draws_of_each_source() -> None:
    sampler = MixtureSampler([50, 7, 30], [40, 20, 0], seed=0)
    seen: Counter[int] = Counter()
    for epoch in range(5):
        sampler.set_epoch(epoch)
        keys = list(sampler)
        assert len(keys) == len(sampler) == 60
        assert [key[1:] for key in keys] == [(epoch, position) for position in range(60)]
        rows = [row for row, _, _ in keys]
        assert sum(row < 50 for row in rows) == 40
        assert sum(50 <= row < 57 for row in rows) == 20
        seen.update(rows)
    # 5 x 40 draws of 50 images are four each; 5 x 20 of 7 are 14 or 15 each.
    assert {seen[row] for row in range(50)} == {4}
    assert sorted(seen[row] for row in range(50, 57)) == [14] * 5 + [15] * 2


def test_the_order_is_mixed_and_depends_on_seed_and_epoch_alone() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        sampler = MixtureSampler([200, 200], [200, 200], seed=seed)
        sampler.set_epoch(epoch)
        return [row for row, _, _ in sampler]

    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(seed, epoch)) for seed in range(2) for epoch in range(2)}) == 4
    first_half = sum(row < 200 for row in order(0, 0)[:200])
    assert 70 < first_half < 130  # hypergeometric: mean 100, standard deviation 5


def test_every_order_can_come() -> None:
    """Rounds and mixing drawn from one key would be a permutation twice over, which is never an odd one."""
    orders = {tuple(row for row, _, _ in MixtureSampler([3], [3], seed=seed)) for seed in range(80)}
    assert len(orders) == 6


def test_whole_numbers_of_draws() -> None:
    assert shares_to_draws([840, 3994], 4834) == [840, 3994]
    assert shares_to_draws([1, 1, 1], 100) == [34, 33, 33]
    assert shares_to_draws([0.7, 0.2, 0.1], 10) == [7, 2, 1]
    assert shares_to_draws([0.0, 2.0], 9) == [0, 9]
    for images in range(1, 200):
        assert sum(shares_to_draws([0.31, 0.17, 0.52], images)) == images
