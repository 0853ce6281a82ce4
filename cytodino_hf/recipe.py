"""A recipe is one JSON file that describes one whole run: data, model, loss, training, evaluation, hub.

`load_recipe` finds every mistake before anything is downloaded or loaded, and reports all of them at once. The
options of a source or a loss are declared in its own file and looked up in the tables `SOURCES` and `LOSSES`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from .errors import RecipeError
from .recipe_checks import check_contradictions, check_training_arguments
from .recipe_mistakes import check_model, check_source_options, parse_overrides, unknown_key

SECTIONS = ("data", "model", "loss", "training", "evaluation", "hub")
# Statistics of the images DINOv3 and DINOv2 were pretrained with.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Section(BaseModel):
    """Base of all sections: no unknown key, no silent conversion, no NaN, no change afterwards."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Fractions(Section):
    """Share of the images in each fold; the four sum to 1."""

    train: float = Field(0.65, gt=0, lt=1)
    validation: float = Field(0.10, gt=0, lt=1)
    calibration: float = Field(0.05, gt=0, lt=1)
    test: float = Field(0.20, gt=0, lt=1)


class Oversampling(Section):
    """Every image once, then N x (multiplier - 1) draws with weight (class count + 1)^-power."""

    power: float = Field(0.7, ge=0, le=2, description="0 draws all images alike, 1 all classes alike")
    multiplier: float = Field(
        1.0, ge=1, le=100, description="images per epoch over images; 1 is a plain shuffle"
    )


class DataSection(Section):
    """Which images, how they are split, cut and varied. A source's own options stand under its name."""

    source: str = Field("mll", description="one of the sources in cytodino_hf/data/sources")
    root: str | None = Field(
        None, description="folder of the images; null lets the source find or fetch them"
    )
    taxonomy: str = Field(
        "mll", description="`mll`, another set's (`harmonised`, `matek19`, ...) or a JSON file of classes"
    )
    split: str = Field(
        "stratified", description="`stratified`, `source`, or a file: path,label,fold or test names"
    )
    split_seed: int = Field(0, ge=0, description="seed of the stratified split")
    fractions: Fractions = Field(default_factory=Fractions, description="share of each fold")
    center_crop_px: int | None = Field(None, ge=8, description="centred square cut out first; null keeps all")
    hide_center_px: int = Field(0, ge=0, le=64, description="centred square painted over in every picture")
    image_size_px: int = Field(256, ge=8, le=4096, description="side of the picture the model sees")
    image_mean: list[float] = Field(
        list(IMAGENET_MEAN), min_length=3, max_length=3, description="per channel, of 1"
    )
    image_std: list[float] = Field(
        list(IMAGENET_STD), min_length=3, max_length=3, description="per channel, of 1"
    )
    augmentation: Literal["default", "published", "none"] = Field(
        "default", description="preset for training images"
    )
    oversampling: Oversampling = Field(
        default_factory=Oversampling, description="rebalancing of rare classes"
    )
    near_duplicates: Literal["group", "ignore"] = Field(
        "group", description="`group`: images that show the same picture share a fold"
    )
    max_rejected_share: float = Field(
        0.01, ge=0, le=1, description="stop when a larger share of the files cannot be used"
    )
    cache: Literal["none", "bytes", "pixels"] = Field(
        "none", description="one file in the user's cache: the files as they are, or decoded"
    )


class BackboneSection(Section):
    """Which backbone, and how it computes."""

    backbone: str | None = Field(None, description="Hub id or local folder of a DINOv3 or DINOv2 ViT")
    revision: str | None = Field(None, description="commit of the backbone on the Hub")
    backbone_config: dict[str, Any] | None = Field(
        None, description="a backbone from scratch, instead of `backbone`"
    )
    attention: Literal["sdpa", "eager"] = Field("sdpa", description="implementation of attention")


class ModelSection(BackboneSection):
    """Backbone, what of it trains, and the head."""

    method: Literal["lora", "head", "full"] = Field("lora", description="what trains besides the head")
    head: Literal["decoder", "linear"] = Field("decoder", description="how tokens become a class")
    decoder_layers: int = Field(4, ge=1, le=48, description="blocks of the decoder head")
    decoder_heads: int = Field(4, ge=1, le=64, description="attention heads of the decoder head")
    decoder_feedforward_ratio: float = Field(
        2.0, gt=0, le=16, description="feed-forward width over token width"
    )
    head_dropout: float = Field(0.2, ge=0, lt=1, description="dropout inside the head")
    lora_rank: int = Field(32, ge=1, le=1024, description="rank of each LoRA update")
    lora_alpha: float = Field(128.0, gt=0, description="the update is scaled by alpha / rank")
    lora_dropout: float = Field(0.1, ge=0, lt=1, description="dropout before each LoRA update; costs memory")
    lora_targets: Literal["all-linear"] | list[str] = Field(
        "all-linear", description="linear layers of the backbone by the end of their name, or all of them"
    )
    lora_last_blocks: int | None = Field(
        None, ge=1, le=1024, description="LoRA on the last blocks of the backbone only; null: on all"
    )
    train_norms: bool = Field(False, description="the backbone's norms train too")
    train_biases: bool = Field(False, description="the backbone's biases train too")
    position_jitter: bool = Field(False, description="DINOv3 rescales positions at random while training")


