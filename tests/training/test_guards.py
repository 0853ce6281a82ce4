"""Bad numbers: found within one step, named by image, never applied, never saved, never chosen."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import TrainerCallback

from cytodino_hf.errors import BadNumbersError
from cytodino_hf.evaluation.scoring import predict
from cytodino_hf.finetune import finetune
from cytodino_hf.model.image_processing_cytodino import CytoDinoImageProcessor
from cytodino_hf.model.modeling_cytodino import CytoDinoForImageClassification
from cytodino_hf.model_builder import WEIGHTS_FILE
from cytodino_hf.recipe import parse_recipe
from cytodino_hf.trainer import CytoTrainer
from cytodino_hf.training.guards import (
    EvaluationGuard,
    NumberGuard,
    bad_gradients,
    clip_gradients,
    not_finite,
    suspects_first,
)
from cytodino_hf.training.remedies import FINE_TUNING
from cytodino_hf.training.sealed_trainer import WEIGHTS

CPU = torch.device("cpu")
NAN, INF = float("nan"), float("inf")


def ids_of(rows: list[int]) -> list[str]:
    return [f"cell-{row}" for row in rows]


def begun(model: nn.Module, optimizer: torch.optim.Optimizer, scaler: Any = None) -> NumberGuard:
    guard = NumberGuard(CPU, ids_of, lambda: dict(model.named_parameters()), FINE_TUNING)
    guard.begin(model, optimizer, scaler)
    return guard


@pytest.fixture
def model() -> nn.Linear:
    layer = nn.Linear(2, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.5, -1.0], [2.0, 0.25]]))
        layer.bias.zero_()
    return layer


def step(guard: NumberGuard, number: int, losses: list[float], norm: float, logits: float = 0.0) -> None:
    for i, loss in enumerate(losses):
        answers = torch.zeros(2, 3)
        answers[1, 0] = logits if i == len(losses) - 1 else 0.0
        guard.note_batch(torch.tensor([10 * i, 10 * i + 1]), torch.tensor(loss), answers)
    guard.end_step(number, torch.tensor(norm))


@pytest.mark.parametrize(
    ("losses", "norm"),
    [([NAN], NAN), ([INF], 1.0), ([1.0, -INF], NAN), ([1.0, NAN, 2.0], 1.0), ([1.0], INF), ([1.0, 2.0], NAN)],
)
def test_a_bad_loss_or_gradient_stops_the_step_it_belongs_to(
    model: nn.Linear, losses: list[float], norm: float
) -> None:
    guard = begun(model, torch.optim.SGD(model.parameters(), 0.1))
    step(guard, 1, [1.0, 3e38, -3e38], 1e30)  # huge, but numbers
    with pytest.raises(BadNumbersError) as caught:
        step(guard, 2, losses, norm)
    findings = caught.value.findings
    assert findings["step"] == 2
    assert [float(batch["loss"]) for batch in findings["micro_batches"]] == pytest.approx(losses, nan_ok=True)
    assert json.loads(json.dumps(findings, allow_nan=False)) == findings
    assert "step 2" in str(caught.value)
    assert "cell-0" in str(caught.value)


def test_the_suspects_come_first(model: nn.Linear) -> None:
    guard = begun(model, torch.optim.SGD(model.parameters(), 0.1))
    with pytest.raises(BadNumbersError) as caught:
        step(guard, 1, [1.0, NAN], NAN, logits=NAN)
    assert caught.value.findings["micro_batches"][1]["ids_with_bad_logits"] == ["cell-11"]
    assert suspects_first(caught.value.findings) == ["cell-11", "cell-10", "cell-0", "cell-1"]
    assert "suspects first: cell-11, cell-10, cell-0, cell-1" in str(caught.value)


def test_infinite_gradients_of_fp16_are_the_scalers_business_and_a_bad_loss_is_not(model: nn.Linear) -> None:
    guard = begun(model, torch.optim.SGD(model.parameters(), 0.1), scaler=object())
    step(guard, 1, [1.0], INF)
    with pytest.raises(BadNumbersError):
        step(guard, 2, [INF], 1.0)


def test_put_off_a_step_the_fused_optimizer_skips_the_update_and_all_later_ones(model: nn.Linear) -> None:
    """The way of a GPU, here with the fused kernel of the CPU."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    guard = begun(model, optimizer)
    guard.defer(optimizer)
    weights = []

    def update(number: int, loss: float) -> None:
        for p in model.parameters():
            p.grad = torch.full_like(p, loss)
        step(guard, number, [loss], loss)
        optimizer.step()
        weights.append([p.detach().clone() for p in model.parameters()])

    update(1, 1.0)
    update(2, 1.0)
    assert not torch.equal(weights[0][0], weights[1][0])
    state = {k: v.clone() for k, v in optimizer.state[model.weight].items()}
    update(3, NAN)  # not seen yet, but not applied either
    assert all(torch.equal(a, b) for a, b in zip(weights[1], weights[2], strict=True))
    with pytest.raises(BadNumbersError) as caught:
        update(4, 1.0)
    assert caught.value.findings["step"] == 3
    optimizer.step()  # nor any later update
    assert all(torch.equal(a, b) for a, b in zip(weights[1], model.parameters(), strict=True))
    assert all(torch.equal(state[k], v) for k, v in optimizer.state[model.weight].items())


