"""RUN/backbone: the teacher as a plain transformers folder, with everything a reader must know about it.

config.json, model.safetensors   the backbone; `AutoModel.from_pretrained` and `model.backbone` of a recipe take it
preprocessor_config.json         how pictures become its input
pretraining.json                 recipe, images of each source, what was held out, versions, hardware, seconds, log
images.csv                       every image it was trained on, and those of the backbones it goes on from
pretraining.png                  loss parts, teacher entropy, feature rank, neighbours over the steps
README.md                        model card
"""

from __future__ import annotations

import copy
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..files import file_sha256, without_places, write_json
from .curves import draw_pretraining
from .history import LIST_FILE, RECORD_FILE
from .model_card import card

if TYPE_CHECKING:
    from ..run_folder import RunFolder
    from .mixture import Mixture
    from .model import IBotModel
    from .recipe import PretrainRecipe

BACKBONE_FOLDER = "backbone"
#: PIL's number of bilinear resampling.
_BILINEAR = 2


def write_backbone(
    model: IBotModel, recipe: PretrainRecipe, mixture: Mixture, run: RunFolder, training: dict[str, Any]
) -> Path:
    """Write `RUN/backbone`, whole or not at all.

    Args:
        model: Holds the teacher.
        recipe: The recipe.
        mixture: The images.
        run: The RUN folder.
        training: What the training came to: steps, seconds, log.

    Returns:
        The folder.
    """
    folder = run.path / BACKBONE_FOLDER
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    write_teacher(model, recipe, partial)
    history, commit = mixture.history, getattr(model.teacher.backbone.config, "_commit_hash", None)
    record = {
        "what": "teacher of an iBOT pretraining on unlabelled cell images",
        "recipe": recipe.to_dict(),
        "images": mixture.record(),
        "data_fingerprint": mixture.fingerprint(),
        "weights_sha256": file_sha256(partial / "model.safetensors"),
        "origin": None if history is None else history.origin(commit),
        "parameters": sum(p.numel() for p in model.teacher.backbone.parameters()),
        "training": training,
        "environment": run.environment(),
    }
    write_json(partial / RECORD_FILE, without_places(record))
    mixture.write_list(partial / LIST_FILE)
    (partial / "pretraining.png").write_bytes(draw_pretraining(training["log_history"]))
    (partial / "README.md").write_text(card(record), encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)
    return folder


def write_teacher(model: Any, recipe: PretrainRecipe, folder: Path) -> None:
    """Write the teacher's backbone and how pictures become its input."""
    dtype = getattr(torch, recipe.training.save_dtype)
    backbone = copy.deepcopy(model.teacher.backbone).to("cpu", dtype)
    backbone.config._name_or_path = ""  # where it began stands in the record
    backbone.save_pretrained(folder)
    side = recipe.views.global_size_px
    processor = {
        # Its torchvision variant is chosen where torchvision is installed; DINOv3's own processor needs it.
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": side, "width": side},
        "resample": _BILINEAR,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(recipe.model.image_mean),
        "image_std": list(recipe.model.image_std),
    }
    text = json.dumps(processor, indent=2, sort_keys=True) + "\n"
    (folder / "preprocessor_config.json").write_text(text, encoding="utf-8")
