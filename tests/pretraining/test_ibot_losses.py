"""iBOT's losses and targets against float64 NumPy."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cytodino_hf.pretraining.losses import (
    TeacherTargets,
    answers_in_sum,
    cls_loss,
    koleo_loss,
    patch_loss,
    sinkhorn,
)
from cytodino_hf.pretraining.masks import masked_places
from cytodino_hf.pretraining.recipe import ObjectiveSection, objective_contradictions

Array = np.ndarray


def waves(*shape: int, pace: float = 0.9) -> Array:
    """Numbers in [-1, 1] by formula."""
    return np.cos(np.arange(np.prod(shape), dtype=np.float64).reshape(shape) * pace)


def softmax(x: Array) -> Array:
    powers = np.exp(x - x.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def tensor(array: Array) -> torch.Tensor:
    return torch.tensor(array, dtype=torch.float32)


def targets(centering: str = "centre", width: int = 6, momentum: float = 0.9) -> TeacherTargets:
    return TeacherTargets(width, centering, momentum, 3)  # type: ignore[arg-type]


# -- what the teacher says


def test_centre_is_subtracted_before_it_moves() -> None:
    layer, centre = targets().train(), np.zeros(6)
    for step in range(4):
        logits = waves(5, 6, pace=0.3 + step)
        expected = softmax((logits - centre) / 0.05)
        np.testing.assert_allclose(layer(tensor(logits), 0.05).numpy(), expected, rtol=2e-4, atol=1e-7)
        centre = 0.9 * centre + 0.1 * logits.mean(axis=0)
        np.testing.assert_allclose(layer.centre.numpy(), centre, atol=1e-6)


def test_centre_stands_still_outside_training_and_without_rows() -> None:
    layer = targets().train()
    layer(tensor(waves(5, 6)), 0.05)
    before = layer.centre.clone()
    assert before.any()
    layer(torch.empty(0, 6), 0.05)
    assert torch.equal(layer.centre, before)
    layer.eval()(tensor(waves(5, 6)), 0.05)
    assert torch.equal(layer.centre, before)


def test_only_the_moving_mean_is_kept_in_a_checkpoint() -> None:
    assert list(targets("centre").state_dict()) == ["centre"]
    assert list(targets("sinkhorn").state_dict()) == []


def test_none_is_a_plain_softmax() -> None:
    logits = waves(5, 6)
    for _ in range(2):
        np.testing.assert_allclose(
            targets("none").train()(tensor(logits), 0.1).numpy(), softmax(logits / 0.1), rtol=1e-4
        )


@pytest.mark.parametrize("iterations", [1, 3])
def test_sinkhorn_is_the_published_iteration(iterations: int) -> None:
    """SwAV's listing, on the transposed matrix and with all its divisions."""
    logits = waves(12, 5)
    q = np.exp(logits / 0.2).T
    q /= q.sum()
    for _ in range(iterations):
        q /= q.sum(axis=1, keepdims=True)
        q /= 5
        q /= q.sum(axis=0, keepdims=True)
        q /= 12
    expected = (q * 12).T
    np.testing.assert_allclose(sinkhorn(tensor(logits), 0.2, iterations).numpy(), expected, rtol=1e-4)


def test_sinkhorn_shares_out_evenly() -> None:
    shares = sinkhorn(tensor(waves(40, 5)), 0.3, 100)
    np.testing.assert_allclose(shares.sum(dim=1).numpy(), 1, rtol=1e-5)
    np.testing.assert_allclose(shares.sum(dim=0).numpy(), 8, rtol=1e-3)


def test_sinkhorn_at_the_least_temperature_and_on_no_rows() -> None:
    """One row close to a prototype, one as far from all as can be: exp(-2 / .025) is still a float32."""
    logits = tensor(np.array([[1.0, 0, 0], [-1, -1, -1], [0, 1, -1]]))
    shares = sinkhorn(logits, 0.025, 3)
    np.testing.assert_allclose(shares.sum(dim=1).numpy(), 1, rtol=1e-5)
    assert sinkhorn(torch.empty(0, 5), 0.05, 3).shape == (0, 5)