def test_before_a_save_the_newest_step_is_judged_too(model: nn.Linear) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    guard = begun(model, optimizer)
    guard.defer(optimizer)
    step(guard, 1, [1.0], 1.0)
    guard.settle()
    step(guard, 2, [1.0], NAN)
    with pytest.raises(BadNumbersError, match="step 2"):
        guard.settle()


def test_clipping_is_that_of_torch_and_leaves_bad_gradients_to_be_found(model: nn.Linear) -> None:
    ours, theirs = model, nn.Linear(2, 2)
    for scale in (1e-3, 1.0, 1e4):
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            p.grad = torch.linspace(-1, 2, p.numel()).reshape(p.shape) * scale
            q.grad = p.grad.clone()
        norm = clip_gradients(ours.parameters(), 1.0)
        assert torch.equal(norm, nn.utils.clip_grad_norm_(theirs.parameters(), 1.0))
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert torch.equal(p.grad, q.grad)
    ours.bias.grad = torch.tensor([1.0, INF])
    kept = ours.weight.grad.clone()
    assert clip_gradients(ours.parameters(), 1.0) == INF
    assert torch.equal(ours.weight.grad, kept)
    assert bad_gradients(ours) == ["bias"]
    assert clip_gradients(nn.Linear(2, 2).requires_grad_(False).parameters(), 1.0) == 0


def test_bad_weights_are_neither_trained_on_nor_saved(model: nn.Linear) -> None:
    guard = begun(model, torch.optim.SGD(model.parameters(), 0.1))
    guard.check_weights("after step 6")
    with torch.no_grad():
        model.weight[0, 0] = NAN
        model.bias[1] = -INF
    with pytest.raises(
        BadNumbersError, match=r"after step 7 weights are not finite: weight, bias\."
    ) as caught:
        guard.check_weights("after step 7")
    assert "lower training.learning_rate" in str(caught.value)
    with pytest.raises(BadNumbersError, match="start of training"):
        begun(model, torch.optim.SGD(model.parameters(), 0.1))


def test_what_is_not_finite() -> None:
    tensors = {"good": torch.ones(3), "bad": torch.tensor([0.0, NAN]), "worse": torch.tensor([[INF]])}
    assert not_finite(tensors) == ["bad", "worse"]
    # A backbone without register tokens has an empty parameter.
    assert not_finite({"tokens": torch.empty(1, 0, 4)}) == []
    assert not_finite({}) == []


def test_an_evaluation_names_the_images_without_a_finite_answer() -> None:
    guard = EvaluationGuard()
    logits = torch.zeros(3, 4)
    guard.note_batch(torch.tensor([5, 1, 9]), logits)
    guard.finish("evaluation", ids_of, "Look.")
    logits[0, 3], logits[2, 0] = NAN, INF
    guard.note_batch(torch.tensor([7, 2, 3]), logits)
    with pytest.raises(BadNumbersError, match="2 images: cell-3, cell-7"):
        guard.finish("evaluation", ids_of, "Look.")


