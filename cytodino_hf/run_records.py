"""What a report says of a run besides its scores: the model, the training, the data, and pictures of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from .data.dataset import CellDataset, pick_examples
from .files import file_sha256
from .model_builder import WEIGHTS_FILE, count_parameters

if TYPE_CHECKING:
    from .data.samples import CellImages
    from .data.splits import Split
    from .model.image_processing_cytodino import CytoDinoImageProcessor
    from .recipe import Recipe
    from .run_folder import RunFolder
    from .trainer import CytoTrainer

_PANEL_IMAGES_PER_CLASS = 6
_STRIP_ROWS, _STRIP_COLUMNS = 4, 7


def model_record(model: nn.Module, run: RunFolder, recipe: Recipe) -> dict[str, Any]:
    """Revision and size of the model; read it before LoRA is merged, which changes the counts."""
    parameters = count_parameters(model)
    return {
        "revision": file_sha256(run.path / WEIGHTS_FILE[recipe.model.method]),
        "scored_in": recipe.evaluation.precision,
        "parameters": vars(parameters) | {"total": parameters.total},
    }


def training_record(trainer: CytoTrainer) -> dict[str, Any]:
    """What the training came to, with its log; over all starts where it was interrupted."""
    state = trainer.state
    best = None
    if state.best_metric is not None:
        best = {"name": trainer.args.metric_for_best_model, "value": state.best_metric}
    return {
        "steps": state.global_step,
        "epochs": state.epoch,
        "best_step": state.best_global_step,
        "best_metric": best,
        "seconds": trainer.seconds,
        "processes": trainer.args.world_size,
        "log_history": state.log_history,
    }


def data_record(split: Split) -> dict[str, Any]:
    """Which images, how they are split, and what was left out."""
    images = split.images
    return {
        "source": images.source,
        "attribution": images.attribution,
        "is_drawn": images.is_drawn,
        "counts": split.counts(),
        "promise": split.promise,
        "group_kind": images.group_kind,
        "rejected": [{"path": image.path, "reason": image.reason} for image in images.rejected],
        "notes": list(split.notes),
        "fingerprint": images.fingerprint(),
    }


def class_panel(images: CellImages, processor: CytoDinoImageProcessor) -> dict[str, list[Any]]:
    """The first few training images of each class, at the size of their files."""
    # At the size of the file, not of the model: a person should see what is to be told apart.
    whole = CellDataset(images, processor)
    rows = pick_examples(images, _PANEL_IMAGES_PER_CLASS)
    return {code: [whole.original(row) for row in chosen] for code, chosen in rows.items()}


def augmentation_strip(train: CellDataset) -> list[list[Any]]:
    """A few training images, each plain and as the first epoch would vary it."""
    step = max(1, len(train) // _STRIP_ROWS)
    rows = list(range(0, len(train), step))[:_STRIP_ROWS]
    return [
        [train.pixels(row), *(train.pixels((row, 0, position)) for position in range(_STRIP_COLUMNS))]
        for row in rows
    ]