def test_colder_sinkhorn_is_refused() -> None:
    cold = {"final_teacher_temperature": 0.02}
    assert objective_contradictions(ObjectiveSection(**cold)) == []
    problems = objective_contradictions(ObjectiveSection(centering="sinkhorn", **cold))
    assert len(problems) == 1
    assert "at least 0.025" in problems[0]


def test_targets_are_float32_under_autocast_and_need_no_gradient() -> None:
    logits = tensor(waves(5, 6)).bfloat16().requires_grad_()
    for name in ("centre", "sinkhorn", "none"):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = targets(name)(logits, 0.05)
        assert found.dtype == torch.float32
        assert not found.requires_grad


@pytest.mark.parametrize("centering", ["centre", "sinkhorn", "none"])
def test_rows_that_fill_up_change_nothing_for_the_others(centering: str) -> None:
    """Half of the rows are there to fill up, and lie where they would move every mean and every share."""
    is_row = torch.tensor([1.0, 0, 1, 1, 0, 0, 1, 0])
    plain, filled = targets(centering).train(), targets(centering).train()
    for step in range(3):
        logits = tensor(waves(8, 6, pace=0.3 + step))
        logits[is_row == 0] = 1.0
        found = filled(logits, 0.1, is_row)
        assert bool(found.isfinite().all())
        torch.testing.assert_close(found[is_row > 0], plain(logits[is_row > 0], 0.1))
        if centering == "centre":
            torch.testing.assert_close(filled.centre, plain.centre)


@pytest.mark.parametrize("centering", ["centre", "sinkhorn"])
def test_nothing_but_rows_that_fill_up(centering: str) -> None:
    layer = targets(centering).train()
    layer(tensor(waves(5, 6)), 0.05)
    before = [buffer.clone() for buffer in layer.buffers()]
    found = layer(tensor(waves(4, 6, pace=0.2)), 0.05, torch.zeros(4))
    assert bool(found.isfinite().all())
    assert all(torch.equal(old, new) for old, new in zip(before, layer.buffers(), strict=True))


# -- losses


def cross_entropy(p: Array, logits: Array, temperature: float) -> float:
    return float(-(p * np.log(softmax(logits / temperature))).sum())


@pytest.mark.parametrize("local", [0, 3])
def test_cls_loss_is_the_mean_over_pairs_of_different_views(local: int) -> None:
    student, answers = waves(4, 2 + local, 6), softmax(waves(4, 2, 6, pace=1.7) / 0.1)
    pairs = [
        cross_entropy(answers[image, t], student[image, s], 0.1)
        for image in range(4)
        for t in range(2)
        for s in range(2 + local)
        if s != t
    ]
    found = cls_loss(tensor(student), tensor(answers), 0.1)
    assert found.item() == pytest.approx(np.mean(pairs), rel=1e-5)


def test_patch_loss_is_the_mean_of_each_view_over_all_views() -> None:
    masks = np.zeros((4, 5), dtype=bool)
    masks[0, [0, 3]] = masks[2, [1]] = masks[3, :] = True  # view 1 has no mask
    student, answers = waves(8, 6), softmax(waves(8, 6, pace=1.7) / 0.1)
    each = [cross_entropy(p, s, 0.1) for p, s in zip(answers, student, strict=True)]
    expected = (np.mean(each[0:2]) + 0 + np.mean(each[2:3]) + np.mean(each[3:8])) / 4
    weights = torch.tensor(masked_places(masks)[1][:8])
    found = patch_loss(tensor(student), tensor(answers), weights, 0.1)
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_patch_loss_without_masks_is_zero_with_a_gradient() -> None:
    student = torch.empty(0, 6, requires_grad=True)
    loss = patch_loss(student, torch.empty(0, 6), torch.empty(0), 0.1)
    loss.backward()
    assert loss.item() == 0
    assert student.grad is not None


def test_gradients_are_softmax_minus_target() -> None:
    """d cross-entropy / d logits = (softmax(s / t) - p) / t."""
    student, answers = waves(3, 6), softmax(waves(3, 6, pace=1.7) / 0.1)
    logits = tensor(student).requires_grad_()
    patch_loss(logits, tensor(answers), torch.full((3,), 1 / 3), 0.1).backward()
    expected = (softmax(student / 0.1) - answers) / 0.1 / 3
    assert logits.grad is not None
    np.testing.assert_allclose(logits.grad.numpy(), expected, atol=1e-5)


