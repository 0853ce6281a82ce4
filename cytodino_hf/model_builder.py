"""Build the model a recipe asks for: backbone weights, head, LoRA, what is frozen; save it so that others can load it.

What a RUN holds, and how `from_pretrained` and `pipeline()` find the weights again:

| method | backbone on the Hub | local folder or from scratch |
|---|---|---|
| `lora` | `adapter/` (peft), id and commit of the backbone in config.json | `adapter/` and `base/` |
| `head` | `adapter/trained.safetensors`, id and commit in config.json | the same file and `base/` |
| `full` | `model.safetensors` | `model.safetensors` |

Norms and biases that train (`train_norms`, `train_biases`) are part of the adapter. A backbone that is not on the
Hub travels with the RUN in `base/`. `binding` in config.json says which base, labels, preprocessing and weights belong
together; another one is refused on loading (`model/binding_cytodino.py`).
"""

from __future__ import annotations

import copy
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .backbones import (
    backbone_source,
    explained,
    hub_arguments,
    is_on_hub,
    keep_base,
    quiet,
    read_backbone_config,
)
from .binding import begin_binding, bind_base, finish_binding
from .lora import add_lora, first_block, share_casts
from .model.configuration_cytodino import CytoDinoConfig
from .model.image_processing_cytodino import CytoDinoImageProcessor
from .model.modeling_cytodino import CytoDinoForImageClassification
from .recipe import DataSection, ModelSection, Recipe

if TYPE_CHECKING:
    from .taxonomy import Taxonomy

BASE_FOLDER = "base"
ADAPTER_FOLDER = "adapter"
#: The file with the trained weights of each method, relative to the RUN.
WEIGHTS_FILE = {
    "lora": f"{ADAPTER_FOLDER}/adapter_model.safetensors",
    "head": f"{ADAPTER_FOLDER}/trained.safetensors",
    "full": "model.safetensors",
}


@dataclass(frozen=True)
class ParameterCounts:
    """Parameters of each part, and how many of them train."""

    backbone: int
    lora: int
    head: int
    trainable: int

    @property
    def total(self) -> int:
        """All parameters of the model, none counted twice."""
        return self.backbone + self.lora + self.head


def build_processor(data: DataSection) -> CytoDinoImageProcessor:
    """The image processor of a recipe: the single source of the geometry and the normalisation."""
    side = {"height": data.image_size_px, "width": data.image_size_px}
    crop = data.center_crop_px
    return CytoDinoImageProcessor(
        hide_center_px=data.hide_center_px,
        size=side,
        do_center_crop=crop is not None,
        crop_size={"height": crop, "width": crop} if crop is not None else side,
        image_mean=list(data.image_mean),
        image_std=list(data.image_std),
    )


def build_config(recipe: Recipe, taxonomy: Taxonomy, data_fingerprint: str | None = None) -> CytoDinoConfig:
    """Configuration of the model; of the backbone only its configuration is read.

    Args:
        recipe: The recipe.
        taxonomy: Of its images.
        data_fingerprint: Of its images, kept with the model; None where there are none.

    Raises:
        BackboneUnavailableError: The backbone's configuration cannot be had, or it has fewer blocks than
            `model.lora_last_blocks`.
    """
    model = recipe.model
    backbone, commit = read_backbone_config(model, recipe.hub, recipe.data.image_size_px)
    first_block(backbone, model.lora_last_blocks)  # refuse before any weight is loaded
    on_hub = is_on_hub(model)
    return CytoDinoConfig(
        backbone_config=backbone,
        head_type=model.head,
        decoder_layers=model.decoder_layers,
        decoder_heads=model.decoder_heads,
        decoder_feedforward_ratio=model.decoder_feedforward_ratio,
        head_dropout=model.head_dropout,
        position_jitter=model.position_jitter,
        taxonomy=taxonomy.to_dict(),
        binding=begin_binding(recipe, data_fingerprint),
        base_model_name_or_path=model.backbone if on_hub else None,
        base_model_revision=commit if on_hub else None,
        id2label=dict(enumerate(taxonomy.codes)),
        label2id={code: label for label, code in enumerate(taxonomy.codes)},
    )


def build_model(recipe: Recipe, config: CytoDinoConfig, base_folder: Path) -> nn.Module:
    """Backbone weights, a fresh head, and what trains according to `model.method`.

    Args:
        recipe: The recipe; its seed decides every fresh weight.
        config: From `build_config`.
        base_folder: Where a backbone that is not on the Hub is kept for the RUN; taken from there when it exists.

    Returns:
        A `peft.PeftModel` for `lora`, else a `CytoDinoForImageClassification`; float32, in training mode.

    Raises:
        BackboneUnavailableError: The weights cannot be had.
    """
    from transformers import set_seed

    on_hub = config.base_model_name_or_path is not None
    if not on_hub and recipe.model.method != "full":
        keep_base(recipe, config, base_folder)
        bind_base(config, recipe, base_folder)
        model = _load(recipe, config, str(base_folder), {})
    elif recipe.model.backbone is None:
        set_seed(recipe.training.seed)
        model = CytoDinoForImageClassification._from_config(
            config, attn_implementation=recipe.model.attention
        )
    else:
        hub = {"revision": config.base_model_revision, **hub_arguments(recipe.hub)} if on_hub else {}
        if on_hub:
            bind_base(config, recipe, None)
        model = _load(recipe, config, backbone_source(recipe.model.backbone), hub)
    set_seed(recipe.training.seed)  # LoRA's own weights, whatever was drawn before
    return prepare_for_training(model, recipe.model).train()


