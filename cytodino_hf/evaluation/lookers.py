"""What looks at a picture for `cytodino explain`: a backbone, or a finished classifier with its head."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ..errors import BadNumbersError, CytoDinoError
from .frozen_backbones import UNTRAINED, FrozenBackbone, load_frozen_backbone
from .patch_maps import PatchMaps, patch_maps

if TYPE_CHECKING:
    import torch

    from ..model.image_processing_cytodino import CytoDinoImageProcessor
    from ..model.modeling_cytodino import CytoDinoForImageClassification

#: Patches along the longer side unless the user says otherwise: small ones, so that a nucleus shows its outline.
PATCHES_A_SIDE = 32
# Attention takes the fourth power of it: at 64 one block of a large model takes 1 GB.
_MOST_PATCHES_A_SIDE = 64


class Looker(Protocol):
    """Shows a model a picture."""

    @property
    def attention_words(self) -> str:
        """Whose attention the maps hold."""

    def picture(self, pixels: np.ndarray) -> np.ndarray:
        """The picture as the model sees it, uint8 (height, width, 3)."""

    def look(self, picture: np.ndarray) -> tuple[PatchMaps, str]:
        """What the model makes of it, and what to add to its name."""


def load_looker(name: str, image_size_px: int | None = None) -> Looker:
    """A backbone as `load_frozen_backbone` takes it, or a classifier of this project: a RUN, or one of the Hub.

    Args:
        name: Of either.
        image_size_px: Longer side of the picture a backbone sees, side of that of a classifier; None takes
            `PATCHES_A_SIDE` patches of a backbone, and what a classifier was trained at.

    Raises:
        CytoDinoError: It cannot be had, or the size does not fit its patches.
    """
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if _is_classifier(name):
        return _classifier(name, image_size_px, device)
    frozen = load_frozen_backbone(name)
    side = checked_side(frozen.patch_px, image_size_px or PATCHES_A_SIDE * frozen.patch_px, name)
    frozen.model.set_attn_implementation("eager")  # type: ignore[operator]
    return BackboneLooker(replace(frozen, model=frozen.model.to(device)), side, device)


@dataclass(frozen=True)
class BackboneLooker:
    """A backbone; attention is that of its CLS token.

    Args:
        frozen: The backbone, with attention implemented as "eager".
        side: Longer side of a picture.
        device: To compute on.
    """

    frozen: FrozenBackbone
    side: int
    device: str
    attention_words: str = "attention"

    def picture(self, pixels: np.ndarray) -> np.ndarray:
        """Longer side `side`, shorter one the nearest number of patches."""
        from PIL import Image

        high, wide = pixels.shape[:2]
        patch = self.frozen.patch_px
        size = [
            max(1, round(length * self.side / max(high, wide) / patch)) * patch for length in (wide, high)
        ]
        return np.asarray(Image.fromarray(pixels).resize((size[0], size[1]), Image.Resampling.BILINEAR))

    def look(self, picture: np.ndarray) -> tuple[PatchMaps, str]:
        """Features and the attention of the last block."""
        pixels = _normalised(picture, self.frozen.preprocessing)
        return _sound(patch_maps(self.frozen.model, pixels.to(self.device)), self.frozen.name), ""


@dataclass(frozen=True)
class ClassifierLooker:
    """A classifier; attention is that of its head's query in the last decoder block over the patches.

    A linear head has no query and reads the CLS token and the mean of the patches: there it is that of the CLS token.

    Args:
        name: As it was asked for.
        model: In eval mode, its backbone with attention implemented as "eager".
        processor: Its image processor.
    """

    name: str
    model: CytoDinoForImageClassification
    processor: CytoDinoImageProcessor

    @property
    def attention_words(self) -> str:
        """Whose attention the maps hold."""
        return "attention of the head's query" if self._has_query else "attention of the CLS token"

    @property
    def _has_query(self) -> bool:
        return hasattr(self.model.head, "blocks")

    def picture(self, pixels: np.ndarray) -> np.ndarray:
        """Cut and resized by its image processor."""
        return self.processor.crop_and_resize(self.processor.hide_center(pixels))

    def look(self, picture: np.ndarray) -> tuple[PatchMaps, str]:
        """Features, attention, and the answer with its probability."""
        import torch

        channels_first = torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1)))[None]
        pixels = self.processor.normalize_batch(channels_first.to(self.model.device))
        maps = patch_maps(self.model.backbone, pixels)
        seen: list[torch.Tensor] = []
        hooks = []
        if self._has_query:
            last: Any = self.model.head.blocks[-1]  # type: ignore[union-attr, index]
            hooks = [
                last.norm_cross.register_forward_hook(lambda _module, _args, out: seen.append(out)),
                last.register_forward_pre_hook(lambda _module, args: seen.append(args[1])),
            ]
        try:
            with torch.inference_mode():
                shares = self.model(pixel_values=pixels).logits.float().softmax(-1)[0]
                if self._has_query:
                    tokens, query = seen
                    weights = last.attention_weights(query, tokens)[0]  # (heads, tokens)
                    patches = weights[:, self.model.config.num_prefix_tokens :].float().cpu().numpy()
                    maps = PatchMaps(maps.features, patches.reshape(-1, *maps.features.shape[:2]))
        finally:
            for hook in hooks:
                hook.remove()
        best = int(shares.argmax())
        answer = f": {self.model.config.id2label[best]} {100 * float(shares[best]):.0f} %"
        return _sound(maps, self.name), answer


def checked_side(patch: int, side: int, name: str) -> int:
    """A side that patches fill.

    Raises:
        CytoDinoError: They do not, or it is too long.
    """
    if side % patch:
        near = " or ".join(str(n * patch) for n in (side // patch, side // patch + 1) if n)
        raise CytoDinoError(
            f"--image-size-px {side} is no multiple of the patch of {patch} of {name}; use {near}"
        )
    if side > _MOST_PATCHES_A_SIDE * patch:
        raise CytoDinoError(
            f"--image-size-px {side}: at most {_MOST_PATCHES_A_SIDE * patch} for patches of {patch}"
        )
    return side


def _is_classifier(name: str) -> bool:
    """Whether a name is that of a model of this project; one that cannot be found is left to who explains that."""
    from transformers import PreTrainedConfig

    from ..model.configuration_cytodino import CytoDinoConfig

    if name.startswith(UNTRAINED) or (not Path(name).is_dir() and "/" not in name):
        return False
    try:
        config, _ = PreTrainedConfig.get_config_dict(name)
    except OSError:
        return False
    return config.get("model_type") == CytoDinoConfig.model_type


def _classifier(name: str, image_size_px: int | None, device: str) -> ClassifierLooker:
    from ..model_loading import load_classifier

    model, processor = load_classifier(name)
    model.backbone.set_attn_implementation("eager")
    if image_size_px is not None:
        patch_px = model.backbone.config.patch_size
        side = checked_side(patch_px, image_size_px, name)
        processor.size = type(processor.size)(height=side, width=side)
    return ClassifierLooker(name, model.to(device), processor)


def _sound(maps: PatchMaps, name: str) -> PatchMaps:
    if not (np.isfinite(maps.features).all() and np.isfinite(maps.attention).all()):
        raise BadNumbersError(f"features of {name} are not finite; its weights are damaged")
    return maps


def _normalised(picture: np.ndarray, preprocessing: Mapping[str, Any]) -> torch.Tensor:
    import torch
    from transformers.utils.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

    mean = np.array(preprocessing.get("image_mean") or IMAGENET_DEFAULT_MEAN)
    std = np.array(preprocessing.get("image_std") or IMAGENET_DEFAULT_STD)
    scaled = (picture / 255 - mean) / std
    return torch.from_numpy(scaled.astype(np.float32)).permute(2, 0, 1)[None]
