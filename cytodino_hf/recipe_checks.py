"""Everything that can be wrong with a recipe, put into words a person can act on."""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

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
    "data_seed": "one seed for all: training.seed",
    **dict.fromkeys(
        (
            "do_train", "do_eval", "do_predict", "remove_unused_columns", "label_names", "load_best_model_at_end",
            "greater_is_better", "ignore_data_skip", "save_only_model", "prediction_loss_only", "local_rank",
            "include_for_metrics", "length_column_name", "eval_do_concat_batches", "batch_eval_metrics",
        ),
        _OURS,
    ),
}  # fmt: skip
_BACKBONE_TYPES = ("dinov3_vit", "dinov2", "dinov2_with_registers")
# Patch side by the names of the published families, for ids whose configuration is not at hand yet.
_PATCH_BY_NAME = ((r"dinov3-vit\w*?16", 16), (r"dinov2", 14), (r"dinobloom", 14))


def nearest(name: str, known: Sequence[str]) -> str | None:
    """The known name that looks most like `name`, or None."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return close[0] if close else None


def unknown_key(name: str, known: Sequence[str], *, kind: str, bare: bool = False) -> str:
    """Say that a name is unknown, with the nearest known one and all that are allowed."""
    close = nearest(name.rsplit(".", 1)[-1], known)
    hint = f"; did you mean {close!r}?" if close else ""
    allowed = ", ".join(known)
    return ("" if bare else f"{name}: ") + f"unknown {kind}{hint} (known: {allowed})"


def parse_overrides(tokens: Sequence[str], document: dict[str, Any]) -> list[str]:
    """Put `--section.key VALUE` pairs into the document; returns what could not be understood.

    A value is read as JSON where it is JSON and as text otherwise; where a key takes text only, `check_model` turns
    a number back into the text that was typed.
    """
    problems: list[str] = []
    rest = list(tokens)
    while rest:
        token = rest.pop(0)
        if not token.startswith("--") or "." not in token.split("=", 1)[0]:
            problems.append(f"{token}: unknown option; a key of the recipe is changed by --section.key VALUE")
            if rest and token.startswith("--") and "=" not in token and not rest[0].startswith("--"):
                rest.pop(0)  # its value
            continue
        name, has_value, text = token[2:].partition("=")
        if not has_value:
            if not rest or (rest[0].startswith("--") and "." in rest[0]):
                problems.append(f"--{name}: a value is missing")
                continue
            text = rest.pop(0)
        target: Any = document
        *parents, key = name.split(".")
        for parent in parents:
            if not isinstance(target.setdefault(parent, {}), dict):
                target[parent] = {}
            target = target[parent]
        target[key] = _read_value(text)
    return problems


@dataclass(frozen=True)
class _CommandLineValue:
    """A value from the command line that reads as JSON, with the text that was typed."""

    value: Any
    text: str


def _read_value(text: str) -> Any:
    try:
        return _CommandLineValue(json.loads(text), text)
    except (json.JSONDecodeError, RecursionError):
        return text


def _plain(value: Any, *, as_text: bool = False) -> Any:
    if isinstance(value, _CommandLineValue):
        return value.text if as_text else value.value
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return value


def check_model(
    model: type[BaseModel],
    values: Any,
    place: str,
    found: list[str],
    *,
    known: Sequence[str] | None = None,
    hint: str | None = None,
) -> Any:
    """Validate one section; append a line for each mistake.

    Args:
        model: The strict model.
        values: Its keys.
        place: Path of the section (`data`, `data.synthetic`).
        found: Receives the mistakes.
        known: Names to choose the nearest from; the model's fields by default.
        hint: What the keys belong to, for unknown ones.

    Returns:
        The checked section; with mistakes, the section without them, or None where not even that can be built.
    """
    if isinstance(values, _CommandLineValue):
        values = values.value
    if not isinstance(values, dict):
        found.append(f"{place} = {values!r}: must be an object with keys")
        return None
    plain = {key: _plain(value) for key, value in values.items()}
    try:
        return model(**plain)
    except ValidationError as error:
        typed = {e["loc"][0] for e in error.errors() if e["type"] == "string_type" and len(e["loc"]) == 1}
        back = {
            key: _plain(values[key], as_text=True)
            for key in typed
            if isinstance(values.get(key), _CommandLineValue)
        }
        back = {key: text for key, text in back.items() if plain[key] is not None}
        if back:
            return check_model(model, {**values, **back}, place, found, known=known, hint=hint)
        lines: dict[str, list[str]] = {}
        for problem in error.errors():
            where = [str(part) for part in problem["loc"] if not _is_union_branch(str(part), problem["loc"])]
            name = ".".join([place, *where])
            lines.setdefault(name, []).append(_in_words(problem, known or tuple(model.model_fields), hint))
        for name, words in lines.items():
            value = _value_at(plain, name[len(place) + 1 :].split("."))
            shown = "" if words[0].startswith("unknown") or words == ["is missing"] else f" = {_short(value)}"
            found.append(f"{name}{shown}: {' or '.join(dict.fromkeys(words))}")
        return _salvaged(model, plain, {str(e["loc"][0]) for e in error.errors()})


def _salvaged(model: type[BaseModel], values: dict[str, Any], bad: set[str]) -> Any:
    """The section with its wrong keys at their defaults, so that contradictions of the others still show."""
    good = {key: value for key, value in values.items() if key not in bad}
    required = {
        name: "" for name, field in model.model_fields.items() if field.is_required() and name not in good
    }
    try:
        return model(**good, **required)
    except ValidationError:
        return None


def _is_union_branch(part: str, location: tuple[Any, ...]) -> bool:
    # pydantic adds the branch of a union to the location: ('lora_targets', 'list[str]').
    return (
        len(location) > 1
        and bool(re.match(r"(list|dict|literal|str|float|int|bool)\b", part))
        and part != str(location[0])
    )


def _value_at(values: Any, names: Sequence[str]) -> Any:
    for name in names:
        if isinstance(values, dict) and name in values:
            values = values[name]
        elif isinstance(values, list) and name.isdigit() and int(name) < len(values):
            values = values[int(name)]
        else:
            return values
    return values


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


_WORDS = {
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "list_type": "must be a list",
    "dict_type": "must be an object",
    "model_type": "must be an object with keys",
    "model_attributes_type": "must be an object with keys",
    "finite_number": "must be a finite number",
    "missing": "is missing",
}


def _in_words(problem: Any, known: Sequence[str], hint: str | None) -> str:
    kind, context = problem["type"], problem.get("ctx", {})
    if kind == "extra_forbidden":
        return unknown_key(
            str(problem["loc"][-1]), known, kind=f"key of {hint}" if hint else "key", bare=True
        )
    limits = {
        "greater_than": ("gt", "must be greater than"),
        "greater_than_equal": ("ge", "must be at least"),
        "less_than": ("lt", "must be less than"),
        "less_than_equal": ("le", "must be at most"),
        "literal_error": ("expected", "must be"),
        "too_short": ("min_length", "must have this many values:"),
        "too_long": ("max_length", "must have this many values:"),
    }
    if kind in limits:
        key, words = limits[kind]
        suggestion = ""
        if kind == "literal_error" and isinstance(problem["input"], str):
            close = nearest(problem["input"], re.findall(r"'([^']*)'", str(context[key])))
            suggestion = f"; did you mean {close!r}?" if close else ""
        return f"{words} {context[key]}{suggestion}"
    return _WORDS.get(kind, str(problem["msg"]))


def check_training_arguments(section: Mapping[str, Any], ours: Sequence[str], found: list[str]) -> None:
    """Check the keys of `training` that are TrainingArguments' own: known, of the right type, in the right place."""
    others = {key: _plain(value) for key, value in section.items() if key not in ours}
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
            shown = "" if "token" in key else f" = {_short(value)}"  # a secret is never repeated
            found.append(f"training.{key}{shown}: {_ELSEWHERE[key]}")
        elif key not in fields:
            close = nearest(key, allowed)
            found.append(f"training.{key}: unknown key" + (f"; did you mean {close!r}?" if close else ""))
        elif problem := _type_problem(hints[key], value):
            found.append(f"training.{key} = {_short(value)}: {problem}")


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
        return " or ".join(dict.fromkeys(_in_words(problem, (), None) for problem in error.errors()))
    return None


