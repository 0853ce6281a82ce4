"""Backbones by name, to be looked at and not to be trained: a Hub id, a folder, or the same architecture untrained."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import BackboneUnavailableError

if TYPE_CHECKING:
    from torch import nn

#: Before a name: the architecture of that backbone with fresh weights.
UNTRAINED = "random:"
#: Side of the picture for a backbone that does not say its own: a multiple of both usual patches, 14 and 16.
USUAL_SIDE_PX = 224
# Where a configuration came from and what wrote it.
_NOT_OF_THE_ARCHITECTURE = ("_name_or_path", "architectures", "transformers_version", "dtype", "torch_dtype")
# The size in these configurations is that of the table of positions, much larger than what they are used at.
_SIZE_OF_POSITIONS = ("dinov2", "dinov2_with_registers")


@dataclass(frozen=True)
class FrozenBackbone:
    """A backbone in eval mode and how it wants its pictures.

    Args:
        name: As it was asked for.
        model: float32, on the CPU, without gradients.
        preprocessing: Its `preprocessor_config.json`; empty where there is none.
    """

    name: str
    model: nn.Module
    preprocessing: Mapping[str, Any]

    @property
    def patch_px(self) -> int:
        """Side of a patch."""
        patch: int = self.model.config.patch_size  # type: ignore[union-attr, assignment]
        return patch

    @property
    def side_px(self) -> int:
        """Side of the pictures it was made for."""
        found = self.preprocessing
        # Others resize first and crop last; ours the other way round (see `CytoDinoImageProcessor`).
        crops_last = (
            found.get("do_center_crop") and found.get("image_processor_type") != "CytoDinoImageProcessor"
        )
        size = found.get("crop_size" if crops_last else "size")
        if isinstance(size, Mapping):
            size = size.get("height", size.get("shortest_edge"))
        if isinstance(size, int):
            return size
        config: Any = self.model.config
        own = None if config.model_type in _SIZE_OF_POSITIONS else config.image_size
        return own if isinstance(own, int) else USUAL_SIDE_PX

    def sha256(self) -> str:
        """Of the architecture and of names, shapes and values of all weights.

        The same weights under another number of heads are another backbone.
        """
        import torch

        config: dict[str, Any] = self.model.config.to_dict()  # type: ignore[union-attr, operator]
        architecture = {name: value for name, value in config.items() if name not in _NOT_OF_THE_ARCHITECTURE}
        digest = hashlib.sha256(json.dumps(architecture, sort_keys=True, default=str).encode())
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(f"{name} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def parameters(self) -> int:
        """How many weights it has."""
        return sum(p.numel() for p in self.model.parameters())


def load_frozen_backbone(name: str, *, seed: int = 0) -> FrozenBackbone:
    """Load a backbone, or build an untrained one.

    Args:
        name: Hub id or folder of a DINOv3, DINOv2 or ViT of transformers, or `embedded`; with `random:` before it,
            its architecture with fresh weights.
        seed: Of fresh weights.

    Raises:
        BackboneUnavailableError: It cannot be had or is of another kind.
    """
    from transformers import AutoConfig, AutoModel, set_seed

    from ..backbones import backbone_source, explained, quiet
    from ..recipe import BackboneSection
    from ..recipe_checks import BACKBONE_TYPES

    source = backbone_source(name.removeprefix(UNTRAINED))
    if source.startswith(("/", ".", "~")) and not Path(source).is_dir():
        raise BackboneUnavailableError(f"backbone {source}: no such folder")
    known = (*BACKBONE_TYPES, "vit")
    with explained(BackboneSection(backbone=source)), quiet():
        config = AutoConfig.from_pretrained(source)
        if config.model_type not in known:
            raise BackboneUnavailableError(
                f"backbone {source} is a {config.model_type!r} model; it must be one of {', '.join(known)}"
            )
        # A pooler is no part of the features, and untrained in most ViT checkpoints.
        options = {"add_pooling_layer": False} if config.model_type == "vit" else {}
        if not name.startswith(UNTRAINED):
            model, loaded = AutoModel.from_pretrained(
                source, dtype="float32", output_loading_info=True, **options
            )
            _refuse_missing(source, loaded["missing_keys"])
        else:
            set_seed(seed)
            model = AutoModel.from_config(config, dtype="float32", **options)
        preprocessing = _preprocessing(source)
    return FrozenBackbone(name, model.eval().requires_grad_(False), preprocessing)


def _refuse_missing(name: str, missing: Iterable[str]) -> None:
    """transformers draws weights that a file lacks at random and goes on; features of such a backbone mean nothing."""
    # Only pretraining masks patches.
    lacking = sorted(key for key in missing if not key.endswith("mask_token"))
    if lacking:
        raise BackboneUnavailableError(
            f"backbone {name} lacks {len(lacking)} of its weights, such as {lacking[0]}: the file belongs to another "
            "architecture or is damaged; fetch or convert it anew"
        )


def _preprocessing(name: str) -> dict[str, Any]:
    from transformers.utils import cached_file

    file = cached_file(name, "preprocessor_config.json", _raise_exceptions_for_missing_entries=False)
    found: dict[str, Any] = json.loads(Path(file).read_text(encoding="utf-8")) if file else {}
    return found
