"""RUN/backbone: the teacher as a plain transformers folder, with everything a reader must know about it.

config.json, model.safetensors   the backbone; `AutoModel.from_pretrained` and `model.backbone` of a recipe take it
preprocessor_config.json         how pictures become its input
pretraining.json                 recipe, images of each source, what was held out, versions, hardware, seconds, log
images.csv                       every image it was trained on
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

from ..backbones import backbone_source, is_on_hub
from ..files import file_sha256, write_json
from ..recipe_checks import EMBEDDED
from .curves import draw_pretraining
from .model_card import card

if TYPE_CHECKING:
    from ..run_folder import RunFolder
    from .mixture import Mixture
    from .model import IBotModel
    from .recipe import PretrainModelSection, PretrainRecipe

BACKBONE_FOLDER = "backbone"
RECORD_FILE = "pretraining.json"
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
    record = {
        "what": "teacher of an iBOT pretraining on unlabelled cell images",
        "recipe": recipe.to_dict(),
        "images": mixture.record(),
        "data_fingerprint": mixture.fingerprint(),
        "weights_sha256": file_sha256(partial / "model.safetensors"),
        "origin": origin(recipe.model, getattr(model.teacher.backbone.config, "_commit_hash", None)),
        "parameters": sum(p.numel() for p in model.teacher.backbone.parameters()),
        "training": training,
        "environment": run.environment(),
    }
    write_json(partial / RECORD_FILE, record)
    mixture.write_list(partial / "images.csv")
    (partial / "pretraining.png").write_bytes(draw_pretraining(training["log_history"]))
    (partial / "README.md").write_text(card(record), encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)
    return folder


def origin(section: PretrainModelSection, commit: str | None) -> dict[str, Any] | None:
    """Where the weights began, with what is recorded of an earlier pretraining; None: at random.

    Args:
        section: The model section of the recipe.
        commit: Of a backbone on the Hub.
    """
    if section.backbone is None:
        return None
    if is_on_hub(section):
        return {"name": section.backbone, "commit": commit}
    folder = Path(backbone_source(section.backbone))
    file = folder / RECORD_FILE
    earlier = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    kept = {key: earlier[key] for key in ("images", "weights_sha256", "origin") if key in earlier}
    return {"name": section.backbone if section.backbone == EMBEDDED else folder.resolve().name} | kept


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
