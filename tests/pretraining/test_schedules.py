"""Schedules against the arrays of DINO and iBOT, written out in NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from cytodino_hf.pretraining.recipe import ObjectiveSection
from cytodino_hf.pretraining.schedules import (
    cosine,
    is_last_layer_frozen,
    teacher_momentum,
    teacher_temperature,
)


@pytest.mark.parametrize("warmup", [0, 1, 2, 10])
def test_cosine_with_warm_up_is_the_published_array(warmup: int) -> None:
    steps, first, last = 40, 5e-4, 1e-6
    line = np.linspace(0, first, warmup) if warmup > 1 else np.full(warmup, first)
    rest = np.arange(steps - warmup)
    curve = last + 0.5 * (first - last) * (1 + np.cos(np.pi * rest / len(rest)))
    found = [cosine(step, steps, first, last, warmup_steps=warmup) for step in range(steps)]
    np.testing.assert_allclose(found, np.concatenate([line, curve]), rtol=1e-12)
    assert cosine(steps, steps, first, last, warmup_steps=warmup) == last
    assert cosine(steps + 5, steps, first, last, warmup_steps=warmup) == last


def test_a_run_that_is_all_warm_up_ends_at_its_last_value() -> None:
    assert [cosine(step, 3, 1.0, 0.25, warmup_steps=3) for step in range(5)] == [0, 0.5, 1, 0.25, 0.25]


def test_momentum_rises_to_one() -> None:
    objective = ObjectiveSection()
    assert teacher_momentum(objective, 0, 1000) == pytest.approx(0.996)
    assert teacher_momentum(objective, 250, 1000) == pytest.approx(1 - 0.004 * (1 + np.sqrt(0.5)) / 2)
    assert teacher_momentum(objective, 500, 1000) == pytest.approx(0.998)
    assert teacher_momentum(objective, 1000, 1000) == 1.0


def test_temperature_rises_in_a_straight_line_then_stays() -> None:
    objective = ObjectiveSection()
    found = [teacher_temperature(objective, step, 100) for step in (0, 10, 15, 29, 30, 99, 100)]
    np.testing.assert_allclose(found, [0.04, 0.05, 0.055, 0.069, 0.07, 0.07, 0.07], rtol=1e-12)
    at_once = ObjectiveSection(teacher_temperature_warmup=0.0)
    assert teacher_temperature(at_once, 0, 100) == 0.07


def test_the_last_layer_stands_still_in_the_first_share_of_the_steps() -> None:
    objective = ObjectiveSection(freeze_last_layer=0.1)
    assert [is_last_layer_frozen(objective, step, 50) for step in (0, 4, 5, 6)] == [True, True, False, False]
    assert not is_last_layer_frozen(ObjectiveSection(freeze_last_layer=0.0), 0, 50)
