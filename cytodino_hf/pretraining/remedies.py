"""What a user may change against a failure of a pretraining."""

from __future__ import annotations

from ..training.remedies import Remedies

PRETRAINING = Remedies(
    memory=(
        "Set a smaller training.per_device_train_batch_size (with more gradient_accumulation_steps a step has as many "
        "images, but centres, Sinkhorn and KoLeo see fewer at once), training.activation_checkpointing true, a smaller "
        "views.global_size_px, fewer views.local_crops or a smaller objective.out_dim; `--dry-run` shows an estimate."
    ),
    workers="Set fewer training.dataloader_num_workers, or cache 'none' for the sources in data.sources.",
    numbers=(
        "Look at these images and leave out what is no picture of a cell; or lower training.base_learning_rate, "
        "lengthen training.warmup_steps, raise objective.teacher_temperature, train in float32 (`--mixed_precision "
        "no`). A changed recipe needs another training.output_dir."
    ),
    learning_rate="training.base_learning_rate",
)