def check_contradictions(sections: Mapping[str, Any], sources: Sequence[str], found: list[str]) -> None:
    """Check what no single key can show: files that must exist, keys that exclude each other, sizes that must fit.

    Args:
        sections: The checked sections; None where a section already has mistakes.
        sources: Known sources.
        found: Receives the mistakes.
    """
    data, model, training = sections["data"], sections["model"], sections["training"]
    if data is not None:
        _check_data(data, sources, found)
    if model is not None:
        width, patch = _check_backbone(model, found)
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
    if training is not None:
        _check_training(training, found)


def _check_data(data: Any, sources: Sequence[str], found: list[str]) -> None:
    from .taxonomy import load_taxonomy

    if data.source not in sources:
        found.append(
            f"data.source = {data.source!r}: " + unknown_key(data.source, sources, kind="source", bare=True)
        )
    elif data.source != "synthetic" and data.root is not None and not Path(data.root).is_dir():
        found.append(f"data.root = {data.root!r}: no such folder")
    if data.split not in ("stratified", "source") and not Path(data.split).is_file():
        found.append(f"data.split = {data.split!r}: must be 'stratified', 'source' or an existing file")
    try:
        load_taxonomy(data.taxonomy)
    except (ValueError, OSError) as error:
        found.append(f"data.taxonomy = {data.taxonomy!r}: {error}")
    total = math.fsum(data.fractions.model_dump().values())
    if abs(total - 1) > 1e-6:
        found.append(f"data.fractions: must sum to 1, not {total:g}")
    if bad := [v for v in data.image_std if v <= 0]:
        found.append(f"data.image_std = {data.image_std}: must be greater than 0, not {bad[0]:g}")


