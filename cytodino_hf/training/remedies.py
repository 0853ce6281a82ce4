"""What a user may change against a failure, in the keys of the recipe at hand: each kind of training has its own."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Remedies:
    """Sentences for the messages of `failures` and `guards`.

    Args:
        memory: Where the memory of GPU or machine does not suffice.
        workers: Where the system killed a process that reads images.
        numbers: Where a loss, a gradient or an answer is not finite.
        learning_rate: The key that is lowered where weights have gone bad.
    """

    memory: str
    workers: str
    numbers: str
    learning_rate: str


FINE_TUNING = Remedies(
    memory=(
        "Set a smaller training.per_device_train_batch_size with as many times more gradient_accumulation_steps (the "
        "same result), training.activation_checkpointing true, model.lora_dropout 0 or a smaller data.image_size_px; "
        "`--dry-run` shows an estimate."
    ),
    workers=(
        "Set fewer training.dataloader_num_workers, data.cache 'none', or a smaller "
        "training.dataloader_prefetch_factor."
    ),
    numbers=(
        "Look at these images and leave out what is no picture of a cell; or lower training.learning_rate (and "
        "head_learning_rate), lengthen training.warmup_steps, train in float32 (`--mixed_precision no`). A changed "
        "recipe needs another training.output_dir."
    ),
    learning_rate="training.learning_rate",
)
