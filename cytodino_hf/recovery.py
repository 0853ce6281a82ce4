"""Training that makes do with the machine: a smaller micro-batch where memory is short, one restart after a kill.

Nothing of it changes what is computed: the pictures of an optimizer step, how they are varied and what they weigh stay
the same. (Dropout is drawn per micro-batch, so with dropout its masks differ after halving.)
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from .errors import BadNumbersError, CytoDinoError, NotEnoughMemoryError, WorkerKilledError
from .files import write_json
from .memory import smaller_batch
from .model_builder import save_model
from .recipe import Recipe
from .training.failures import deaths_noted, drop_frames, halving, named_failure, release_memory
from .training.guarded_trainer import GuardedTrainer
from .training.processes import on_first_process
from .training.remedies import FINE_TUNING, Remedies

if TYPE_CHECKING:
    from .run_folder import RunFolder
    from .trainer import CytoTrainer

T = TypeVar("T")
R = TypeVar("R", bound="TrainedRecipe")
C = TypeVar("C", bound=GuardedTrainer)
logger = logging.getLogger(__name__)
BAD_NUMBERS_FILE = "bad_numbers.json"
#: The weights before the step that went bad, as a model that `from_pretrained` loads.
LAST_GOOD_FOLDER = "last-good"
#: Keys of run.json.
BATCH, SETBACKS = "batch", "setbacks"


class TrainedRecipe(Protocol):
    """A recipe of whatever kind, as far as memory is concerned."""

    @property
    def training(self) -> Any:
        """Its training section, with TrainingArguments' names."""


def train_through_setbacks(
    recipe: R,
    run: RunFolder,
    assemble: Callable[[R], C],
    train: Callable[[C], T],
    save_weights: Callable[[C, Path], None],
    in_words: Callable[[R], str],
    remedies: Remedies,
) -> tuple[C, T]:
    """Train; once more after a killed worker, and with a smaller micro-batch each time memory does not suffice.

    Everything is built anew and goes on from the newest checkpoint. What was changed stands in run.json, so that a
    later start begins with it. Several processes are not restarted from within: the error is raised and the same
    command goes on.

    Args:
        recipe: As the user gave it.
        run: Its folder.
        assemble: Recipe -> trainer.
        train: Trainer -> what the report says of the training.
        save_weights: Writes the model of a trainer into a folder, as the final one is written.
        in_words: Recipe -> what decides the memory of a step, for a message.
        remedies: What the user may change where this does not help.

    Returns:
        The trainer, done, and the result of `train`.

    Raises:
        BadNumbersError: After the last good weights were written.
        WorkerKilledError: A worker was killed for the second time.
        NotEnoughMemoryError: Not even one picture at a time can be trained on, or the recipe forbids halving.
    """
    was_killed = False
    while True:
        trainer: C | None = None
        current = with_kept_batch(recipe, run)
        with deaths_noted() as deaths:
            try:
                trainer = assemble(current)
                trainer.on_evaluation_halved = partial(_keep_evaluation_batch, run)
                return trainer, train(trainer)
            except BadNumbersError as error:
                keep_evidence(error, run, partial(save_weights, trainer) if trainer is not None else None)
                raise
            except Exception as error:
                named = named_failure(error, remedies, in_words(current), deaths)
                if named is None:
                    raise
                drop_frames(error)
                # Where building the model failed, no smaller batch helps.
                told = _setback(named, current, run, was_killed) if trainer is not None else None
                if told is None or trainer is None:
                    raise named from error
                if trainer.args.world_size > 1:
                    logger.warning("%s. The same command goes on with that.", told)
                    raise named from error
                was_killed = was_killed or isinstance(named, WorkerKilledError)
                logger.warning("%s. Going on by itself from the newest checkpoint.", told)
            _dispose(trainer)


def score_through_setbacks(recipe: Recipe, run: RunFolder, score: Callable[..., T]) -> T:
    """Score with as many pictures at once as the memory allows.

    Args:
        recipe: As the user gave it.
        run: Its folder.
        score: Called with `batch_size`, pictures at once; begins anew each time.

    Raises:
        BadNumbersError: An answer of the model is not finite; written to the RUN.
        CytoDinoError: A named failure of the machine.
    """
    current = with_kept_batch(recipe, run)

    def keep(size: int, smaller: int) -> None:
        logger.warning("scoring: not enough memory for %d pictures at once; going on with %d", size, smaller)
        _keep_evaluation_batch(run, size, smaller)

    def repeat() -> T:
        size = current.training.per_device_eval_batch_size
        if not recipe.training.halve_batch_on_out_of_memory:
            return score(batch_size=size)
        return halving(lambda size: score(batch_size=size), size, keep)

    with deaths_noted() as deaths:
        try:
            return repeat()
        except BadNumbersError as error:
            keep_evidence(error, run, None)
            raise
        except Exception as error:
            named = named_failure(error, FINE_TUNING, batch_in_words(current), deaths)
            if named is None:
                raise
            drop_frames(error)
            raise named from error


