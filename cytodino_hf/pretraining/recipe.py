"""A pretraining recipe is one JSON file that describes one whole run of iBOT on unlabelled cells.

Its sections follow the way of the data: data, views, model, objective, training, probe, hub. Those of images and
views stand beside the code that reads them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field

from ..errors import RecipeError
from ..recipe import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    BackboneSection,
    Fractions,
    HubSection,
    Section,
    known_sections,
    read_document,
)
from ..recipe_checks import check_backbone, check_source, take_out_misplaced
from ..recipe_mistakes import check_model, check_source_options
from .mixture_section import MixturePlan, parse_mixture
from .views import ViewsSection, views_contradictions

# Cosines differ by 2 at most, and exp(-2 / .025) = 2e-35 is well above the least float32.
_LEAST_SINKHORN_TEMPERATURE = 0.025

SECTIONS = ("data", "views", "model", "objective", "training", "probe", "hub")


class PretrainModelSection(BackboneSection):
    """The backbone that learns: from scratch, or one to go on from. What the masks hide, and nothing else, is new."""

    image_mean: list[float] = Field(
        list(IMAGENET_MEAN), min_length=3, max_length=3, description="per channel, of 1"
    )
    image_std: list[float] = Field(
        list(IMAGENET_STD), min_length=3, max_length=3, description="per channel, of 1"
    )
    position_jitter: bool = Field(
        True, description="a DINOv3 student rescales its positions at random, as in DINOv3's own pretraining"
    )


class ObjectiveSection(Section):
    """What the student learns: heads, temperatures, centring, masks, weights of the losses, pace of the teacher."""

    out_dim: int = Field(8192, ge=2, le=1_000_000, description="prototypes: width of the heads' output")
    hidden_dim: int = Field(2048, ge=1, le=65_536, description="width of the heads' hidden layers")
    bottleneck_dim: int = Field(256, ge=1, le=65_536, description="width of the unit vectors that meet them")
    separate_patch_head: bool = Field(False, description="patches have a head of their own, as in DINOv2")
    student_temperature: float = Field(0.1, gt=0, le=10, description="divides the student's logits")
    teacher_temperature: float = Field(
        0.04, gt=0, le=10, description="of the teacher, CLS and patches, at first"
    )
    final_teacher_temperature: float = Field(
        0.07, gt=0, le=10, description="of the teacher after its warm-up"
    )
    teacher_temperature_warmup: float = Field(0.3, ge=0, le=1, description="share of the steps it rises in")
    centering: Literal["centre", "sinkhorn", "none"] = Field(
        "centre", description="keeps the teacher off one answer for all; `none` collapses, for showing only"
    )
    centre_momentum: float = Field(0.9, ge=0, lt=1, description="of the moving means behind `centre`")
    sinkhorn_iterations: int = Field(3, ge=1, le=100, description="rounds of `sinkhorn`")
    mask_probability: float = Field(
        0.5, ge=0, le=1, description="share of the global views with masked patches"
    )
    mask_ratio: float = Field(0.3, ge=0, le=1, description="mean share of the patches of such a view")
    mask_ratio_variance: float = Field(0.2, ge=0, le=1, description="the share is drawn within ratio +- this")
    mask_aspect: list[float] = Field(
        [0.3, 3.3], min_length=2, max_length=2, description="least and largest height over width of a block"
    )
    cls_weight: float = Field(1.0, ge=0, le=1000, description="of the loss on whole pictures, across views")
    patch_weight: float = Field(1.0, ge=0, le=1000, description="of the loss on masked patches")
    koleo_weight: float = Field(
        0.0, ge=0, le=1000, description="of the loss that spreads CLS features; DINOv2: 0.1"
    )
    momentum: float = Field(0.996, ge=0, le=1, description="of the moving mean that is the teacher, at first")
    final_momentum: float = Field(1.0, ge=0, le=1, description="and at the end, on a cosine")
    freeze_last_layer: float = Field(
        0.01, ge=0, lt=1, description="share of the steps in which the heads' last layer stands still"
    )
    drop_path: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="share of images that skip the student's last block; rises from 0 with depth",
    )


class PretrainTrainingSection(Section):
    """TrainingArguments' names where they have one; the schedules are iBOT's."""

    output_dir: str = Field(description="the RUN folder: checkpoints, log, backbone")
    base_learning_rate: float = Field(
        5e-4, gt=0, le=10, description="for 256 images a step; the rate is this x images a step / 256"
    )
    min_learning_rate: float = Field(1e-6, ge=0, le=10, description="where the cosine ends")
    warmup_steps: float = Field(0.1, ge=0, description="steps, or a share of all steps when below 1")
    weight_decay: float = Field(0.04, ge=0, le=10, description="at first; not on norms, biases and tokens")
    final_weight_decay: float = Field(0.4, ge=0, le=10, description="and at the end, on a cosine")
    adam_beta1: float = Field(0.9, ge=0, lt=1)
    adam_beta2: float = Field(0.999, ge=0, lt=1)
    max_grad_norm: float = Field(3.0, ge=0, description="gradient clipping; 0 is none")
    num_train_epochs: float = Field(100.0, gt=0, description="passes over the sampler's draws")
    max_steps: int = Field(-1, ge=-1, description="optimizer steps; overrides the epochs when positive")
    per_device_train_batch_size: int = Field(64, ge=1, description="images at once on one device")
    gradient_accumulation_steps: int = Field(1, ge=1, description="micro-batches of one optimizer step")
    activation_checkpointing: bool = Field(
        False, description="compute activations again instead of keeping them"
    )
    seed: int = Field(0, ge=0, lt=2**32, description="weights, order, views, masks")
    dataloader_num_workers: int = Field(2, ge=0, description="processes that make views; changes no pixel")
    logging_steps: int = Field(20, ge=1, description="steps between two lines of the log")
    save_steps: int = Field(500, ge=1, description="steps between two checkpoints")
    save_total_limit: int | None = Field(2, ge=1, description="newest checkpoints that stay; null keeps all")
    report_to: str | list[str] = Field("tensorboard", description="where the log goes besides the RUN")
    disable_tqdm: bool = Field(False, description="no progress bar")
    collapse_grace: float = Field(
        0.1, ge=0, le=1, description="share of the steps before a collapse can stop the run"
    )
    save_dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="of the backbone that is written"
    )


class ProbeSection(Section):
    """A labelled set that tells, while pretraining runs, what the features are worth; null source: none.

    Neighbours are looked for in its training fold, and its validation fold is scored. No fold but the training fold is
    pretrained on.
    """

    source: str | None = Field(None, description="one of the sources; null: no probe")
    root: str | None = Field(None, description="folder of the images; null: no probe, unless they are drawn")
    taxonomy: str = Field("mll", description="as in a fine-tuning recipe")
    split: str = Field("stratified", description="as in a fine-tuning recipe")
    split_seed: int = Field(0, ge=0, description="seed of the stratified split")
    fractions: Fractions = Field(default_factory=Fractions, description="share of each fold")
    center_crop_px: int | None = Field(None, ge=8, description="centred square cut out first; null keeps all")
    hide_center_px: int = Field(0, ge=0, le=64, description="centred square painted over")
    image_size_px: int | None = Field(None, ge=8, le=4096, description="null: as the global views")
    k: int = Field(20, ge=1, description="neighbours that vote")
    every_steps: int = Field(500, ge=1, description="steps between two probes")

    @property
    def is_on(self) -> bool:
        """Whether there is anything to probe on."""
        return self.source is not None and (self.root is not None or self.source == "synthetic")


def objective_contradictions(objective: ObjectiveSection) -> list[str]:
    """Values that are allowed each but not together, one line each."""
    found = []
    low, high = objective.mask_aspect
    if not 0 < low <= high:
        found.append(f"objective.mask_aspect = [{low}, {high}]: must be [least, largest], both above 0")
    ratio, variance = objective.mask_ratio, objective.mask_ratio_variance
    if variance > ratio or ratio + variance > 1:
        found.append(
            f"objective.mask_ratio_variance = {variance}: mask_ratio = {ratio} +- {variance} leaves 0 to 1; "
            f"at most {min(ratio, 1 - ratio):g}"
        )
    coldest = min(objective.teacher_temperature, objective.final_teacher_temperature)
    if objective.centering == "sinkhorn" and coldest < _LEAST_SINKHORN_TEMPERATURE:
        found.append(
            f"objective.teacher_temperature = {coldest}: with centering `sinkhorn` at least "
            f"{_LEAST_SINKHORN_TEMPERATURE}; below it float32 holds no share of the worst pictures"
        )
    return found


@dataclass(frozen=True)
class PretrainRecipe:
    """One whole pretraining, checked. `probe_options` holds the options of every source for the probe, by its name."""

    data: MixturePlan
    views: ViewsSection
    model: PretrainModelSection
    objective: ObjectiveSection
    training: PretrainTrainingSection
    probe: ProbeSection
    hub: HubSection
    probe_options: Mapping[str, BaseModel]

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Every key with its value, in the form of a recipe file."""
        source = self.probe.source
        options = self.probe_options[source].model_dump(mode="json") if source is not None else {}
        own: dict[str, Any] = {source: options} if source is not None and options else {}
        return {
            "data": self.data.to_dict(),
            "views": self.views.model_dump(mode="json"),
            "model": self.model.model_dump(mode="json"),
            "objective": self.objective.model_dump(mode="json"),
            "training": self.training.model_dump(mode="json"),
            "probe": self.probe.model_dump(mode="json") | own,
            "hub": self.hub.model_dump(mode="json"),
        }


