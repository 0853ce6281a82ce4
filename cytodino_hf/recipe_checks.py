"""What no single key of a recipe can show: keys of TrainingArguments in their right place, and contradictions."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, Union, get_args, get_origin

from pydantic import ConfigDict, TypeAdapter, ValidationError

from .recipe_mistakes import in_words, nearest, plain_value, shortened, unknown_key

# Keys of TrainingArguments that have their own place, with that place.
_PRECISION = "precision is set by accelerate_config.yaml or `accelerate launch --mixed_precision`"
_PUSH = "a run never pushes while it trains; publish the finished run"
_TOKEN = "a token never stands in a recipe; set HF_TOKEN or run `hf auth login`"
_OURS = "set by the project"
_ELSEWHERE = {
    **dict.fromkeys(("bf16", "fp16", "bf16_full_eval", "fp16_full_eval", "tf32"), _PRECISION),
    **dict.fromkeys(
        ("push_to_hub", "hub_model_id", "hub_strategy", "hub_private_repo", "hub_always_push", "hub_revision"), _PUSH
    ),
    "hub_token": _TOKEN,
    "token": _TOKEN,
    "label_smoothing_factor": "smoothing belongs to the loss: loss.smoothing",
    "gradient_checkpointing": "renamed: training.activation_checkpointing",
    "warmup_ratio": "renamed: training.warmup_steps, a share when below 1",
    "train_sampling_strategy": "drawing belongs to the data: data.oversampling",
    "use_cpu": "where to run is set by accelerate: `accelerate launch --cpu`",
    "resume_from_checkpoint": "the same command resumes by itself",
    "enable_jit_checkpoint": "a SIGTERM always saves",
    "auto_find_batch_size": "it would change the effective batch; training.halve_batch_on_out_of_memory keeps it",
    "data_seed": "one seed for all: training.seed",
    **dict.fromkeys(
        (
            "do_train", "do_eval", "do_predict", "remove_unused_columns", "label_names", "load_best_model_at_end",
            "greater_is_better", "ignore_data_skip", "save_only_model", "prediction_loss_only", "local_rank",
            "include_for_metrics", "length_column_name", "eval_do_concat_batches", "batch_eval_metrics",
            "accelerator_config", "restore_callback_states_from_checkpoint", "save_on_each_node",
            "logging_nan_inf_filter", "dataloader_drop_last",
        ),
        _OURS,
    ),
}  # fmt: skip
#: Backbones of transformers that can be used.
BACKBONE_TYPES = ("dinov3_vit", "dinov2", "dinov2_with_registers")
#: Name of the backbone that ships with the package, and where it lies.
EMBEDDED = "embedded"
EMBEDDED_FOLDER = Path(__file__).with_name("embedded")
# Patch side by the names of the published families, for ids whose configuration is not at hand yet.
_PATCH_BY_NAME = ((r"dinov3-vit\w*?16", 16), (r"dinov2", 14), (r"dinobloom", 14))


def take_out_misplaced(section: dict[str, Any], known: Sequence[str], found: list[str]) -> None:
    """Take keys of TrainingArguments that have their place elsewhere out of a section; a line says where that is."""
    for key in [key for key in section if key in _ELSEWHERE and key not in known]:
        found.append(_misplaced(key, plain_value(section.pop(key))))


def check_training_arguments(section: Mapping[str, Any], ours: Sequence[str], found: list[str]) -> None:
    """Check the keys of `training` that are TrainingArguments' own: known, of the right type, in the right place."""
    others = {key: plain_value(value) for key, value in section.items() if key not in ours}
    if not others:
        return
    import dataclasses
    import typing

    from transformers import TrainingArguments

    hints = typing.get_type_hints(TrainingArguments)
    fields = [f.name for f in dataclasses.fields(TrainingArguments)]
    allowed = [name for name in dict.fromkeys([*ours, *fields]) if name not in _ELSEWHERE]
    for key, value in others.items():
        if key in _ELSEWHERE:
            found.append(_misplaced(key, value))
        elif key not in fields:
            close = nearest(key, allowed)
            found.append(f"training.{key}: unknown key" + (f"; did you mean {close!r}?" if close else ""))
        elif problem := _type_problem(hints[key], value):
            found.append(f"training.{key} = {shortened(value)}: {problem}")


def _misplaced(key: str, value: Any) -> str:
    shown = "" if "token" in key else f" = {shortened(value)}"  # a secret is never repeated
    return f"training.{key}{shown}: {_ELSEWHERE[key]}"