def _rank(rank: int, store: str, answers: Any) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    layer = nn.Linear(2, 2)
    guard = NumberGuard(
        CPU,
        lambda rows: [f"{rank}-{row}" for row in rows],
        lambda: dict(layer.named_parameters()),
        FINE_TUNING,
        processes=2,
    )
    guard.begin(layer, torch.optim.SGD(layer.parameters(), 0.1), None)
    try:
        step(guard, 1, [1.0], 1.0)
        step(guard, 2, [1.0 if rank == 0 else INF], 1.0)  # a bad loss need not show in the shared gradient
    except BadNumbersError as error:
        answers.put((rank, error.findings["step"], suspects_first(error.findings)))
    evaluation = EvaluationGuard()
    evaluation.note_batch(torch.tensor([rank]), torch.tensor([[0.0 if rank else NAN]]))
    try:
        evaluation.finish("evaluation", ids_of, "Look.", processes=2)
    except BadNumbersError as error:
        answers.put((rank, "evaluation", error.findings["ids"]))
    torch.distributed.destroy_process_group()


def test_processes_that_train_together_stop_together(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    ranks = [context.Process(target=_rank, args=(r, str(tmp_path / "store"), answers)) for r in (0, 1)]
    for process in ranks:
        process.start()
    found = sorted((answers.get(timeout=60) for _ in range(4)), key=str)
    for process in ranks:
        process.join(60)
    images = ["1-0", "1-1", "0-0", "0-1"]
    assert found == [
        (0, "evaluation", ["cell-0"]), (0, 2, images), (1, "evaluation", ["cell-0"]), (1, 2, images)
    ]  # fmt: skip


WHITE = "BLA/BLA_00001"


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory: pytest.TempPathFactory, make_images: Callable[..., Path]) -> Path:
    """A set with one nearly white picture, which `poison` turns into NaN."""
    from PIL import Image

    root = make_images(tmp_path_factory.mktemp("images"), per_class=16)
    grid = np.indices((32, 32)).sum(0)[..., None] % 2
    Image.fromarray((255 - grid.repeat(3, 2)).astype(np.uint8)).save(root / f"{WHITE}.png")
    rows = [
        f"{path.relative_to(root)},{path.parent.name},{'train' if number % 4 else 'validation'}"
        for path in sorted(root.glob("*/*.png"))
        for number in [int(path.stem[-2:])]
    ]
    (root / "split.csv").write_text("path,label,fold\n" + "\n".join(rows) + "\n")
    return root


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    normalize = CytoDinoImageProcessor.normalize_batch

    def normalize_batch(self: Any, pixels: torch.Tensor) -> torch.Tensor:
        is_white = (pixels >= 254).flatten(1).all(1)
        return torch.where(is_white[:, None, None, None], NAN, normalize(self, pixels))

    monkeypatch.setattr(CytoDinoImageProcessor, "normalize_batch", normalize_batch)


@pytest.fixture
def weights_after(monkeypatch: pytest.MonkeyPatch) -> dict[int, dict[str, torch.Tensor]]:
    """What trains, after each optimizer step."""
    kept: dict[int, dict[str, torch.Tensor]] = {}

    class Keep(TrainerCallback):
        def on_train_begin(
            self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any
        ) -> None:
            self.on_step_end(args, state, control, model)

        def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            kept[state.global_step] = {
                n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad
            }

    make = CytoTrainer.__init__

    def init(self: CytoTrainer, **kwargs: Any) -> None:
        make(self, **kwargs)
        self.add_callback(Keep())

    monkeypatch.setattr(CytoTrainer, "__init__", init)
    return kept