def load_pretrain_recipe(path: str | Path, overrides: Sequence[str] = ()) -> PretrainRecipe:
    """Read a pretraining recipe, apply overrides from the command line, check everything.

    Args:
        path: The JSON file.
        overrides: `["--section.key", "VALUE", ...]` or `["--section.key=VALUE"]`; lists and objects as JSON.

    Raises:
        RecipeError: Anything is wrong; holds all mistakes.
    """
    document, problems = read_document(path, overrides, SECTIONS)
    return parse_pretrain_recipe(document, source=str(path), problems=problems)


def parse_pretrain_recipe(
    document: Mapping[str, Any], *, source: str, problems: Sequence[str] = ()
) -> PretrainRecipe:
    """Check a pretraining recipe given as plain sections.

    Args:
        document: Section name -> keys.
        source: What to call it in errors.
        problems: Mistakes already found, reported together with the others.

    Raises:
        RecipeError: See `load_pretrain_recipe`.
    """
    from ..data.sources import SOURCES

    found = list(problems)
    given = known_sections(document, SECTIONS, found)
    probe = given.get("probe", {})
    options = check_source_options(probe, "probe", SOURCES, found)
    take_out_misplaced(given.get("training", {}), tuple(PretrainTrainingSection.model_fields), found)
    data = parse_mixture(given.get("data", {}), found)
    sections: dict[str, Any] = {
        name: check_model(section, given.get(name, {}), name, found) for name, section in _MODELS.items()
    }
    sections["probe"] = check_model(
        ProbeSection, probe, "probe", found, known=(*ProbeSection.model_fields, *SOURCES)
    )
    _check_contradictions(sections, tuple(SOURCES), found)
    if found:
        raise RecipeError(found, source)
    assert data is not None
    return PretrainRecipe(data=data, **sections, probe_options=options)


