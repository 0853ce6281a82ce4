"""Rank, means and collapse, against NumPy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cytodino_hf.errors import CheckpointError, CollapseError
from cytodino_hf.pretraining.losses import answers_in_sum
from cytodino_hf.pretraining.model import IBotOutput
from cytodino_hf.pretraining.monitor import LEAST_ANSWERS, Monitor, collapse, effective_rank

HEALTHY = {"teacher_entropy": 0.7, "information": 1.2, "feature_rank": 20.0}
EMPTY = {"teacher_entropy": 0.02, "information": 0.001}


class OneProcess:
    """What of accelerate's Accelerator a lone process uses."""

    def reduce(self, value: Any, reduction: str) -> Any:
        return value

    def gather(self, value: Any) -> Any:
        return value


class Twins(OneProcess):
    """Two processes that saw the same."""

    def reduce(self, value: Any, reduction: str) -> Any:
        return value * 2 if reduction == "sum" else value


def softmax(x: np.ndarray) -> np.ndarray:
    powers = np.exp(x)
    return powers / powers.sum(axis=-1, keepdims=True)


def output(
    cls: float, features: np.ndarray, answers: np.ndarray, patches: np.ndarray | None = None
) -> IBotOutput:
    parts = {"cls": torch.tensor(cls), "patch": torch.tensor(2 * cls), "koleo": torch.tensor(0.5)}
    said = {"cls": answers, "patch": patches}
    return IBotOutput(
        torch.tensor(0.0),
        parts,
        {
            name: answers_in_sum(torch.tensor(found, dtype=torch.float32))
            for name, found in said.items()
            if found is not None
        },
        torch.tensor(features),
    )


def drawn(seed: int, rows: int = 16, width: int = 6) -> np.ndarray:
    return softmax(2 * np.random.default_rng(seed).normal(size=(rows, width)))


def features(seed: int, rows: int = 6) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, 4)).astype(np.float32)


def monitor(window: int = 8, answers: Sequence[str] = ("cls",)) -> Monitor:
    return Monitor(out_dim=6, width=4, device=torch.device("cpu"), answers=answers, window=window)


def told(p: np.ndarray) -> tuple[float, float]:
    """Mean entropy as a share of its maximum, and information, by hand."""
    mean = p.mean(axis=0)
    of_answer = -(p * np.log(p)).sum(axis=1).mean()
    return of_answer / np.log(p.shape[1]), -(mean * np.log(mean)).sum() - of_answer


def test_effective_rank() -> None:
    assert effective_rank(torch.eye(5)) == pytest.approx(5.0)
    assert effective_rank(torch.ones(7, 3)) == pytest.approx(1.0)
    assert effective_rank(torch.zeros(7, 3)) == 0.0
    features = np.random.default_rng(0).normal(size=(30, 6)) * np.array([9, 5, 3, 1, 0.5, 0.1])
    singular = np.sqrt(np.linalg.eigvalsh(features.T @ features))
    shares = singular / singular.sum()
    assert effective_rank(torch.tensor(features)) == pytest.approx(np.exp(-(shares * np.log(shares)).sum()))


def test_means_since_the_last_line_and_rank_of_the_newest_features() -> None:
    batches = [features(seed) for seed in range(3)]
    watched = monitor(window=8)
    watched.note(output(1.0, batches[0], drawn(0)))
    watched.report(OneProcess())
    assert not watched.has_news
    watched.note(output(2.0, batches[1], drawn(1)))
    watched.note(output(4.0, batches[2], drawn(2, rows=20)))
    assert watched.has_news
    seen = watched.report(OneProcess())
    assert seen["loss_cls"] == pytest.approx(3.0)
    assert seen["loss_patch"] == pytest.approx(6.0)
    assert seen["loss_koleo"] == pytest.approx(0.5)
    wanted = told(np.concatenate([drawn(1), drawn(2, rows=20)]))
    assert (seen["teacher_entropy"], seen["information"]) == pytest.approx(wanted, rel=1e-4)
    newest = np.concatenate(batches)[-8:]
    assert seen["feature_rank"] == pytest.approx(effective_rank(torch.tensor(newest)))


def test_micro_batches_of_one_picture_do_not_look_collapsed() -> None:
    """One by one each answer is its own mean and tells nothing; taken together they tell who is who."""
    watched, answers = monitor(), np.eye(6)[np.arange(18) % 6] * 0.994 + 0.001
    for row, answer in enumerate(answers):
        watched.note(output(1.0, features(row, rows=1), answer[None]))
    seen = watched.report(OneProcess())
    assert seen["information"] == pytest.approx(told(answers)[1], rel=1e-4)
    assert seen["information"] > 1.7
    assert watched.judge(seen, 70) is None


