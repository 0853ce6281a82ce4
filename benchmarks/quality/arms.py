"""The arms of the comparison: a recipe of the project, its sizes reduced, and what is changed in it.

An ablation is ours with some keys taken back from the published recipe, so that what is compared follows the recipes
wherever they go; all of them together turn ours into the published way (tests/quality/test_quality_arms.py).
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cytodino_hf.errors import CytoDinoError
from cytodino_hf.recipe import DataSection, TrainingSection

if TYPE_CHECKING:
    from .backbones import StudyBackbone
    from .images import StudyImages
    from .settings import StudySettings

RECIPES = Path(__file__).resolve().parent.parent.parent / "recipes"
OURS, PUBLISHED, TINY = "cytodino32", "cytodino_published", "cytodino_tiny"


@dataclass(frozen=True)
class Arm:
    """One way to train.

    Args:
        name: On the command line, in folders and tables.
        title: What differs, in words.
        recipe: File it begins with, without suffix.
        takes: `section.key` (or `section`) that is taken from the published recipe; a key it has not is removed.
        sets: `section.key` -> value that stands in neither.
        precision: `no` is float32; None leaves it to the project's accelerate_config.yaml.
        more: `none`; `equal`: more labelled images in the training fold, as many images shown as in the other arms;
            `all`: every image shown as often as in the other arms.
        is_standard: Part of the study unless arms are named.
    """

    name: str
    title: str
    recipe: str = OURS
    takes: tuple[str, ...] = ()
    sets: Mapping[str, Any] = field(default_factory=dict)
    precision: str | None = None
    more: Literal["none", "equal", "all"] = "none"
    is_standard: bool = False


_SCHEDULE = (
    "training.learning_rate_update",
    "training.lr_scheduler_type",
    "training.lr_scheduler_kwargs",
    "training.warmup_steps",
)
_BATCH = ("training.per_device_train_batch_size", "training.gradient_accumulation_steps")
_ARMS = (
    Arm("ours", "ours", is_standard=True),
    Arm("published", "as published", PUBLISHED, precision="no", is_standard=True),
    Arm("loss", "published loss", takes=("loss", "data.taxonomy"), is_standard=True),
    Arm(
        "sampler",
        "plain shuffle (both ways oversample)",
        sets={"data.oversampling.multiplier": 1.0},
        is_standard=True,
    ),
    Arm("augmentation", "published augmentation", takes=("data.augmentation",), is_standard=True),
    Arm("schedule", "published schedule", takes=_SCHEDULE, is_standard=True),
    Arm("rates", "published learning rate", takes=("training.learning_rate",), is_standard=True),
    Arm("statistics", "published statistics", takes=("data.image_mean", "data.image_std"), is_standard=True),
    Arm("rank", "LoRA rank 64", takes=("model.lora_rank", "model.lora_alpha"), is_standard=True),
    Arm("batch", "published batch, 4 images", takes=_BATCH),
    Arm("rank_down", "LoRA rank 8", sets={"model.lora_rank": 8, "model.lora_alpha": 16.0}),
    Arm("linear", "linear head", sets={"model.head": "linear"}),
    Arm("jitter", "published position jitter", takes=("model.position_jitter",)),
    Arm("center", "centre mark visible", takes=("data.hide_center_px",)),
    Arm("selection", "chosen by weighted F1", takes=("training.metric_for_best_model",)),
    Arm("float32", "float32", precision="no"),
    Arm("focal", "focal loss alone", sets={"loss": {"name": "focal"}}),
    Arm("focal_factor", "focal factor, gamma 2", sets={"loss.gamma": 2.0}, is_standard=True),
    Arm("smoothing", "smoothing .1", sets={"loss.smoothing": 0.1}),
    Arm(
        "cross_entropy",
        "cross-entropy, smoothing .1",
        sets={"loss": {"name": "cross_entropy", "smoothing": 0.1}},
    ),
    Arm(
        "full",
        "everything trains",
        sets={"model.method": "full", "training.backbone_learning_rate": 1e-4},
    ),
    Arm(
        "frozen",
        "linear head on frozen features",
        sets={"model.method": "head", "model.head": "linear", "training.head_learning_rate": 1e-3},
    ),
    Arm("with_more", "more labels, equal images shown", more="equal"),
    Arm("published_with_more", "as published, more labels", PUBLISHED, precision="no", more="equal"),
    Arm("with_more_long", "more labels, equal passes", more="all"),
    Arm("tiny", "rates for a tiny backbone", TINY),
    Arm("tiny_with_more", "rates for a tiny backbone, more labels", TINY, more="equal"),
)
#: Name -> arm; the first is what the others are compared with.
ARMS = {arm.name: arm for arm in _ARMS}


def chosen(names: Sequence[str]) -> list[Arm]:
    """Arms by their names, in the order of the table; without names the standard ones.

    Raises:
        CytoDinoError: An unknown name.
    """
    if unknown := [name for name in names if name not in ARMS]:
        raise CytoDinoError(f"--only {', '.join(unknown)}: no such arm; there are {', '.join(ARMS)}")
    return [arm for arm in ARMS.values() if (arm.name in names if names else arm.is_standard)]


@dataclass(frozen=True)
class Budget:
    """How much a run is shown, in steps of ours, and how often its checkpoint may be chosen.

    Args:
        steps: Optimizer steps with the batch of ours; other batches get steps for as many images.
        choices: Evaluations, evenly spread; divides the steps.
    """

    steps: int
    choices: int


def budget_of(arm: Arm, images: StudyImages, settings: StudySettings) -> Budget:
    """What an arm is shown: every training image as often as by ours, unless `Arm.more` says otherwise.

    An epoch of ours, as `--epochs` counts it, is one choice of a checkpoint. So an arm with a larger training fold has
    the same number of choices after as many images shown, and its schedule falls to the same end.

    Args:
        arm: Which.
        images: Of the study.
        settings: Of the study.
    """
    ours = changed(ARMS["ours"])
    epochs = settings.epochs or ours["training"]["num_train_epochs"]
    choices = max(1, round(epochs))
    if settings.max_steps is not None:
        steps = settings.max_steps
        return Budget(steps, max(n for n in range(1, choices + 1) if steps % n == 0))
    shown = epochs * _multiplier(ours["data"]) * images.train_of(arm.more == "all")
    return Budget(choices * math.ceil(shown / choices / _per_step(ours["training"])), choices)


def recipe_of(
    arm: Arm, images: StudyImages, settings: StudySettings, backbone: StudyBackbone
) -> dict[str, Any]:
    """The whole recipe of an arm but for its seed and folder.

    Every arm is shown as many images (see `budget_of`), is evaluated after as many, and its schedule moves by them: an
    arm whose schedule moves once an epoch moves with each evaluation. A micro-batch of 1 accumulated 4 times is
    computed as a batch of 4, which takes a small model 0.6 of the time: the gradient is the same but for position
    jitter, of which one draw then serves four images.

    Args:
        arm: Which.
        images: Of the study.
        settings: Of the study.
        backbone: What it trains on.
    """
    document, budget = changed(arm), budget_of(arm, images, settings)
    data, model, training = (document.setdefault(name, {}) for name in ("data", "model", "training"))
    data |= images.of(with_more=arm.more != "none").section
    data |= {
        "image_size_px": settings.image_size_px,
        "center_crop_px": backbone.center_crop_px,
        "cache": "pixels",
    }
    model |= {"backbone": backbone.name, "attention": "eager"}
    batch = _per_step(training)
    images_shown = budget.steps * _per_step(changed(ARMS["ours"])["training"])
    every = math.ceil(images_shown / batch / budget.choices)
    steps = every * budget.choices
    training |= {
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": 1,
        "per_device_eval_batch_size": 64,
        "dataloader_num_workers": settings.workers,
        "max_steps": steps,
        "num_train_epochs": float(
            budget.choices
        ),  # of a schedule that moves once an epoch; the steps decide the end
        **{
            f"{what}_{key}": value
            for what in ("eval", "save")
            for key, value in (("strategy", "steps"), ("steps", every))
        },
    }
    return document


def changed(arm: Arm) -> dict[str, Any]:
    """The recipe an arm begins with, and its changes, at full size."""
    document, published = _read(arm.recipe), _read(PUBLISHED)
    for key in arm.takes:
        section, _, name = key.partition(".")
        if not name:
            document[section] = copy.deepcopy(published[section])
        elif name in published[section]:
            document[section][name] = copy.deepcopy(published[section][name])
        else:
            document[section].pop(name, None)
    for key, value in arm.sets.items():
        *path, name = key.split(".")
        place = document
        for part in path:
            place = place.setdefault(part, {})
        place[name] = value
    return document


def accumulates(name: str) -> bool:
    """Whether the recipe of an arm makes an optimizer step of several batches, which `recipe_of` computes as one."""
    training = changed(ARMS[name])["training"]
    return int(training.get("gradient_accumulation_steps", 1)) > 1


def _read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RECIPES / f"{name}.json").read_text(encoding="utf-8"))
    return found


def _per_step(training: Mapping[str, Any]) -> int:
    """Images of one optimizer step."""
    known = TrainingSection.model_fields
    names = ("per_device_train_batch_size", "gradient_accumulation_steps")
    one, steps = (int(training.get(name, known[name].default)) for name in names)
    return one * steps


def _multiplier(data: Mapping[str, Any]) -> float:
    return DataSection.model_validate({"oversampling": data.get("oversampling", {})}).oversampling.multiplier