def with_kept_batch(recipe: R, run: RunFolder) -> R:
    """The recipe with the batches that an earlier lack of memory left."""
    kept = run.recall(BATCH) or {}
    if not kept:
        return recipe
    changed: R = replace(recipe, training=recipe.training.model_copy(update=kept))  # type: ignore[type-var]
    return changed


def setbacks(run: RunFolder) -> list[str]:
    """What went wrong with the machine and what was done about it, in sentences, for the report."""
    return list(run.recall(SETBACKS) or [])


def keep_evidence(
    error: BadNumbersError, run: RunFolder, save_weights: Callable[[Path], None] | None
) -> None:
    """Write what is known of bad numbers, and the last good weights, into the RUN; the message names both.

    Args:
        error: Its findings are written; its message is completed.
        run: The RUN folder.
        save_weights: Writes the weights of before the step into a folder; None where there are none yet.
    """
    findings = error.findings

    def write() -> str:
        weights = None
        if save_weights is not None and "micro_batches" in findings and not findings["weights"]:
            save_weights(run.path / LAST_GOOD_FOLDER)
            weights = LAST_GOOD_FOLDER
        write_json(run.path / BAD_NUMBERS_FILE, findings | {"last_good_weights": weights})
        kept = f"All of it: {run.path / BAD_NUMBERS_FILE}"
        return kept + (f"; the weights before this step, as a model: {run.path / weights}" if weights else "")

    # The others wait: a launcher stops all processes as soon as one is gone.
    error.args = (f"{error.args[0]}\n{on_first_process(write)}",)


def save_with_base(recipe: Recipe, run: RunFolder, trainer: CytoTrainer, folder: Path) -> None:
    """Write the model of a fine-tuning so that it loads from the folder alone."""
    save_model(trainer.plain_model, trainer.processor, folder, recipe.model.method)
    # A backbone that is not on the Hub travels with its adapter.
    if run.base.is_dir() and recipe.model.method != "full":
        for file in run.base.iterdir():
            _link(file, folder / run.base.name / file.name)


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)


def _setback(named: CytoDinoError, recipe: TrainedRecipe, run: RunFolder, was_killed: bool) -> str | None:
    """Note in the RUN what happened and what changes; None where the run cannot go on by itself."""
    training = recipe.training
    told = None
    if isinstance(named, WorkerKilledError) and not was_killed:
        told = str(named).partition(". ")[0]
    size, accumulation = training.per_device_train_batch_size, training.gradient_accumulation_steps
    # A pretraining has no such key: what its loss says of a picture depends on the others of the micro-batch.
    may_halve = getattr(training, "halve_batch_on_out_of_memory", False)
    if isinstance(named, NotEnoughMemoryError) and size > 1 and may_halve:
        smaller, more = smaller_batch(size, accumulation)
        kept = {"per_device_train_batch_size": smaller, "gradient_accumulation_steps": more}
        run.remember(BATCH, (run.recall(BATCH) or {}) | kept)
        told = (
            f"not enough memory for {size} pictures at once x {accumulation}: {smaller} x {more} from here on, the "
            "same effective batch"
        )
    if told is not None:
        _note(run, told)
    return told


def _keep_evaluation_batch(run: RunFolder, size: int, smaller: int) -> None:
    run.remember(BATCH, (run.recall(BATCH) or {}) | {"per_device_eval_batch_size": smaller})
    _note(run, f"not enough memory to evaluate {size} pictures at once: {smaller} from here on")


def _note(run: RunFolder, sentence: str) -> None:
    told = setbacks(run)
    if told[-1:] != [sentence]:  # processes of one training have the same setback in the same step
        run.remember(SETBACKS, [*told, sentence])


def batch_in_words(recipe: Recipe) -> str:
    """What decides the memory of a step, in words."""
    training, data = recipe.training, recipe.data
    return (
        f"A step takes {training.per_device_train_batch_size} pictures of {data.image_size_px} px at once "
        f"(x {training.gradient_accumulation_steps} accumulated), evaluation {training.per_device_eval_batch_size}, "
        f"with {training.dataloader_num_workers} reading processes"
    )


def _dispose(trainer: Any) -> None:
    """Free a trainer that failed: its tensors, its reading processes, what accelerate remembers of its loop."""
    if trainer is not None:
        trainer.accelerator.free_memory()
        trainer.accelerator.gradient_state._reset_state()
        trainer.__dict__.clear()
    release_memory()