class TrainingSection(Section):
    """TrainingArguments' own names, with our defaults and limits for the usual ones, and a few of ours."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True, allow_inf_nan=False)

    output_dir: str = Field(description="the RUN folder: checkpoints, model, predictions, report")
    learning_rate: float = Field(
        3e-4, gt=0, le=10, description="of LoRA, and of all without a rate of its own"
    )
    head_learning_rate: float | None = Field(
        None, gt=0, le=10, description="of the head; null: learning_rate"
    )
    backbone_learning_rate: float | None = Field(
        None, gt=0, le=10, description="of backbone weights that train themselves; null: learning_rate"
    )
    learning_rate_update: Literal["step", "epoch"] = Field("step", description="how often the schedule moves")
    weight_decay: float = Field(0.01, ge=0, le=10, description="not on norms, biases and the query")
    num_train_epochs: float = Field(8.0, gt=0, description="passes over the sampler's draws")
    max_steps: int = Field(-1, ge=-1, description="optimizer steps; overrides the epochs when positive")
    per_device_train_batch_size: int = Field(16, ge=1)
    per_device_eval_batch_size: int = Field(32, ge=1)
    gradient_accumulation_steps: int = Field(1, ge=1)
    warmup_steps: float = Field(0.05, ge=0, description="steps, or a share of all steps when below 1")
    lr_scheduler_type: str = Field("cosine")
    max_grad_norm: float = Field(1.0, ge=0)
    seed: int = Field(0, ge=0, lt=2**32)
    dataloader_num_workers: int = Field(2, ge=0)
    logging_steps: float = Field(20, gt=0)
    eval_strategy: Literal["no", "steps", "epoch"] = Field("epoch")
    eval_steps: float | None = Field(None, gt=0)
    save_strategy: Literal["no", "steps", "epoch"] = Field("epoch")
    save_steps: float = Field(500, gt=0)
    save_total_limit: int | None = Field(
        2, ge=1, description="newest checkpoints that stay, the best one besides; null keeps all"
    )
    report_to: str | list[str] = Field("tensorboard")
    metric_for_best_model: str = Field(
        "macro_f1", description="chooses the checkpoint, on the validation fold"
    )
    early_stopping_patience: int | None = Field(None, ge=1, description="evaluations without a better metric")
    halve_batch_on_out_of_memory: bool = Field(
        True, description="go on with a smaller micro-batch and as much more accumulation"
    )


class EvaluationSection(Section):
    """How the final scores are reported."""

    interval_draws: int = Field(2000, ge=100, le=1_000_000, description="draws behind each interval")
    seed: int = Field(0, ge=0, description="seed of the bootstrap")
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="of the backbone in the final scoring; bfloat16 is faster and rounds"
    )
    parts: bool = Field(True, description="false leaves all but the scores to `cytodino evaluate`")
    baselines: bool = Field(True, description="compare with kNN and logistic regression on frozen features")


class HubSection(Section):
    """How the backbone is fetched. Tokens never stand in a recipe: HF_TOKEN or `hf auth login`."""

    local_files_only: bool = Field(
        False, description="never ask the Hub; take the backbone from the local cache"
    )
    cache_dir: str | None = Field(None, description="folder of the local cache; null: the usual one")


class FinalHubSection(HubSection):
    """How the backbone is fetched, and where the model goes at the end of the run."""

    repo_id: str | None = Field(None, description="USER/NAME on the Hub to publish to; null: publish nothing")
    private: bool = Field(False, description="make a new repository private")
    merged: bool = Field(False, description="publish whole weights instead of an adapter")
    publish_revision: str | None = Field(None, description="branch to write to; null: main")
    storage: Literal["float32", "bfloat16"] = Field("float32", description="type of the published weights")


@dataclass(frozen=True)
class LossSection:
    """Name of a loss and its options, checked by the model in the loss's own file."""

    name: str
    options: Any


