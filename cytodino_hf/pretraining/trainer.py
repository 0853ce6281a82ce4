"""PretrainingTrainer: student by gradient, teacher by moving mean, every pace a function of the step."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import Sampler
from transformers import TrainerCallback, TrainingArguments

from ..errors import DataError
from ..launch import give_back_freed_memory
from ..training.arguments import build_arguments
from ..training.guarded_trainer import GuardedTrainer
from .masks import masked_places
from .model import IBotModel
from .monitor import Monitor
from .paces import Paces
from .recipe import PretrainRecipe, PretrainTrainingSection
from .remedies import PRETRAINING

logger = logging.getLogger(__name__)

# Keys of the training section that TrainingArguments does not know, or knows under another meaning.
_OURS = (
    "base_learning_rate", "min_learning_rate", "final_weight_decay", "activation_checkpointing", "collapse_grace",
    "save_dtype", "save_total_limit",
)  # fmt: skip
# Not pulled to zero: norms and biases have one dimension, and what stands for a token is no weight.
_TOKENS = ("cls_token", "mask_token", "register_tokens", "position_embeddings", "lambda1")


class PretrainingTrainer(GuardedTrainer):
    """Trainer of an `IBotModel`.

    - Learning rate, weight decay, teacher temperature, momentum and the standing still of the last layer are functions
      of the step alone, so that a resumed run needs to remember none of them.
    - The teacher follows after every optimizer step, once, however many micro-batches the step has.
    - A checkpoint holds student, teacher and centres.
    - Every step has a whole batch: centres and Sinkhorn depend on it. What is left of an epoch's draws is left out;
      the next epoch draws anew.

    Args:
        recipe: The recipe.
        paces: Schedules over all steps.
        monitor: Watches what the teacher says.
        sampler: Draws `(row, epoch, position)`.
        ids: Of each row, to name images in a message.
        kwargs: As for `transformers.Trainer`.
    """

    loss_is_scaled_for_ga = False
    may_halve_batch = False
    remedies = PRETRAINING

    def __init__(
        self,
        *,
        recipe: PretrainRecipe,
        paces: Paces,
        monitor: Monitor,
        sampler: Sampler[Any],
        ids: Sequence[str],
        **kwargs: Any,
    ) -> None:
        super().__init__(data_collator=as_batch, checkpoint_limit=recipe.training.save_total_limit, **kwargs)
        self.recipe, self.paces, self.monitor = recipe, paces, monitor
        self.draws, self.ids = sampler, ids
        device = self.args.device
        self._mean = torch.tensor(recipe.model.image_mean, device=device).mul_(255).view(1, 1, 3, 1, 1)
        self._std = torch.tensor(recipe.model.image_std, device=device).mul_(255).view(1, 1, 3, 1, 1)
        self.add_callback(_Pacemaker(self))

    @property
    def ibot(self) -> IBotModel:
        """Student and teacher, without the wrapper of data-parallel training."""
        model = self.plain_model
        assert isinstance(model, IBotModel)
        return model

    def _training_ids(self, rows: list[int]) -> list[str]:
        return [self.ids[row] for row in rows]

    def _get_train_sampler(self, train_dataset: Any = None) -> WholeBatches:
        per_step = images_per_step(self.recipe.training, self.args.world_size)
        self.sampler = WholeBatches(self.draws, per_step)
        return self.sampler

    def normalized(self, views: Tensor) -> Tensor:
        """uint8 (batch, views, height, width, 3) -> float32 (batch, views, 3, height, width), on the device."""
        return (
            views.permute(0, 1, 4, 2, 3)
            .to(torch.float32, memory_format=torch.contiguous_format)
            .sub_(self._mean)
            .div_(self._std)
        )

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """iBOT's loss of one micro-batch, the mean over its images."""
        local_views = inputs.get("local_views")
        output = model(
            self.normalized(inputs["global_views"]),
            inputs["masks"],
            inputs["places"],
            inputs["weights"],
            self.normalized(local_views) if local_views is not None else None,
            self.paces.teacher_temperature(self.state.global_step),
        )
        features = output.teacher_features  # the two views of an image side by side
        self.monitor.note(output)
        self.note_batch(inputs, output.loss, features.unflatten(0, (len(inputs["rows"]), 2)))
        return (output.loss, output) if return_outputs else output.loss

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW over what trains, with and without weight decay, and the heads' last layers by themselves."""
        if self.optimizer is None:  # type: ignore[has-type]
            target = self.model if model is None else model
            optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, target)
            self.optimizer = optimizer_class(parameter_groups(target), **options)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The learning rate of each group as a function of the step."""
        if self.lr_scheduler is None:  # type: ignore[has-type]
            inner = self.optimizer if optimizer is None else optimizer
            rates: list[Callable[[int], float]] = [
                self.paces.last_layer_share
                if group["name"].startswith("last layer")
                else self.paces.rate_share
                for group in inner.param_groups
            ]
            self.lr_scheduler = LambdaLR(inner, rates)
        return self.lr_scheduler

    def set_weight_decay(self) -> None:
        """Before a step: weight decay of the groups that decay."""
        decay = self.paces.weight_decay(self.state.global_step)
        for group in self.optimizer.param_groups:
            if not group["name"].endswith("no decay"):
                group["weight_decay"] = decay

    def update_teacher(self) -> None:
        """After a step: the teacher follows the student."""
        self.ibot.update_teacher(self.paces.momentum(self.state.global_step))

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Multiplications and additions of a micro-batch in the backbones: 6 a weight and token, 2 of the teacher."""
        if self._weights is None:
            self._weights = sum(p.numel() for p in self.ibot.student.backbone.parameters())
        return 8 * self._weights * inputs["masks"].numel()

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """As Trainer's, with what the monitor saw since the last line, and the paces of the newest step.

        Raises:
            CollapseError: The teacher has collapsed.
        """
        step = self.state.global_step
        # The last line of all, with the mean loss of the run, tells of the steps after the line before it.
        is_line = "loss" in logs or ("train_loss" in logs and self.monitor.has_news)
        seen = self.monitor.report(self.accelerator) if is_line else {}
        paces = self.paces.at(step - 1) if is_line else {}
        super().log(logs | seen | paces | {"seconds": round(self.seconds, 1)}, *args, **kwargs)
        if not is_line:
            return
        if self.args.device.type == "cpu":
            give_back_freed_memory()  # masked patches are of another number in every step
        if step >= self.recipe.training.collapse_grace * self.paces.steps:
            warning = self.monitor.judge(seen, step)
            if warning and self.is_world_process_zero():
                logger.warning("%s", warning)

    def kept_tensors(self) -> dict[str, Tensor]:
        """Student, teacher and centres."""
        model = self.plain_model
        lasting = (
            model.state_dict().keys()
        )  # without what is computed anew, such as the positions' frequencies
        tensors = dict(model.named_parameters()) | dict(model.named_buffers())
        return {name: tensor for name, tensor in tensors.items() if name in lasting}

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        self.monitor.save(self._monitor_file(output_dir))

    def _init_training_state(
        self, max_steps: int, updates: int, epochs: int, resume_from_checkpoint: str | None, trial: Any
    ) -> tuple[int, int]:
        self.monitor.clear()
        if resume_from_checkpoint is not None:
            self.monitor.load(self._monitor_file(resume_from_checkpoint))
        return super()._init_training_state(max_steps, updates, epochs, resume_from_checkpoint, trial)

    def _monitor_file(self, checkpoint: str) -> Path:
        return Path(checkpoint) / f"monitor_{self.args.process_index}.safetensors"