def test_patches_with_a_head_of_their_own_are_watched_too() -> None:
    watched = monitor(answers=("cls", "patch"))
    patches = np.tile(softmax(np.arange(6.0)), (40, 1))
    watched.note(output(1.0, features(0), drawn(0), patches))
    seen = watched.report(OneProcess())
    assert (seen["patch_entropy"], seen["patch_information"]) == pytest.approx(
        (told(patches)[0], 0), abs=1e-5
    )
    assert "of the masked patch" in (collapse(seen) or "")
    assert seen["information"] == pytest.approx(told(drawn(0))[1], rel=1e-4)


def test_a_stretch_of_few_answers_waits_for_more() -> None:
    few = LEAST_ANSWERS // 2
    watched = monitor()
    watched.note(output(1.0, features(0), drawn(0, rows=few)))
    seen = watched.report(OneProcess())
    assert "information" not in seen
    assert watched.judge(seen, 1) is None
    watched.note(output(1.0, features(1), drawn(1, rows=few)))
    seen = watched.report(OneProcess())
    both = np.concatenate([drawn(0, rows=few), drawn(1, rows=few)])
    assert seen["information"] == pytest.approx(told(both)[1], rel=1e-4)
    watched.note(output(1.0, features(1), drawn(1, rows=few)))
    assert "information" in watched.report(Twins())  # of two processes they are enough


def test_patches_wait_for_the_pictures() -> None:
    """Else a good line of patches would stand between two bad ones of pictures."""
    watched, few = monitor(answers=("cls", "patch")), LEAST_ANSWERS // 2
    watched.note(output(1.0, features(0), drawn(0, rows=few), drawn(1, rows=90)))
    assert "patch_information" not in watched.report(OneProcess())
    watched.note(output(1.0, features(1), drawn(2, rows=few), drawn(3, rows=90)))
    seen = watched.report(OneProcess())
    both = np.concatenate([drawn(1, rows=90), drawn(3, rows=90)])
    assert seen["patch_information"] == pytest.approx(told(both)[1], rel=1e-4)
    assert "information" in seen


def test_a_batch_larger_than_the_window() -> None:
    watched, seen = monitor(window=8), features(2, rows=20)
    watched.note(output(1.0, seen, drawn(0)))
    wanted = effective_rank(torch.tensor(seen[:8]))
    assert watched.report(OneProcess())["feature_rank"] == pytest.approx(wanted)


def test_saved_and_loaded_it_goes_on(tmp_path: Path) -> None:
    names = ("cls", "patch")
    whole, cut, resumed = (monitor(answers=names) for _ in range(3))
    for watched in (whole, cut):
        assert watched.judge(HEALTHY | EMPTY, 1)
        watched.note(output(1.0, features(1), drawn(1), drawn(2)))
    cut.save(tmp_path / "kept.safetensors")
    resumed.note(output(7.0, features(7), drawn(7), drawn(8)))  # of a start that failed: forgotten
    resumed.load(tmp_path / "kept.safetensors")
    for watched in (whole, resumed):
        watched.note(output(2.0, features(2), drawn(3), drawn(4)))
    assert resumed.report(OneProcess()) == whole.report(OneProcess())
    with pytest.raises(CollapseError):
        resumed.judge(HEALTHY | EMPTY, 2)  # the second in a row, of which the first was before
    with pytest.raises(CheckpointError, match="another version"):
        monitor().load(tmp_path / "kept.safetensors")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (EMPTY, "gives every picture the same prototypes"),
        ({"information": 0.001, "teacher_entropy": 0.999}, "finds all prototypes alike in every picture"),
        ({"feature_rank": 1.001}, "features are the same"),
        ({"patch_information": 0.001, "patch_entropy": 0.01}, "every masked patch the same prototypes"),
        ({"patch_information": 0.001, "patch_entropy": 0.99}, "alike in every masked patch"),
    ],
)
def test_collapse_is_told_with_what_to_change(changes: dict[str, float], words: str) -> None:
    watched = monitor()
    assert words in (watched.judge(HEALTHY | changes, step=60) or "")
    with pytest.raises(CollapseError, match=words) as caught:
        watched.judge(HEALTHY | changes, step=70)
    for knob in ("after step 70", "centering", "teacher_temperature", "base_learning_rate", "momentum"):
        assert knob in str(caught.value)


def test_a_good_line_in_between_begins_the_count_anew() -> None:
    watched = monitor()
    for step in range(3):
        assert watched.judge(HEALTHY | EMPTY, step)
        assert watched.judge({"feature_rank": 1.0}, step) is None  # of too few pictures: counts for nothing
        assert watched.judge(HEALTHY, step) is None
    watched.judge(HEALTHY | EMPTY, 3)
    watched.clear()
    assert watched.judge(HEALTHY | EMPTY, 4)


def test_sure_answers_alone_are_no_collapse() -> None:
    assert collapse(HEALTHY) is None
    assert collapse(HEALTHY | {"teacher_entropy": 0.01}) is None