def test_losses_of_bfloat16_logits_are_computed_in_float32() -> None:
    student, answers = tensor(waves(4, 2, 6)).bfloat16(), tensor(softmax(waves(4, 2, 6, pace=1.7) / 0.1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cls = cls_loss(student, answers, 0.1)
        patch = patch_loss(student.flatten(0, 1), answers.flatten(0, 1), torch.full((8,), 1 / 8), 0.1)
        koleo = koleo_loss(student.flatten(1))
    assert {loss.dtype for loss in (cls, patch, koleo)} == {torch.float32}
    assert cls.item() == cls_loss(student.float(), answers, 0.1).item()


def test_koleo_is_minus_the_mean_log_distance_to_the_nearest() -> None:
    features = waves(7, 4)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    distances = np.linalg.norm(unit[:, None] - unit[None], axis=2) + 10 * np.eye(7)
    expected = -np.log(distances.min(axis=1)).mean()
    assert koleo_loss(tensor(features)).item() == pytest.approx(expected, rel=1e-4)


def test_koleo_of_one_picture_is_zero_and_of_two_alike_is_finite() -> None:
    one = torch.ones(1, 4, requires_grad=True)
    loss = koleo_loss(one)
    loss.backward()
    assert loss.item() == 0
    assert one.grad is not None
    alike = torch.ones(2, 4, requires_grad=True)
    koleo_loss(alike).backward()
    assert alike.grad is not None
    assert bool(alike.grad.isfinite().all())


def test_answers_in_sum() -> None:
    p = softmax(waves(5, 6))
    entropies = -(p * np.log(p)).sum(axis=1)
    np.testing.assert_allclose(
        answers_in_sum(tensor(p)).numpy(), [*p.sum(axis=0), entropies.sum(), 5], rtol=1e-5
    )
    rows = [0, 2]
    with torch.autocast("cpu", dtype=torch.bfloat16):  # in float32 all the same
        found = answers_in_sum(tensor(p), torch.tensor([1.0, 0, 1, 0, 0]))
    np.testing.assert_allclose(found.numpy(), [*p[rows].sum(axis=0), entropies[rows].sum(), 2], rtol=1e-5)
    sure = answers_in_sum(torch.eye(4))
    assert sure[-2].item() == 0
    alike = answers_in_sum(torch.full((3, 4), 0.25))
    assert alike[-2].item() == pytest.approx(3 * np.log(4))


# -- several processes

# Rows of the steps on each of two processes; a process may have none.
SHARES = [[(0, 3), (3, 8)], [(0, 4), (4, 4)], [(2, 2), (2, 2)]]


def _rank(rank: int, store: str, answers: Any) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    centre, found = targets("centre").train(), []
    for step, shares in enumerate(SHARES):
        start, stop = shares[rank]
        rows = tensor(waves(8, 6, pace=0.4 + step))[start:stop]
        found.append(
            (sinkhorn(rows, 0.1, 3).numpy(), centre(rows, 0.1).numpy(), centre.centre.numpy().copy())
        )
    answers.put((rank, found))
    torch.distributed.destroy_process_group()


def test_two_processes_are_one_with_the_same_rows(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    ranks = [context.Process(target=_rank, args=(rank, str(tmp_path / "store"), answers)) for rank in (0, 1)]
    for process in ranks:
        process.start()
    found = dict(answers.get(timeout=60) for _ in ranks)
    for process in ranks:
        process.join(60)
    centre = targets("centre").train()
    for step, shares in enumerate(SHARES):
        rows = tensor(waves(8, 6, pace=0.4 + step))[shares[0][0] : shares[1][1]]
        expected = sinkhorn(rows, 0.1, 3), centre(rows, 0.1)
        for kind in (0, 1):
            both = np.concatenate([found[0][step][kind], found[1][step][kind]])
            np.testing.assert_allclose(both, expected[kind].numpy(), atol=1e-6)
        for rank in (0, 1):
            np.testing.assert_allclose(found[rank][step][2], centre.centre.numpy(), atol=1e-7)