def _type_problem(hint: Any, value: Any) -> str | None:
    branches = get_args(hint) if get_origin(hint) in (Union, type(int | str)) else (hint,)
    enums = [b for b in branches if isinstance(b, type) and issubclass(b, Enum)]
    if enums and isinstance(value, str):
        choices = [str(member.value) for member in enums[0]]
        return None if value in choices else unknown_key(value, choices, kind="value", bare=True)
    try:
        TypeAdapter(
            hint, config=ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)
        ).validate_python(value)
    except ValidationError as error:
        return " or ".join(dict.fromkeys(in_words(problem, (), None) for problem in error.errors()))
    return None


def check_contradictions(
    sections: Mapping[str, Any], source_options: Mapping[str, Any], found: list[str]
) -> None:
    """Check what no single key can show: files that must exist, keys that exclude each other, sizes that must fit.

    Args:
        sections: The checked sections; None where a section already has mistakes.
        source_options: Checked options of every known source; None of one with mistakes.
        found: Receives the mistakes.
    """
    data, model, training = sections["data"], sections["model"], sections["training"]
    if data is not None:
        check_source(data, "data", tuple(source_options), found)
        if getattr(source_options.get(data.source), "labels", "given") == "none":
            found.append(
                f"data.{data.source}.labels = 'none': a fine-tuning needs labels; give them as class folders or in a "
                "table, or learn from unlabelled images by `cytodino pretrain`"
            )
        if bad := [v for v in data.image_std if v <= 0]:
            found.append(f"data.image_std = {data.image_std}: must be greater than 0, not {bad[0]:g}")
    if model is not None:
        width, patch = check_backbone(model, found)
        if data is not None and patch and data.image_size_px % patch:
            low = data.image_size_px // patch * patch
            found.append(
                f"data.image_size_px = {data.image_size_px}: must be a multiple of the backbone's patch of {patch}, "
                f"such as {low or patch} or {low + patch}"
            )
        if width and model.head == "decoder" and width % model.decoder_heads:
            found.append(
                f"model.decoder_heads = {model.decoder_heads}: must divide the backbone's width of {width}"
            )
        if model.lora_last_blocks is not None and model.method != "lora":
            found.append(
                f"model.lora_last_blocks = {model.lora_last_blocks}: has a meaning for model.method 'lora' only, not "
                f"{model.method!r}"
            )
        blocks = (model.backbone_config or {}).get("num_hidden_layers")
        if isinstance(blocks, int) and (model.lora_last_blocks or 0) > blocks:
            found.append(
                f"model.lora_last_blocks = {model.lora_last_blocks}: the backbone has {blocks} blocks only"
            )
    if training is not None:
        data = sections.get("data")
        _check_training(training, data.taxonomy if data is not None else None, found)


def check_source(data: Any, place: str, sources: Sequence[str], found: list[str]) -> None:
    """Check the keys of a recipe that name images and their split.

    Args:
        data: Has `source`, `root`, `split` (None: no split), `taxonomy` and `fractions`.
        place: Where these keys stand in the recipe.
        sources: Known sources.
        found: Receives the mistakes.
    """
    if data.source not in sources:
        found.append(
            f"{place}.source = {data.source!r}: "
            + unknown_key(data.source, sources, kind="source", bare=True)
        )
    elif data.source != "synthetic" and data.root is not None and not Path(data.root).is_dir():
        found.append(f"{place}.root = {data.root!r}: no such folder")
    if data.split not in (None, "stratified", "source") and not Path(data.split).is_file():
        found.append(f"{place}.split = {data.split!r}: must be 'stratified', 'source' or an existing file")
    check_taxonomy(data.taxonomy, place, found)
    total = math.fsum(data.fractions.model_dump().values())
    if abs(total - 1) > 1e-6:
        found.append(f"{place}.fractions: must sum to 1, not {total:g}")


def check_taxonomy(name: str, place: str, found: list[str]) -> None:
    """Check the key of a recipe that names a taxonomy.

    Args:
        name: Its value.
        place: Section of the key.
        found: Receives the mistake.
    """
    from .taxonomy import load_taxonomy

    try:
        load_taxonomy(name)
    except (ValueError, OSError) as error:
        found.append(f"{place}.taxonomy = {name!r}: {error}")


