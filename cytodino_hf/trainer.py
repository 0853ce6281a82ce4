"""CytoTrainer: transformers' Trainer with our loss, our sampler, and a learning rate for each part of the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from transformers import EarlyStoppingCallback, TrainingArguments

from .data.dataset import CellDataset, collate
from .data.samplers import OversamplingSampler
from .errors import DataError
from .lora import merged_for_evaluation
from .model.image_processing_cytodino import CytoDinoImageProcessor
from .recipe import Oversampling, Recipe, TrainingSection
from .training.arguments import build_arguments
from .training.guarded_trainer import GuardedTrainer
from .training.remedies import FINE_TUNING

if TYPE_CHECKING:
    from .taxonomy import Taxonomy

# Keys of the training section that TrainingArguments does not know.
_OURS = (
    "head_learning_rate",
    "backbone_learning_rate",
    "learning_rate_update",
    "early_stopping_patience",
    "halve_batch_on_out_of_memory",
)


class CytoTrainer(GuardedTrainer):
    """Trainer that applies one of `LOSSES` and draws its images with `OversamplingSampler`.

    Args:
        loss: Module (logits, labels) -> scalar, the mean over the batch.
        processor: Normalises uint8 batches on the device.
        training: The training section of the recipe.
        oversampling: How the training images are drawn.
        kwargs: As for `transformers.Trainer`.
    """

    # `loss` is a mean over the batch: Trainer must divide it by the accumulation steps. Without this it would not,
    # because `forward` takes keyword arguments, and the gradient would grow with the accumulation.
    loss_is_scaled_for_ga = False
    remedies = FINE_TUNING

    def __init__(
        self,
        *,
        loss: nn.Module,
        processor: CytoDinoImageProcessor,
        training: TrainingSection,
        oversampling: Oversampling,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            processing_class=processor,
            data_collator=collate,
            checkpoint_limit=training.save_total_limit,
            **kwargs,
        )
        self.processor = processor
        self.loss = loss.to(self.args.device)
        self.training = training
        self.oversampling = oversampling
        self.may_halve_batch = training.halve_batch_on_out_of_memory

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The loss of one batch, the mean over its images; uint8 pictures are normalised here, on the device."""
        pixels = self.processor.normalize_batch(inputs["pixel_values"])
        outputs = model(pixel_values=pixels)
        loss = self.loss(outputs.logits.float(), inputs["labels"])
        if return_outputs:
            return loss, {"loss": loss, "logits": outputs.logits}
        self.note_batch(inputs, loss, outputs.logits)
        return loss

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """As Trainer's, with LoRA folded into the weights; afterwards the very same weights are back."""
        computes_in_bf16 = self.accelerator.native_amp and self.accelerator.mixed_precision == "bf16"
        with merged_for_evaluation(self.model, torch.bfloat16 if computes_in_bf16 else None):
            return super().evaluation_loop(*args, **kwargs)

    def _get_train_sampler(self, train_dataset: Any = None) -> OversamplingSampler:
        dataset = train_dataset if train_dataset is not None else self.train_dataset
        self.sampler = OversamplingSampler(
            dataset.labels,
            power=self.oversampling.power,
            multiplier=self.oversampling.multiplier,
            seed=self.args.seed,
        )
        return self.sampler

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The optimizer of the recipe over groups by part and by decay (see `parameter_groups`)."""
        if self.optimizer is None:  # type: ignore[has-type]
            target = self.model if model is None else model
            optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, target)
            self.optimizer = optimizer_class(parameter_groups(target, self.training), **options)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The schedule of the recipe; with `learning_rate_update: epoch` it moves once an epoch, as published."""
        scheduler = super().create_scheduler(num_training_steps, optimizer)
        if self.training.learning_rate_update == "epoch":
            per_epoch = max(1, round(num_training_steps / self.args.num_train_epochs))
            scheduler.lr_lambdas = [_held(schedule, per_epoch) for schedule in scheduler.lr_lambdas]
        return scheduler


