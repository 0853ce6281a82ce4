"""A training that comes out the same however it is cut: into micro-batches, into processes, by interruptions."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, set_seed

# Key under which a micro-batch carries how many of the step's images it stands for, as a divisor of its mean loss.
_DIVISOR = "loss_divisor"


class EpochSampler(Protocol):
    """A sampler whose order depends on its seed and the epoch it was told, on nothing else."""

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration gives."""

    def __len__(self) -> int:
        """Images of an epoch."""


class ExactTrainer(Trainer):
    """Trainer whose optimizer step is the mean over its images, and which resumes as if it had never stopped.

    - The last step of an epoch may have micro-batches of unequal size. Trainer would average their means; here each
      image counts alike, so that 1 x 8, 4 x 2 and 2 processes x 4 images give the same step.
    - accelerate fills the last batches of an epoch from its beginning so that all processes have as many; those
      images are taken out again.
    - Processes draw different random numbers (dropout), each of its own stream, saved with every checkpoint.
    - A checkpoint also keeps the losses since the last logged one, so that the log goes on exactly.
    - A run resumed from its very last checkpoint trains no further step.

    - The loss of an evaluation is the mean over its images, too.

    A subclass sets `loss`, and `sampler` in `_get_train_sampler`.
    """

    loss: nn.Module
    sampler: EpochSampler | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._progress: dict[str, Any] = {}
        self._started = time.monotonic()
        self.add_callback(_BeginExactly(self))

    def get_batch_samples(
        self, epoch_iterator: Iterator[dict[str, Any]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], None]:
        """The micro-batches of one optimizer step, without the images that only fill them up."""
        batches = [batch for _, batch in zip(range(num_batches), epoch_iterator, strict=False)]
        counts = self._images_of_step(len(batches))
        total = sum(sum(row) for row in counts)
        for batch, row in zip(batches, counts, strict=True):
            own = row[self.args.process_index]
            if own < self._train_batch_size:  # a whole batch may also hold what is not of one image
                kept = max(own, 1)  # one image at least, so that all processes meet; it weighs nothing
                batch.update({key: value[:kept] for key, value in batch.items()})
            # The mean over `own` images, divided by this and averaged over the processes, is their part of the step.
            batch[_DIVISOR] = total / (own * self.args.world_size) if own else math.inf
        return batches, None

    def _images_of_step(self, micro_batches: int) -> list[list[int]]:
        """Images of each micro-batch (rows) on each process (columns) in the step that comes next."""
        assert self.sampler is not None
        size, processes = self._train_batch_size, self.args.world_size
        images, accumulation = len(self.sampler), self.args.gradient_accumulation_steps
        # As Trainer and accelerate count them: batches go round the processes, the last round is filled up.
        steps_per_epoch = math.ceil(math.ceil(math.ceil(images / size) / processes) / accumulation)
        first = self.state.global_step % steps_per_epoch * accumulation
        return [
            [min(max(images - (number * processes + rank) * size, 0), size) for rank in range(processes)]
            for number in range(first, first + micro_batches)
        ]

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """Forward and backward of one micro-batch, weighted by its share of the step's images."""
        self.current_gradient_accumulation_steps = inputs.pop(_DIVISOR)
        return super().training_step(model, inputs, *args, **kwargs)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """As Trainer's, but the loss is the mean over the images; there a small last batch weighs as a full one."""
        output = super().evaluation_loop(*args, **kwargs)
        name = f"{kwargs.get('metric_key_prefix', 'eval')}_loss"
        if name in output.metrics:
            logits, labels = torch.as_tensor(output.predictions), torch.as_tensor(output.label_ids)
            with torch.no_grad():
                output.metrics[name] = self.loss(
                    logits.to(self.args.device), labels.to(self.args.device)
                ).item()
        return output

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if self._is_over():  # a run killed after its last step, while it was scored
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    def _is_over(self) -> bool:
        patience_is_over = any(
            callback.early_stopping_patience_counter >= callback.early_stopping_patience
            for callback in self.callback_handler.callbacks
            if isinstance(callback, EarlyStoppingCallback)
        )
        return patience_is_over or self.state.global_step >= self.state.max_steps

    def _progress_file(self, checkpoint: str) -> Path:
        return Path(checkpoint) / f"progress_{self.args.process_index}.json"

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        progress = {
            "loss_since_logged": self._tr_loss.item(),
            "loss_logged": self._total_loss_scalar,
            "last_logged_step": self._globalstep_last_logged,
            "seconds": self.seconds,
        }
        self._progress_file(output_dir).write_text(json.dumps(progress), encoding="utf-8")

    def _init_training_state(
        self, max_steps: int, updates: int, epochs: int, resume_from_checkpoint: str | None, trial: Any
    ) -> tuple[int, int]:
        self._progress = {}
        if resume_from_checkpoint is not None and self._progress_file(resume_from_checkpoint).is_file():
            text = self._progress_file(resume_from_checkpoint).read_text(encoding="utf-8")
            self._progress = json.loads(text)
        where: tuple[int, int] = super()._init_training_state(
            max_steps, updates, epochs, resume_from_checkpoint, trial
        )
        return where

    @property
    def seconds(self) -> float:
        """How long the training has taken, over all its starts, up to now."""
        return float(self._progress.get("seconds", 0.0)) + time.monotonic() - self._started

    def begin_exactly(self) -> None:
        """Before the first step of this start: random numbers of this process, and the log as it stood."""
        self._started = time.monotonic()
        if self.state.global_step == 0:
            if self.args.world_size > 1:
                stream = np.random.SeedSequence((self.args.seed, self.args.process_index))
                set_seed(int(stream.generate_state(1)[0]))
        elif self._progress:
            self._tr_loss.fill_(self._progress["loss_since_logged"])
            self._total_loss_scalar = self._progress["loss_logged"]
            self._globalstep_last_logged = self._progress["last_logged_step"]

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        # What was not logged yet is so far the loss of this process only.
        self._tr_loss.copy_(self.accelerator.reduce(self._tr_loss.clone(), reduction="mean"))
        return super()._finalize_training(*args, **kwargs)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """As Trainer's; the mean loss at the end is that of all steps, also of those before an interruption."""
        if "train_loss" in logs:
            logs["train_loss"] = self._total_loss_scalar / max(self.state.global_step, 1)
        super().log(logs, *args, **kwargs)


class _BeginExactly(TrainerCallback):
    """Calls the trainer at the start, and tells the sampler the epoch.

    accelerate does not tell it when a run of several processes resumes in the middle of an epoch.
    """

    def __init__(self, trainer: ExactTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.begin_exactly()

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.trainer.sampler is not None:
            self.trainer.sampler.set_epoch(int(state.epoch or 0))