def _check_backbone(model: Any, found: list[str]) -> tuple[int | None, int | None]:
    if (model.backbone is None) == (model.backbone_config is None):
        found.append("model.backbone, model.backbone_config: give exactly one of the two")
        return None, None
    if model.backbone_config is not None:
        if model.revision is not None:
            found.append(f"model.revision = {model.revision!r}: a backbone from scratch has no revision")
        return _check_backbone_config(model.backbone_config, found)
    folder = Path(model.backbone)
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
    if config.get("model_type") not in _BACKBONE_TYPES:
        found.append(
            f"model.backbone = {str(folder)!r}: a {config.get('model_type')!r} model; must be one of "
            + ", ".join(_BACKBONE_TYPES)
        )
        return None, None
    return config.get("hidden_size"), config.get("patch_size")


def _check_backbone_config(values: dict[str, Any], found: list[str]) -> tuple[int | None, int | None]:
    from huggingface_hub.errors import StrictDataclassError
    from transformers import CONFIG_MAPPING

    kind = values.get("model_type", "dinov3_vit")
    if kind not in _BACKBONE_TYPES:
        found.append(
            f"model.backbone_config.model_type = {kind!r}: must be one of {', '.join(_BACKBONE_TYPES)}"
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


def _check_training(training: Any, found: list[str]) -> None:
    from .evaluation.metrics import METRICS

    metric = training.metric_for_best_model.removeprefix("eval_")
    if metric not in (*METRICS, "loss"):
        found.append(
            f"training.metric_for_best_model = {training.metric_for_best_model!r}: "
            + unknown_key(metric, (*METRICS, "loss"), kind="metric", bare=True)
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