_MODELS: dict[str, type[Section]] = {
    "views": ViewsSection,
    "model": PretrainModelSection,
    "objective": ObjectiveSection,
    "training": PretrainTrainingSection,
    "hub": HubSection,
}


def _check_contradictions(sections: Mapping[str, Any], sources: Sequence[str], found: list[str]) -> None:
    model, views, objective = sections["model"], sections["views"], sections["objective"]
    probe, training = sections["probe"], sections["training"]
    if objective is not None:
        found += objective_contradictions(objective)
    if (
        training is not None
        and training.warmup_steps >= 1
        and 0 < training.max_steps <= training.warmup_steps
    ):
        found.append(
            f"training.warmup_steps = {training.warmup_steps:g}: must be fewer than training.max_steps "
            f"{training.max_steps}"
        )
    patch = None
    if model is not None:
        if bad := [v for v in model.image_std if v <= 0]:
            found.append(f"model.image_std = {model.image_std}: must be greater than 0, not {bad[0]:g}")
        _, patch = check_backbone(model, found)
        side = probe.image_size_px if probe is not None else None
        if patch and side is not None and side % patch:
            found.append(
                f"probe.image_size_px = {side}: must be a multiple of the backbone's patch of {patch}"
            )
    if views is not None:
        found += views_contradictions(views, patch)
    if probe is not None and probe.source is not None:
        check_source(probe, "probe", sources, found)