def check_backbone(model: Any, found: list[str]) -> tuple[int | None, int | None]:
    """Check the keys of a recipe that name a backbone.

    Args:
        model: A `BackboneSection`.
        found: Receives the mistakes.

    Returns:
        Its width and its patch side, where they are known without asking the Hub.
    """
    if (model.backbone is None) == (model.backbone_config is None):
        found.append("model.backbone, model.backbone_config: give exactly one of the two")
        return None, None
    if model.backbone_config is not None:
        if model.revision is not None:
            found.append(f"model.revision = {model.revision!r}: a backbone from scratch has no revision")
        return _check_backbone_config(model.backbone_config, found)
    folder = EMBEDDED_FOLDER if model.backbone == EMBEDDED else Path(model.backbone)
    if folder.is_dir():
        return _read_local_config(folder, found)
    if model.backbone.startswith((".", "/", "~")) or model.backbone.count("/") > 1:
        found.append(f"model.backbone = {model.backbone!r}: no such folder")
        return None, None
    patch = next(
        (side for pattern, side in _PATCH_BY_NAME if re.search(pattern, model.backbone.lower())), None
    )
    return None, patch


def _read_local_config(folder: Path, found: list[str]) -> tuple[int | None, int | None]:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        found.append(f"model.backbone = {str(folder)!r}: its config.json cannot be read ({error})")
        return None, None
    if config.get("model_type") not in BACKBONE_TYPES:
        found.append(
            f"model.backbone = {str(folder)!r}: a {config.get('model_type')!r} model; must be one of "
            + ", ".join(BACKBONE_TYPES)
        )
        return None, None
    return config.get("hidden_size"), config.get("patch_size")


def _check_backbone_config(values: dict[str, Any], found: list[str]) -> tuple[int | None, int | None]:
    from huggingface_hub.errors import StrictDataclassError
    from transformers import CONFIG_MAPPING

    kind = values.get("model_type", "dinov3_vit")
    if kind not in BACKBONE_TYPES:
        found.append(
            f"model.backbone_config.model_type = {kind!r}: must be one of {', '.join(BACKBONE_TYPES)}"
        )
        return None, None
    config_class = CONFIG_MAPPING[kind]
    known = [name for name in config_class().to_dict() if not name.startswith("_")]
    unknown = [key for key in values if key not in known]
    for key in unknown:
        close = nearest(key, known)
        found.append(
            f"model.backbone_config.{key}: unknown key" + (f"; did you mean {close!r}?" if close else "")
        )
    try:
        config = config_class(**{k: v for k, v in values.items() if k not in ("model_type", *unknown)})
    except (StrictDataclassError, ValueError, TypeError) as error:
        found.append(f"model.backbone_config: {' '.join(str(error).split())}")
        return None, None
    if config.hidden_size % config.num_attention_heads:
        found.append(
            f"model.backbone_config.num_attention_heads = {config.num_attention_heads}: must divide hidden_size "
            f"{config.hidden_size}"
        )
        return None, None
    return config.hidden_size, config.patch_size


def _metric_names(taxonomy: str | None, asked: str) -> tuple[str, ...]:
    from .evaluation.scalar_metrics import OF_ONE_CLASS, SCALAR_METRICS, metric_names
    from .taxonomy import load_taxonomy

    try:
        if taxonomy is not None:
            return metric_names(load_taxonomy(taxonomy))
    except (ValueError, OSError):  # named by `check_taxonomy`
        pass
    # Without classes a rate of one class cannot be called wrong.
    return (*SCALAR_METRICS, *([asked] if asked.startswith(OF_ONE_CLASS) else []))


def _check_training(training: Any, taxonomy: str | None, found: list[str]) -> None:
    metric = training.metric_for_best_model.removeprefix("eval_")
    names = (*_metric_names(taxonomy, metric), "loss")
    if metric not in names:
        found.append(
            f"training.metric_for_best_model = {training.metric_for_best_model!r}: "
            + unknown_key(metric, names, kind="metric", bare=True)
        )
    if training.eval_strategy == "no" and training.early_stopping_patience is not None:
        found.append("training.early_stopping_patience: needs training.eval_strategy 'steps' or 'epoch'")
    if training.eval_strategy != training.save_strategy:
        found.append(
            f"training.save_strategy = {training.save_strategy!r}: must equal training.eval_strategy "
            f"{training.eval_strategy!r}, so that the best model is on disk"
        )
    elif training.eval_strategy == "steps" and training.eval_steps is not None:
        ratio = training.save_steps / training.eval_steps
        if abs(ratio - round(ratio)) > 1e-9 or ratio < 1:
            found.append(
                f"training.save_steps = {training.save_steps:g}: must be a multiple of training.eval_steps "
                f"{training.eval_steps:g}"
            )
    from transformers.trainer_utils import SchedulerType

    choices = [s.value for s in SchedulerType]
    if training.lr_scheduler_type not in choices:
        found.append(
            f"training.lr_scheduler_type = {training.lr_scheduler_type!r}: "
            + unknown_key(training.lr_scheduler_type, choices, kind="schedule", bare=True)
        )
