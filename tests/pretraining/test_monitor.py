"""Rank, means and collapse, against NumPy."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cytodino_hf.errors import CollapseError
from cytodino_hf.pretraining.model import IBotOutput
from cytodino_hf.pretraining.monitor import Monitor, effective_rank, refuse_collapse

HEALTHY = {"teacher_entropy": 0.7, "information": 1.2, "feature_rank": 20.0}


class OneProcess:
    """What of accelerate's Accelerator a lone process uses."""

    def reduce(self, value: Any, reduction: str) -> Any:
        return value

    def gather(self, value: Any) -> Any:
        return value


def output(cls: float, answer: float, prototypes: float, features: np.ndarray) -> IBotOutput:
    parts = {"cls": torch.tensor(cls), "patch": torch.tensor(2 * cls), "koleo": torch.tensor(0.5)}
    return IBotOutput(
        torch.tensor(0.0), parts, torch.tensor(answer), torch.tensor(prototypes), torch.tensor(features)
    )


def monitor(window: int = 8) -> Monitor:
    return Monitor(out_dim=16, width=4, device=torch.device("cpu"), window=window)


def test_effective_rank() -> None:
    assert effective_rank(torch.eye(5)) == pytest.approx(5.0)
    assert effective_rank(torch.ones(7, 3)) == pytest.approx(1.0)
    assert effective_rank(torch.zeros(7, 3)) == 0.0
    features = np.random.default_rng(0).normal(size=(30, 6)) * np.array([9, 5, 3, 1, 0.5, 0.1])
    singular = np.sqrt(np.linalg.eigvalsh(features.T @ features))
    shares = singular / singular.sum()
    assert effective_rank(torch.tensor(features)) == pytest.approx(np.exp(-(shares * np.log(shares)).sum()))


def test_means_since_the_last_line_and_rank_of_the_newest_features() -> None:
    rng = np.random.default_rng(1)
    batches = [rng.normal(size=(6, 4)).astype(np.float32) for _ in range(3)]
    watched = monitor(window=8)
    watched.note(output(1.0, 0.9, 1.5, batches[0]))
    watched.report(OneProcess())
    watched.note(output(2.0, 0.5, 1.0, batches[1]))
    watched.note(output(4.0, 0.7, 1.4, batches[2]))
    seen = watched.report(OneProcess())
    assert seen["loss_cls"] == pytest.approx(3.0)
    assert seen["loss_patch"] == pytest.approx(6.0)
    assert seen["loss_koleo"] == pytest.approx(0.5)
    assert seen["teacher_entropy"] == pytest.approx(0.6 / math.log(16))
    assert seen["information"] == pytest.approx(1.2 - 0.6)
    newest = np.concatenate(batches)[-8:]
    assert seen["feature_rank"] == pytest.approx(effective_rank(torch.tensor(newest)))


def test_a_batch_larger_than_the_window() -> None:
    watched = monitor(window=8)
    features = np.random.default_rng(2).normal(size=(20, 4)).astype(np.float32)
    watched.note(output(1.0, 1.0, 1.0, features))
    assert watched.report(OneProcess())["feature_rank"] == pytest.approx(
        effective_rank(torch.tensor(features[:8]))
    )


def test_saved_and_loaded_it_goes_on(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    first, second = (rng.normal(size=(5, 4)).astype(np.float32) for _ in range(2))
    whole, cut, resumed = monitor(), monitor(), monitor()
    for watched in (whole, cut):
        watched.note(output(1.0, 0.5, 0.9, first))
    cut.save(tmp_path / "kept.safetensors")
    resumed.note(output(7.0, 7.0, 7.0, second))  # of a start that failed: forgotten
    resumed.load(tmp_path / "kept.safetensors")
    for watched in (whole, resumed):
        watched.note(output(2.0, 0.6, 0.7, second))
    assert resumed.report(OneProcess()) == whole.report(OneProcess())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"information": 0.001, "teacher_entropy": 0.02}, "gives every picture the same prototypes"),
        ({"information": 0.001, "teacher_entropy": 0.999}, "finds all prototypes alike"),
        ({"feature_rank": 1.001}, "features are the same"),
    ],
)
def test_collapse_is_told_with_what_to_change(changes: dict[str, float], words: str) -> None:
    with pytest.raises(CollapseError, match=words) as caught:
        refuse_collapse(HEALTHY | changes, step=70)
    for knob in ("after step 70", "centering", "teacher_temperature", "base_learning_rate", "momentum"):
        assert knob in str(caught.value)


def test_sure_answers_alone_are_no_collapse() -> None:
    refuse_collapse(HEALTHY, step=70)
    refuse_collapse(HEALTHY | {"teacher_entropy": 0.01}, step=70)
