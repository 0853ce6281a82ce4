"""The oversampling order: lengths, frequencies against exact figures, no use of global generators."""

from __future__ import annotations

import random
import time
from collections import Counter

import numpy as np
import pytest
import torch

from cytodino_hf.data.samplers import OversamplingSampler
from cytodino_hf.taxonomy import MLL_IMAGE_COUNTS

LABELS = [0] * 50 + [1] * 9 + [2] * 1


def sampler(power: float = 0.7, multiplier: float = 2.0, seed: int = 2) -> OversamplingSampler:
    return OversamplingSampler(LABELS, power=power, multiplier=multiplier, seed=seed)


def test_every_image_comes_once_and_the_draws_on_top() -> None:
    keys = list(sampler(multiplier=2.5))
    assert len(keys) == len(sampler(multiplier=2.5)) == 150
    assert {index for index, _, _ in keys} == set(range(60))
    assert [position for _, _, position in keys] == list(range(150))
    assert all(type(value) is int for key in keys for value in key)


def test_multiplier_one_is_a_plain_shuffle() -> None:
    order = [index for index, _, _ in sampler(multiplier=1.0)]
    assert sorted(order) == list(range(60))
    assert order != list(range(60))


def test_fractions_of_an_epoch_are_rounded() -> None:
    assert len(OversamplingSampler([0] * 7, power=0.5, multiplier=1.5, seed=0)) == 7 + 4
    assert len(OversamplingSampler([0] * 10, power=0.5, multiplier=1.04, seed=0)) == 10


def test_each_epoch_has_its_own_order_and_gives_it_again() -> None:
    one = sampler()
    orders = []
    for epoch in (0, 1, 2, 1):
        one.set_epoch(epoch)
        keys = list(one)
        assert {key[1] for key in keys} == {epoch}
        orders.append([key[0] for key in keys])
    assert orders[1] == orders[3]
    assert orders[0] != orders[1] != orders[2]
    assert orders[0] == [key[0] for key in sampler()]
    assert orders[0] != [key[0] for key in sampler(seed=4)]


def test_seed_and_epoch_do_not_stand_for_one_another() -> None:
    first, second = sampler(seed=0), sampler(seed=1)
    first.set_epoch(1)
    assert [key[0] for key in first] != [key[0] for key in second]


def test_a_change_of_epoch_does_not_touch_an_order_under_way() -> None:
    one = sampler()
    expected = list(one)
    keys = iter(one)
    begun = [next(keys)]
    one.set_epoch(9)
    assert begun + list(keys) == expected


def test_global_generators_are_neither_read_nor_moved() -> None:
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    expected = list(sampler())
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()
    assert random.getstate() == before[2]
    torch.manual_seed(2)
    np.random.seed(2)
    assert list(sampler()) == expected


def test_draws_follow_count_plus_one_to_the_minus_power() -> None:
    """Expected views of an image: 1 + draws x (n + 1)^-power / sum over images, worked out class by class."""
    one = sampler(power=0.7, multiplier=3.0)
    counts = {0: 50, 1: 9, 2: 1}
    total = sum(n * (n + 1) ** -0.7 for n in counts.values())
    expected = {label: 1 + 120 * (n + 1) ** -0.7 / total for label, n in counts.items()}
    for label, first in ((0, 0), (1, 50), (2, 59)):
        assert one.expected_views()[first] == pytest.approx(expected[label], rel=1e-12)
    seen: Counter[int] = Counter()
    for epoch in range(1500):
        one.set_epoch(epoch)
        seen.update(LABELS[index] for index, _, _ in one)
    for label, n in counts.items():
        assert seen[label] / (1500 * n) == pytest.approx(expected[label], rel=0.04)


def test_power_zero_draws_all_images_evenly() -> None:
    np.testing.assert_allclose(sampler(power=0.0).expected_views(), 2.0)


def mll_training_labels() -> tuple[list[str], np.ndarray]:
    """Images per class of the published training fold: 20 % (rounded down) of a class go to validation."""
    codes = sorted(MLL_IMAGE_COUNTS)
    counts = [MLL_IMAGE_COUNTS[c] - max(1, int(MLL_IMAGE_COUNTS[c] * 0.2)) for c in codes]
    return codes, np.repeat(np.arange(21), counts)


def test_views_and_shares_of_the_full_set_are_the_known_figures() -> None:
    """Published split, power .7, multiplier 2: figures computed exactly from the class counts elsewhere."""
    codes, labels = mll_training_labels()
    views = OversamplingSampler(labels, power=0.7, multiplier=2.0, seed=0).expected_views()
    first = {code: int(np.argmax(labels == i)) for i, code in enumerate(codes)}
    for code, expected, tolerance in (
        ("ABE", 138, 0.5), ("KSC", 50, 0.5), ("FGC", 46, 0.5), ("LYI", 37, 0.5),
        ("OTH", 13.8, 0.05), ("HAC", 11.2, 0.06), ("BAS", 10.6, 0.05), ("BLA", 2.0, 0.06), ("NGS", 1.5, 0.05),
    ):  # fmt: skip
        assert views[first[code]] == pytest.approx(expected, abs=tolerance)
    share = np.bincount(labels, weights=views) / views.sum()
    assert 100 * share[codes.index("ABE")] == pytest.approx(0.352, abs=5e-4)
    assert share.max() / share.min() == pytest.approx(37, abs=0.5)
    assert np.exp(-(share * np.log(share)).sum()) == pytest.approx(14.96, abs=0.01)


def test_the_full_set_takes_a_fraction_of_a_second() -> None:
    _, labels = mll_training_labels()
    one = OversamplingSampler(labels, power=0.7, multiplier=2.0, seed=0)
    start = time.process_time()
    assert sum(1 for _ in one) == 2 * len(labels)
    assert time.process_time() - start < 2.0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"multiplier": 0.9}, "multiplier must be at least 1"),
        ({"multiplier": float("nan")}, "multiplier"),
        ({"power": -0.1}, "power must be zero or more"),
        ({"seed": -1}, "seed must be zero or more"),
    ],
)
def test_numbers_out_of_range_stop(values: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OversamplingSampler(LABELS, **{"power": 0.7, "multiplier": 2.0, "seed": 0, **values})


def test_no_images_stop() -> None:
    with pytest.raises(ValueError, match="no training images"):
        OversamplingSampler([], power=0.7, multiplier=2.0, seed=0)


def test_a_data_loader_hands_the_keys_on() -> None:
    class Keys(torch.utils.data.Dataset):
        def __getitem__(self, key: tuple[int, int, int]) -> tuple[int, int, int]:
            return key

        def __len__(self) -> int:
            return len(LABELS)

    loader = torch.utils.data.DataLoader(Keys(), batch_size=16, sampler=sampler())
    keys = [key for batch in loader for key in zip(*(column.tolist() for column in batch), strict=True)]
    assert keys == list(sampler())