@dataclass(frozen=True)
class Recipe:
    """One whole run, checked. `source_options` holds the options of every source, by its name."""

    data: DataSection
    model: ModelSection
    loss: LossSection
    training: TrainingSection
    evaluation: EvaluationSection
    hub: FinalHubSection
    source_options: Mapping[str, BaseModel]

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Every key with its value, in the form of a recipe file."""
        options = self.source_options[self.data.source].model_dump(mode="json")
        return {
            "data": self.data.model_dump(mode="json") | ({self.data.source: options} if options else {}),
            "model": self.model.model_dump(mode="json"),
            "loss": {"name": self.loss.name, **self.loss.options.model_dump(mode="json")},
            "training": self.training.model_dump(mode="json"),
            "evaluation": self.evaluation.model_dump(mode="json"),
            "hub": self.hub.model_dump(mode="json"),
        }


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file, apply overrides from the command line, check everything.

    Args:
        path: The JSON file.
        overrides: `["--section.key", "VALUE", ...]` or `["--section.key=VALUE"]`; lists and objects as JSON.

    Raises:
        RecipeError: Anything is wrong; holds all mistakes, each with section.key, value, what is allowed and the
            nearest known name.
    """
    document, problems = read_document(path, overrides, SECTIONS)
    return parse_recipe(document, source=str(path), problems=problems)


def parse_recipe(document: Mapping[str, Any], *, source: str, problems: Sequence[str] = ()) -> Recipe:
    """Check a recipe given as plain sections.

    Args:
        document: Section name -> keys.
        source: What to call it in errors.
        problems: Mistakes already found, reported together with the others.

    Raises:
        RecipeError: See `load_recipe`.
    """
    from .data.sources import SOURCES
    from .losses import LOSSES

    found = list(problems)
    sections = known_sections(document, SECTIONS, found)
    data = sections.get("data", {})
    options = check_source_options(data, "data", SOURCES, found)
    data_known = (*DataSection.model_fields, *SOURCES)
    checked = {
        "data": check_model(DataSection, data, "data", found, known=data_known),
        "model": check_model(ModelSection, sections.get("model", {}), "model", found),
        "loss": _check_loss(sections.get("loss", {}), LOSSES, found),
        "training": check_model(TrainingSection, sections.get("training", {}), "training", found),
        "evaluation": check_model(EvaluationSection, sections.get("evaluation", {}), "evaluation", found),
        "hub": check_model(FinalHubSection, sections.get("hub", {}), "hub", found),
    }
    check_training_arguments(sections.get("training", {}), tuple(TrainingSection.model_fields), found)
    check_contradictions(checked, options, found)
    if found:
        raise RecipeError(found, source)
    return Recipe(**checked, source_options=options)  # type: ignore[arg-type]


def _check_loss(section: dict[str, Any], losses: Mapping[str, Any], found: list[str]) -> LossSection | None:
    options = dict(section)
    name = options.pop("name", "hierarchical_focal")
    if name not in losses:
        found.append(
            f"loss.name = {name!r}: " + unknown_key(str(name), tuple(losses), kind="loss", bare=True)
        )
        return None
    checked = check_model(losses[name].options, options, "loss", found, hint=f"loss {name!r}")
    return LossSection(name, checked) if checked is not None else None


def read_document(
    path: str | Path, overrides: Sequence[str], sections: Sequence[str]
) -> tuple[dict[str, Any], list[str]]:
    """A recipe file as plain sections with the overrides of a command line, and the mistakes of either.

    Args:
        path: The JSON file.
        overrides: See `load_recipe`.
        sections: Names the message of a file that is no object gives.

    Raises:
        RecipeError: The file cannot be read as a JSON object.
    """
    document, problems = _read_json(Path(path), sections)
    return document, problems + parse_overrides(overrides, document)


def known_sections(
    document: Mapping[str, Any], known: Sequence[str], found: list[str]
) -> dict[str, dict[str, Any]]:
    """The sections of a document; appends a line for each that is unknown or no object."""
    sections: dict[str, dict[str, Any]] = {}
    for name, value in document.items():
        if name not in known:
            found.append(unknown_key(name, known, kind="section"))
        elif not isinstance(value, dict):
            found.append(f"{name} = {value!r}: must be an object with keys")
        else:
            sections[name] = dict(value)
    return sections


def _read_json(path: Path, sections: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    twice: list[str] = []

    def refuse_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        twice.extend(
            f"{name}: stands twice in the file" for name in sorted({n for n in names if names.count(n) > 1})
        )
        return dict(pairs)

    try:
        document = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=refuse_twice)
    except FileNotFoundError:
        near = sorted(p.name for p in path.parent.glob("*.json")) if path.parent.is_dir() else []
        raise RecipeError([f"no such file; recipes there: {', '.join(near) or 'none'}"], str(path)) from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise RecipeError([f"cannot be read as JSON: {error}"], str(path)) from error
    if not isinstance(document, dict):
        raise RecipeError(["a recipe is a JSON object with sections " + ", ".join(sections)], str(path))
    return document, twice