@pytest.mark.parametrize(("method", "is_deferred"), [("lora", False), ("lora", True), ("head", False)])
def test_a_bad_image_stops_the_run_and_the_last_good_weights_stay(
    poisoned: Path, tmp_path: Path, tiny_recipe: Callable[..., dict], poison: None, monkeypatch: pytest.MonkeyPatch,
    weights_after: dict[int, dict[str, torch.Tensor]], method: str, is_deferred: bool,
) -> None:  # fmt: skip
    """Put off, as on a GPU, it stops one step later with the same weights."""
    begin = NumberGuard.begin

    def begin_deferred(self: NumberGuard, model: nn.Module, optimizer: Any, scaler: Any) -> None:
        begin(self, model, optimizer, scaler)
        if is_deferred:
            self.defer(optimizer.optimizer)

    monkeypatch.setattr(NumberGuard, "begin", begin_deferred)
    out = tmp_path / "run"
    recipe = tiny_recipe(
        poisoned, out,
        data={"split": str(poisoned / "split.csv")},
        model={"method": method},
        training={"max_steps": 20, "eval_steps": 20, "save_steps": 20, "gradient_accumulation_steps": 2,
                  "per_device_train_batch_size": 3, "logging_steps": 50},
    )  # fmt: skip
    with pytest.raises(BadNumbersError) as caught:
        finetune(parse_recipe(recipe, source="test"))
    message = str(caught.value)
    found = json.loads((out / "bad_numbers.json").read_text())
    bad_step = found["step"]
    assert f"step {bad_step}: " in message
    assert f"suspects first: {WHITE}" in message
    assert str(out / "bad_numbers.json") in message
    assert str(out / "last-good") in message
    batches = found["micro_batches"]
    assert [len(batch["ids"]) for batch in batches] == [3, 3]
    blamed = [batch for batch in batches if batch["ids_with_bad_logits"]]
    assert len(blamed) == 1
    assert blamed[0]["loss"] == "nan"
    assert blamed[0]["ids_with_bad_logits"] == [WHITE]
    assert found["gradient_norm"] == "nan"
    assert found["gradients"] is None if is_deferred else found["gradients"]
    assert found["weights"] == []
    # Stopped in its very step, or in the next; the weights are those after the step before.
    assert bad_step > 1
    assert max(weights_after) == bad_step - 1 + is_deferred
    last = weights_after[bad_step - 1]
    saved = load_file(out / "last-good" / WEIGHTS_FILE[method])
    assert len(saved) == len(last)
    assert sorted(t.sum().item() for t in saved.values()) == sorted(t.sum().item() for t in last.values())
    loaded = CytoDinoForImageClassification.from_pretrained(out / "last-good")
    assert torch.isfinite(loaded(pixel_values=torch.zeros(1, 3, 32, 32)).logits).all()


def test_an_evaluation_with_a_bad_answer_chooses_and_saves_nothing(
    poisoned: Path, tmp_path: Path, tiny_recipe: Callable[..., dict], monkeypatch: pytest.MonkeyPatch
) -> None:
    normalize = CytoDinoImageProcessor.normalize_batch

    def normalize_batch(self: Any, pixels: torch.Tensor) -> torch.Tensor:
        normal = normalize(self, pixels)
        return (
            normal if torch.is_grad_enabled() else normal * torch.where(pixels[:, :1, :1, :1] > 100, NAN, 1.0)
        )

    monkeypatch.setattr(CytoDinoImageProcessor, "normalize_batch", normalize_batch)
    out = tmp_path / "run"
    recipe = tiny_recipe(poisoned, out, data={"split": str(poisoned / "split.csv")})
    with pytest.raises(BadNumbersError, match="evaluation: the model's answer is not finite"):
        finetune(parse_recipe(recipe, source="test"))
    assert json.loads((out / "bad_numbers.json").read_text())["ids"]
    assert not list(out.glob("checkpoint-*"))


def test_scoring_does_not_take_the_arg_max_of_nan(
    poisoned: Path, tmp_path: Path, tiny_recipe: Callable[..., dict], poison: None
) -> None:
    from cytodino_hf.data.loading import load_split
    from cytodino_hf.model_builder import build_config, build_model, build_processor, merge

    recipe = parse_recipe(tiny_recipe(poisoned, tmp_path / "run"), source="test")
    images = load_split(recipe).images
    model = merge(build_model(recipe, build_config(recipe, images.taxonomy), tmp_path / "base"))
    with pytest.raises(BadNumbersError, match=f"one image: {WHITE}"):
        predict(model, build_processor(recipe.data), images, model_revision="test")


def test_a_run_does_not_go_on_from_a_checkpoint_with_bad_weights(
    poisoned: Path, tmp_path: Path, tiny_recipe: Callable[..., dict], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such a checkpoint is never written; a foreign one is not trained on."""
    trained = CytoTrainer._load_weights

    def load(self: CytoTrainer, folder: Path) -> None:
        trained(self, folder)
        next(p for p in self.model.parameters() if p.requires_grad).data.flatten()[0] = NAN

    recipe = tiny_recipe(poisoned, tmp_path / "run", training={"max_steps": 2})

    class StopError(Exception):
        pass

    def stop(*args: Any) -> None:
        raise StopError

    with monkeypatch.context() as patch:
        patch.setattr("cytodino_hf.finetune.save_model", stop)
        with pytest.raises(StopError):
            finetune(parse_recipe(recipe, source="test"))
    assert (tmp_path / "run" / "checkpoint-2" / WEIGHTS).is_file()
    monkeypatch.setattr(CytoTrainer, "_load_weights", load)
    with pytest.raises(BadNumbersError, match="at the start of training weights are not finite"):
        finetune(parse_recipe(recipe, source="test"))
