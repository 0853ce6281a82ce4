"""A training that can be stopped at any moment: sealed checkpoints, signals, the best model always on disk."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.trainer_callback import ExportableState, TrainerControl

from ..checkpoints import Checkpoints
from ..errors import CheckpointError, CytoDinoError
from .exact_trainer import ExactTrainer
from .interruption import Interruption, stop, stop_after_failure
from .processes import on_first_process
from .seals import TRAINER_STATE, read_manifest, verify

#: What trains, by its name in memory.
WEIGHTS = "model.safetensors"


class SealedTrainer(ExactTrainer):
    """Trainer that writes, rotates and reads only sealed checkpoints, and saves when it is told to stop.

    - A checkpoint holds `kept_tensors` under their names in memory, and what Trainer needs to go on. Under the names on
      disk of transformers a plain model would not be restored, and a frozen backbone need not be kept; Trainer's own
      files also hold its arguments as a pickle, with the token of the Hub, and peft's ask the Hub for a base model.
    - The best model so far is always in a checkpoint, also where evaluations are more frequent than saves.
    - An interruption saves between two steps without evaluating or logging, so that the result is the same as without.

    Args:
        checkpoint_limit: How many of the newest checkpoints stay, the best one besides; None keeps all.
        args, kwargs: As for `transformers.Trainer`.
    """

    control: TrainerControl

    def __init__(self, *args: Any, checkpoint_limit: int | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.checkpoints = Checkpoints(self.args.output_dir, checkpoint_limit)
        self._interruption = Interruption()
        self._sealed_step: int | None = None

    @property
    def plain_model(self) -> nn.Module:
        """The model without the wrappers of torch.compile and of data-parallel training."""
        model: nn.Module = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        return model

    def kept_tensors(self) -> dict[str, torch.Tensor]:
        """What a checkpoint keeps of the model, by its name in memory: what trains. The rest is built anew."""
        return {name: p for name, p in self.plain_model.named_parameters() if p.requires_grad}

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As Trainer's; a SIGTERM or the first Ctrl+C ends it with a sealed checkpoint.

        Raises:
            InterruptedTrainingError: It was told to stop; the same command goes on.
            CheckpointError: A checkpoint to be read is not what was sealed.
            FullDiskError: A checkpoint could not be written.
        """
        self._sealed_step = None
        with self._interruption.listening():
            try:
                result = super().train(*args, **kwargs)
            except CytoDinoError:
                raise
            except Exception as error:
                # A signal to all processes of a job ends the ones that read images too: no reason to start again.
                if number := self._interruption.received_alone():
                    stop_after_failure(number, error, self.checkpoints.run)
                raise
            # All is saved; what would follow is scoring.
            if number := self._interruption.asked_at_the_end():
                stop(number, self.state.global_step, self.checkpoints.run)
        return result

    def _run_epoch(self, model: nn.Module, *args: Any, **kwargs: Any) -> None:
        super()._run_epoch(model, *args, **kwargs)
        if number := self._interruption.asked():
            self._stop(number, model)

    def _maybe_log_save_evaluate(
        self,
        tr_loss: Any,
        grad_norm: Any,
        model: nn.Module,
        trial: Any,
        epoch: float,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        super()._maybe_log_save_evaluate(tr_loss, grad_norm, model, trial, epoch, *args, **kwargs)
        number = self._interruption.asked()
        # After the last step of an epoch its evaluation is still to come, which a checkpoint before it would skip.
        is_last_step = self.state.epoch == epoch + 1 or self.control.should_training_stop
        if number and not is_last_step:
            self._stop(number, model)

    def _stop(self, number: int, model: nn.Module) -> None:
        if self._sealed_step != self.state.global_step:
            self._save_checkpoint(model, None)
            self.control = self.callback_handler.on_save(self.args, self.state, self.control)
        stop(number, self.state.global_step, self.checkpoints.run)

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        is_best: bool = super()._determine_best_metric(metrics, trial)
        if is_best and self.args.load_best_model_at_end:
            self.control.should_save = True
        return is_best

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        step, is_writer = self.state.global_step, self.args.should_save
        self.store_flos()
        on_first_process(lambda: self.checkpoints.begin(step, self._checkpoint_bytes()))
        with self.checkpoints.guarded(step) as folder:
            if is_writer:
                self._save(str(folder))
            self._save_optimizer_and_scheduler(str(folder))
            self._save_scaler(str(folder))
            self._save_rng_state(str(folder))
            self.accelerator.wait_for_everyone()  # each process has its random numbers in it
            if is_writer:
                self._save_trainer_state(folder)
                self.checkpoints.seal(step, self.args.world_size)
        self._sealed_step = step
        best = self.state.best_global_step
        if is_writer:
            self.checkpoints.rotate(best)
        if best:
            self.state.best_model_checkpoint = str(self.checkpoints.folder(best))

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        from safetensors.torch import save_file

        tensors = {name: tensor.detach().contiguous() for name, tensor in self.kept_tensors().items()}
        save_file(tensors, Path(output_dir or self.args.output_dir) / WEIGHTS, metadata={"format": "pt"})

    def _save_trainer_state(self, folder: Path) -> None:
        for part in [*self.callback_handler.callbacks, self.control]:
            if isinstance(part, ExportableState):
                self.state.stateful_callbacks[type(part).__name__] = part.state()
        # The best checkpoint is known by its step: a path would not survive that the RUN is moved.
        dataclasses.replace(self.state, best_model_checkpoint=None).save_to_json(str(folder / TRAINER_STATE))

    def _checkpoint_bytes(self) -> int:
        tensors = list(self.kept_tensors().values())
        for moments in self.optimizer.state.values():
            tensors += [value for value in moments.values() if isinstance(value, torch.Tensor)]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def _init_training_state(
        self, max_steps: int, updates: int, epochs: int, resume_from_checkpoint: str | None, trial: Any
    ) -> tuple[int, int]:
        where = super()._init_training_state(max_steps, updates, epochs, resume_from_checkpoint, trial)
        if best := self.state.best_global_step:
            self.state.best_model_checkpoint = str(self.checkpoints.folder(best))
        if resume_from_checkpoint is not None:
            self._sealed_step = self.state.global_step
        return where

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        folder = Path(resume_from_checkpoint)
        on_first_process(lambda: _refuse_unsealed(folder))
        processes = read_manifest(folder)["processes"]
        if processes != self.args.world_size:
            raise CheckpointError(
                f"{folder} was written by {processes} processes, and {self.args.world_size} were started: images and "
                f"random numbers would be others. Start {processes}, or give another training.output_dir"
            )
        self._load_weights(folder)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with _only_data(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with _only_data(checkpoint):
            super()._load_rng_state(checkpoint)

    def _load_best_model(self) -> None:
        folder = Path(self.state.best_model_checkpoint or "")
        on_first_process(lambda: _refuse_unsealed(folder))
        self._load_weights(folder)

    def _load_weights(self, folder: Path) -> None:
        from safetensors.torch import load_file

        tensors = load_file(folder / WEIGHTS)
        result = self.plain_model.load_state_dict(tensors, strict=False)
        # What a checkpoint does not keep is missing on purpose; anything else is an error.
        missing = [name for name in self.kept_tensors() if name not in tensors]
        if missing or result.unexpected_keys:
            raise CheckpointError(
                f"{folder} does not fit the model: missing {missing[:5]}, unknown {result.unexpected_keys[:5]}. "
                "Give another training.output_dir"
            )


def _refuse_unsealed(folder: Path) -> None:
    """Read nothing that is not what was sealed: some of its files are pickles."""
    if reason := verify(folder):
        raise CheckpointError(
            f"{folder}: {reason}. It is not read; start the same command again, which goes on from an older checkpoint "
            "and moves this one to set-aside"
        )


@contextmanager
def _only_data(checkpoint: str | None) -> Iterator[None]:
    """Name the checkpoint whose pickles hold more than tensors and numbers: torch refuses to run what they ask for."""
    try:
        yield
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{checkpoint} was sealed with a file that is no plain data, so it was not written by this program. "
            "Nothing of it was run; delete the folder"
        ) from error