def _load(
    recipe: Recipe, config: CytoDinoConfig, source: str, hub: dict[str, Any]
) -> CytoDinoForImageClassification:
    from transformers import set_seed

    set_seed(recipe.training.seed)  # the head
    with explained(recipe.model), quiet():
        return CytoDinoForImageClassification.from_pretrained(
            source, config=config, dtype=torch.float32, attn_implementation=recipe.model.attention, **hub
        )


def build_on_meta(recipe: Recipe, config: CytoDinoConfig) -> nn.Module:
    """The same model without any weights, to count and to estimate."""
    with torch.device("meta"):
        model = CytoDinoForImageClassification._from_config(
            config, attn_implementation=recipe.model.attention
        )
        return prepare_for_training(model, recipe.model).train()


def prepare_for_training(model: CytoDinoForImageClassification, section: ModelSection) -> nn.Module:
    """Freeze what `section.method` freezes and add LoRA where it asks for it."""
    share_casts(model.backbone)
    if section.method == "full":
        model.backbone.embeddings.mask_token.requires_grad_(False)  # only pretraining masks patches
        return model
    model.backbone.requires_grad_(False)
    model.backbone_is_frozen = True
    norms = [name for name, module in model.backbone.named_modules() if isinstance(module, nn.LayerNorm)]
    biases = [name for name, _ in model.backbone.named_parameters() if name.endswith("bias")]
    if section.method == "lora":
        return add_lora(model, section, norms)
    for name, parameter in model.backbone.named_parameters():
        in_norm = name.rpartition(".")[0] in norms
        if (section.train_norms and in_norm) or (section.train_biases and name in biases):
            parameter.requires_grad_(True)
    return model


def count_parameters(model: nn.Module) -> ParameterCounts:
    """Count each part once; peft's frozen second copy of the head is left out."""
    counts = dict.fromkeys(("backbone", "lora", "head", "trainable"), 0)
    for name, parameter in model.named_parameters():
        if "original_module" in name:
            continue
        part = "lora" if "lora_" in name else "head" if re.search(r"(^|\.)head\.", name) else "backbone"
        counts[part] += parameter.numel()
        counts["trainable"] += parameter.numel() if parameter.requires_grad else 0
    return ParameterCounts(**counts)


def save_model(model: nn.Module, processor: CytoDinoImageProcessor, folder: Path, method: str) -> None:
    """Write the model as the table of this module says: weights, configuration, code, processor."""
    from safetensors.torch import save_file
    from transformers.dynamic_module_utils import custom_object_save

    plain = unwrap(model)
    config = copy.deepcopy(plain.config)
    config.architectures = [type(plain).__name__]
    # transformers notes the folder a configuration came from; a local one means nothing elsewhere.
    config.backbone_config._name_or_path = config.base_model_name_or_path or ""  # type: ignore[union-attr]
    if method == "full":
        config.base_model_name_or_path = config.base_model_revision = None
        config.adapter_subfolder = config.adapter_type = config.base_subfolder = None
        # The names in memory: a raw load finds every tensor, also where transformers would rename on disk.
        plain.save_pretrained(folder, save_original_format=False)
    else:
        config.adapter_subfolder = ADAPTER_FOLDER
        config.adapter_type = "lora" if method == "lora" else "tensors"
        config.base_subfolder = BASE_FOLDER if config.base_model_name_or_path is None else None
        adapter = folder / ADAPTER_FOLDER
        adapter.mkdir(parents=True, exist_ok=True)
        if method == "lora":
            _save_lora(model, adapter, config)
        else:
            tensors = {n: p.detach().contiguous() for n, p in plain.named_parameters() if p.requires_grad}
            save_file(tensors, folder / WEIGHTS_FILE["head"], metadata={"format": "pt"})
    processor.save_pretrained(folder)
    finish_binding(config, folder, _weights_files(folder, method), config.base_subfolder)
    custom_object_save(plain, str(folder), config=config)
    config.save_pretrained(folder)


def _weights_files(folder: Path, method: str) -> list[str]:
    """Files that decide what the model answers, besides the configuration; relative to its folder."""
    if method == "full":
        return sorted(path.name for path in folder.glob("model*.safetensors*"))
    files = [WEIGHTS_FILE[method]]
    return [f"{ADAPTER_FOLDER}/adapter_config.json", *files] if method == "lora" else files


def _save_lora(model: Any, adapter: Path, config: CytoDinoConfig) -> None:
    model.save_pretrained(str(adapter), save_embedding_layers=False)
    (adapter / "README.md").unlink(missing_ok=True)  # peft's empty template
    # peft notes whatever path was loaded; a local one means nothing elsewhere.
    path = adapter / "adapter_config.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    values |= {
        "base_model_name_or_path": config.base_model_name_or_path,
        "revision": config.base_model_revision,
    }
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def unwrap(model: nn.Module) -> CytoDinoForImageClassification:
    """The classifier inside a peft model, or the classifier itself."""
    inner: Any = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
    assert isinstance(inner, CytoDinoForImageClassification)
    return inner


def merge(model: nn.Module) -> CytoDinoForImageClassification:
    """Fold LoRA into the weights (in place); the classifier in eval mode."""
    merged: Any = model.merge_and_unload() if hasattr(model, "merge_and_unload") else model  # type: ignore[operator]
    assert isinstance(merged, CytoDinoForImageClassification)
    return merged.eval()