class WholeBatches(Sampler[Any]):
    """The draws of an epoch, as many as fill whole steps.

    Args:
        draws: Gives the keys of an epoch, in order.
        step: Images of one optimizer step, over all processes.

    Raises:
        DataError: An epoch does not fill one step.
    """

    def __init__(self, draws: Any, step: int) -> None:
        self.draws = draws
        self.length = len(draws) // step * step
        if not self.length:
            raise DataError(
                f"an epoch has {len(draws)} images and a step takes {step}: lower "
                "training.per_device_train_batch_size or gradient_accumulation_steps, or set data.images_per_epoch"
            )

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration gives."""
        self.draws.set_epoch(epoch)

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Any:
        for _, key in zip(range(self.length), self.draws, strict=False):
            yield key


class _Pacemaker(TrainerCallback):
    """Calls the trainer before and after each optimizer step."""

    def __init__(self, trainer: PretrainingTrainer) -> None:
        self.trainer = trainer

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.set_weight_decay()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.update_teacher()


def as_batch(items: Mapping[str, Tensor] | Sequence[Any]) -> dict[str, Tensor]:
    """A batch as `IBotModel` takes it.

    Args:
        items: Single items of a `ViewDataset`, or what its `__getitems__` gave, which is a batch already.

    Returns:
        The batch, and `places` and `weights` (masked,) of its masked patches, from `masked_places`.
    """
    if not isinstance(items, Mapping):
        items = {name: torch.stack([torch.as_tensor(item[name]) for item in items]) for name in items[0]}
    places, weights = masked_places(items["masks"].flatten(0, 1).numpy())
    return dict(items) | {"places": torch.from_numpy(places), "weights": torch.from_numpy(weights)}


def parameter_groups(model: nn.Module) -> list[dict[str, Any]]:
    """Split what trains: heads' last layers and the rest, each with and without weight decay.

    Returns:
        Groups for a torch optimizer, with `name`; empty ones left out.
    """
    groups: dict[str, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        part = "last layer" if ".last_layer." in name else "student"
        decays = parameter.ndim > 1 and not name.endswith((".bias", *_TOKENS))
        groups.setdefault(part if decays else f"{part}, no decay", []).append(parameter)
    return [
        {"name": name, "params": parameters} | ({"weight_decay": 0.0} if name.endswith("no decay") else {})
        for name, parameters in groups.items()
    ]


def images_per_step(training: PretrainTrainingSection, processes: int) -> int:
    """Images of one optimizer step, over all processes."""
    return training.per_device_train_batch_size * training.gradient_accumulation_steps * processes


def pretraining_arguments(training: PretrainTrainingSection) -> TrainingArguments:
    """TrainingArguments from the training section; precision comes from accelerate's environment."""
    values = training.model_dump()
    for key in _OURS:
        values.pop(key)
    arguments = build_arguments(
        values,
        eval_strategy="no",
        save_strategy="steps",
        ddp_broadcast_buffers=False,  # the centres are reduced over the processes and equal everywhere
    )
    arguments.learning_rate = learning_rate(training, arguments.world_size)
    return arguments


def learning_rate(training: PretrainTrainingSection, processes: int) -> float:
    """The largest rate of the schedule: it grows with the images of a step."""
    return training.base_learning_rate * images_per_step(training, processes) / 256
