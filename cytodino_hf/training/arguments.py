"""TrainingArguments as every training of this project needs them."""

from __future__ import annotations

import logging
from typing import Any

import torch
from transformers import TrainingArguments

logger = logging.getLogger(__name__)


def build_arguments(values: dict[str, Any], **fixed: Any) -> TrainingArguments:
    """TrainingArguments of one process on one device; precision comes from accelerate's environment.

    Args:
        values: Of a recipe; they win over what is usual here.
        fixed: What a recipe cannot change.
    """
    values = dict(values)
    # Pinned memory is of no use without a GPU, and torch warns of it.
    values.setdefault("dataloader_pin_memory", torch.cuda.is_available())
    # From pinned memory batches are copied to the GPU while it computes; else the host would wait for each copy.
    if values["dataloader_pin_memory"]:
        values.setdefault("accelerator_config", {"non_blocking": True})
    # Every parameter that trains has a gradient in every step (a test holds it), so no process need search for one.
    values.setdefault("ddp_find_unused_parameters", False)
    fixed |= {
        "remove_unused_columns": False,
        "logging_nan_inf_filter": False,  # it hides bad numbers, and waits for the GPU in every step
        "restore_callback_states_from_checkpoint": True,  # the patience of early stopping
    }
    return _one_gpu_a_process(TrainingArguments(**values | fixed))


def _one_gpu_a_process(arguments: TrainingArguments) -> TrainingArguments:
    # Trainer would spread one process over all GPUs it sees (DataParallel) and multiply the batch of the recipe.
    if arguments.n_gpu > 1:
        logger.warning(
            "%d GPUs are here and one process was started: one is used. For all of them start the same command by "
            "torchrun --standalone --nproc-per-node %d",
            arguments.n_gpu,
            arguments.n_gpu,
        )
        arguments._n_gpu = 1
    return arguments