def _held(schedule: Callable[[int], float], per_epoch: int) -> Callable[[int], float]:
    return lambda step: schedule(step // per_epoch * per_epoch)


def parameter_groups(model: nn.Module, training: TrainingSection) -> list[dict[str, Any]]:
    """Split what trains by part (LoRA, head, backbone), each with and without weight decay.

    Norms, biases and the head's query are not decayed: pulling them to zero has no regularising meaning.

    Returns:
        Groups for a torch optimizer, with `name`, `lr`, `weight_decay`; empty ones left out.
    """
    rates = {
        "lora": training.learning_rate,
        "head": training.head_learning_rate or training.learning_rate,
        "backbone": training.backbone_learning_rate or training.learning_rate,
    }
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        part = "lora" if "lora_" in name else "head" if ".head." in f".{name}" else "backbone"
        decays = parameter.ndim > 1 and not name.endswith((".bias", "cls_token", "register_tokens"))
        groups.setdefault((part, decays), []).append(parameter)
    return [
        {
            "name": f"{part}{'' if decays else ', no decay'}",
            "params": parameters,
            "lr": rates[part],
            "weight_decay": training.weight_decay if decays else 0.0,
        }
        for (part, decays), parameters in groups.items()
    ]


def training_arguments(recipe: Recipe) -> TrainingArguments:
    """TrainingArguments from the training section; precision comes from accelerate's environment."""
    from .evaluation.scalar_metrics import is_less_better

    values = recipe.training.model_dump()
    for key in (*_OURS, "save_total_limit"):  # checkpoints are rotated by our own code
        values.pop(key)
    evaluates = recipe.training.eval_strategy != "no"
    metric = recipe.training.metric_for_best_model.removeprefix("eval_")
    return build_arguments(
        values,
        label_names=["labels"],
        load_best_model_at_end=evaluates,
        metric_for_best_model=metric if evaluates else None,
        greater_is_better=metric != "loss" and not is_less_better(metric) if evaluates else None,
    )


def make_compute_metrics(
    taxonomy: Taxonomy, train_labels: list[int], chosen: str | None = None
) -> Callable[[Any], dict[str, float]]:
    """What Trainer calls after each evaluation: our metrics over the classes of the training fold.

    The numbers are those of the public `evaluate` module, without its tables; beside them the metric that chooses the
    checkpoint, where it is another one.
    """
    from .evaluation.metrics import METRICS
    from .evaluation.scalar_metrics import metric_names, scalar_metrics

    counted = np.isin(np.arange(len(taxonomy)), train_labels)
    names = (*METRICS, chosen) if chosen in metric_names(taxonomy) and chosen not in METRICS else METRICS

    def compute(prediction: Any) -> dict[str, float]:
        return scalar_metrics(
            np.asarray(prediction.predictions), prediction.label_ids, taxonomy, counted, names
        )

    return compute


def _check_chosen(
    metric: str | None, taxonomy: Taxonomy, train: CellDataset, validation: CellDataset
) -> None:
    """Refuse a metric that the validation fold cannot have, before hours are spent."""
    from .evaluation.scalar_metrics import metric_names, why_undefined

    if metric not in metric_names(taxonomy):
        return
    counted = np.isin(np.arange(len(taxonomy)), train.labels)
    if reason := why_undefined(metric, np.asarray(validation.labels), taxonomy, counted):
        raise DataError(
            f"training.metric_for_best_model = {metric!r} has no value on the validation fold: {reason}; choose "
            "another metric, such as 'macro_f1', or give the fold more images"
        )


def build_trainer(
    recipe: Recipe,
    *,
    model: nn.Module,
    loss: nn.Module,
    processor: CytoDinoImageProcessor,
    train: CellDataset,
    validation: CellDataset | None,
    taxonomy: Taxonomy,
) -> CytoTrainer:
    """Put the pieces of a recipe together into a trainer that is ready to run.

    Raises:
        DataError: The metric that chooses the checkpoint has no value on the validation fold.
    """
    arguments = training_arguments(recipe)
    if validation is not None:
        _check_chosen(arguments.metric_for_best_model, taxonomy, train, validation)
    trainer = CytoTrainer(
        model=model,
        loss=loss,
        processor=processor,
        training=recipe.training,
        oversampling=recipe.data.oversampling,
        args=arguments,
        train_dataset=train,
        eval_dataset=validation,
        compute_metrics=make_compute_metrics(taxonomy, train.labels, arguments.metric_for_best_model),
    )
    if recipe.training.early_stopping_patience is not None:
        trainer.add_callback(EarlyStoppingCallback(recipe.training.early_stopping_patience))
    return trainer
