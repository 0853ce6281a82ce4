"""What the features are worth while pretraining runs: nearest neighbours on a labelled set, every so many steps."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from transformers import TrainerCallback

from ..data.dataset import CellDataset
from ..evaluation.features import frozen_features
from ..evaluation.metrics import confusion_matrix
from ..evaluation.neighbours import knn_predict
from ..evaluation.statistics import metric_intervals
from ..model.image_processing_cytodino import CytoDinoImageProcessor
from ..training.processes import on_first_process
from .recipe import PretrainRecipe

if TYPE_CHECKING:
    from torch import nn

    from .mixture import Mixture
    from .trainer import PretrainingTrainer

#: Pictures at once: without gradients memory is no question.
BATCH = 128
_INTERVAL_DRAWS = 1000


@dataclass(frozen=True)
class NeighbourProbe:
    """Neighbours are looked for in the training fold, the validation fold is scored.

    Args:
        train, validation: The folds, as an evaluation sees their pictures.
        classes: How many there are.
        k: Neighbours that vote.
        workers: Processes that read pictures.
    """

    train: CellDataset
    validation: CellDataset
    classes: int
    k: int
    workers: int

    def score(self, backbone: nn.Module) -> dict[str, float]:
        """Accuracy and balanced accuracy of the validation fold by 1 and by k neighbours, with 95 % intervals.

        Returns:
            `knnK_METRIC`, `knnK_METRIC_low`, `knnK_METRIC_high`, and `knn_images`, on which they rest.
        """
        is_bf16 = os.environ.get("ACCELERATE_MIXED_PRECISION") == "bf16"
        precision: Literal["float32", "bfloat16"] = "bfloat16" if is_bf16 else "float32"
        train, validation = (
            frozen_features(
                backbone,
                fold,
                batch_size=BATCH,
                workers=self.workers,
                precision=precision,
                show_progress=False,
            )
            for fold in (self.train, self.validation)
        )
        truth = np.asarray(self.validation.labels)
        counted = np.isin(np.arange(self.classes), self.train.labels)
        found = {"knn_images": float(len(truth))}
        for k in dict.fromkeys((1, self.k)):
            called = knn_predict(train, np.asarray(self.train.labels), validation, k, self.classes)
            matrix = confusion_matrix(truth, called, self.classes)
            intervals = metric_intervals(matrix, counted, draws=_INTERVAL_DRAWS, seed=0)
            for name in ("accuracy", "balanced_accuracy"):
                interval = intervals[name]
                found |= {f"knn{k}_{name}": interval.value}
                found |= {f"knn{k}_{name}_low": interval.low, f"knn{k}_{name}_high": interval.high}
        return found


def build_probe(recipe: PretrainRecipe, mixture: Mixture) -> NeighbourProbe | None:
    """The probe of a recipe, or None where it has none.

    Args:
        recipe: The recipe.
        mixture: What is pretrained on; it was freed of what the probe scores.
    """
    if mixture.labelled is None:
        return None
    images = mixture.labelled.images
    section, side = recipe.probe, recipe.probe.image_size_px or recipe.views.global_size_px
    size = {"height": side, "width": side}
    crop = section.center_crop_px
    processor = CytoDinoImageProcessor(
        hide_center_px=section.hide_center_px,
        size=size,
        do_center_crop=crop is not None,
        crop_size={"height": crop, "width": crop} if crop is not None else size,
        image_mean=list(recipe.model.image_mean),
        image_std=list(recipe.model.image_std),
    )
    return NeighbourProbe(
        train=CellDataset(images.fold("train"), processor),
        validation=CellDataset(images.fold("validation"), processor),
        classes=len(images.taxonomy),
        k=section.k,
        workers=recipe.training.dataloader_num_workers,
    )


class ProbeCallback(TrainerCallback):
    """Scores the teacher before the first step, every so many steps, and after the last one.

    Args:
        trainer: Whose teacher.
        probe: What to score it on.
        every_steps: How often.
    """

    def __init__(self, trainer: PretrainingTrainer, probe: NeighbourProbe, every_steps: int) -> None:
        self.trainer, self.probe, self.every_steps = trainer, probe, every_steps

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 0:
            self._score()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        step = state.global_step
        if step % self.every_steps == 0 or step >= state.max_steps:
            is_log_due = control.should_log
            self._score()
            control.should_log = is_log_due  # a line of ours is taken for the line of this step

    def _score(self) -> None:
        backbone = self.trainer.ibot.teacher.backbone
        self.trainer.log(on_first_process(lambda: self.probe.score(backbone)))
