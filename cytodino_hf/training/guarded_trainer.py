"""Trainer under guard: bad numbers stop it at once, evaluation makes do with the memory there is, no step waits."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from accelerate.utils import DistributedType
from torch import Tensor, nn
from transformers import TrainerCallback

from .failures import halving
from .guards import EvaluationGuard, NumberGuard, clip_gradients
from .remedies import Remedies
from .sealed_trainer import SealedTrainer

logger = logging.getLogger(__name__)
_PLAIN = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)


class GuardedTrainer(SealedTrainer):
    """Trainer that checks every number it is about to use, without making the host wait for a GPU.

    - A step with a NaN or infinite loss or gradient is never applied (`NumberGuard`).
    - Weights are checked before they are trained on or saved, answers before an evaluation counts.
    - An evaluation for which memory does not suffice is repeated with half the pictures at once.

    A subclass hands each training batch to `note_batch`. The data sets have `ids(rows)`, the batches `rows`.
    """

    #: What the user may change where something goes wrong; a subclass says it in the keys of its recipe.
    remedies: Remedies
    #: Whether an evaluation may go on with fewer pictures at once where memory does not suffice.
    may_halve_batch = True
    #: Told the evaluation batch that was too large and the next, so that a later start begins with it.
    on_evaluation_halved: Callable[[int, int], None] | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.guard = NumberGuard(
            self.args.device, self._training_ids, self.kept_tensors, self.remedies, self.args.world_size
        )
        self._evaluation_guard = EvaluationGuard()
        self._weights: int | None = None
        self.add_callback(_BeginGuard(self))

    def _training_ids(self, rows: list[int]) -> list[str]:
        ids: list[str] = self.train_dataset.ids(rows)  # type: ignore[union-attr]
        return ids

    def begin_guard(self) -> None:
        """Before the first step, after a checkpoint was read."""
        self.guard.begin(self.model, self.optimizer, self.accelerator.scaler)

    def note_batch(self, inputs: dict[str, Tensor], loss: Tensor, logits: Tensor) -> None:
        """Let the guard see one training batch: its row numbers, its loss, its logits."""
        self.guard.note_batch(inputs.get("rows"), loss, logits)

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        if self.accelerator.distributed_type not in _PLAIN:
            return super()._clip_grad_norm(model)
        self.accelerator.unscale_gradients()
        return clip_gradients(model.parameters(), self.args.max_grad_norm)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        # Called once a step, between the gradients and the optimizer.
        if grad_norm is None:
            grad_norm = self._clip_grad_norm(model)
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        self.guard.end_step(self.state.global_step + 1, torch.as_tensor(norm))
        return norm

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        control = self.control
        is_end = control.should_training_stop or control.should_epoch_stop
        if is_end or control.should_log or control.should_evaluate or control.should_save:
            self.guard.settle()
        if is_end:
            self.guard.check_weights(self._when())
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        self.guard.settle()
        self.guard.check_weights(self._when())
        super()._save_checkpoint(*args, **kwargs)

    def _when(self) -> str:
        return f"after step {self.state.global_step}"

    def prediction_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """One evaluation batch; its answers are checked at the end of the evaluation."""
        loss, logits, labels = super().prediction_step(model, inputs, *args, **kwargs)
        if logits is not None:
            self._evaluation_guard.note_batch(inputs.get("rows"), logits)
        return loss, logits, labels

    def evaluation_loop(self, dataloader: Any, description: str, *args: Any, **kwargs: Any) -> Any:
        """As Trainer's, but stops where an answer is not finite instead of taking its arg max."""
        self._evaluation_guard = EvaluationGuard()
        output = super().evaluation_loop(dataloader, description, *args, **kwargs)
        ids_of = dataloader.dataset.ids
        self._evaluation_guard.finish("evaluation", ids_of, self.remedies.numbers, self.args.world_size)
        return output

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As Trainer's; where memory does not suffice, again with half the pictures at once."""

        def attempt(batch_size: int) -> dict[str, float]:
            if batch_size != self.args.per_device_eval_batch_size:
                self.args.per_device_eval_batch_size = batch_size
                self._eval_dataloaders: dict[str, Any] = {}  # kept ones have the old batch
            return super(GuardedTrainer, self).evaluate(*args, **kwargs)

        # Processes that evaluate together must stay in step; there the error is raised.
        if not self.may_halve_batch or self.args.world_size > 1:
            return attempt(self.args.per_device_eval_batch_size)
        return halving(attempt, self.args.per_device_eval_batch_size, self._tell_halved)

    def _tell_halved(self, size: int, smaller: int) -> None:
        logger.warning(
            "evaluation: not enough memory for %d pictures at once; going on with %d", size, smaller
        )
        if self.on_evaluation_halved is not None:
            self.on_evaluation_halved(size, smaller)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """As Trainer's estimate, 6 x input values x weights; the weights are counted once, not in every batch."""
        if self._weights is None:
            self._weights = self.model.num_parameters(exclude_embeddings=True)
        return 6 * inputs["pixel_values"].numel() * self._weights


class _BeginGuard(TrainerCallback):
    """Tells the trainer when model and optimizer are ready."""

    def __init__(self, trainer: GuardedTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.begin_guard()
