"""What a backbone says of every patch of a picture: features, their components, attention of the CLS token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch
    from torch import nn

#: Share of the patches at each end of a component that get its darkest and brightest value.
_CLIPPED = 0.02


@dataclass(frozen=True)
class PatchMaps:
    """Of one picture.

    Args:
        features: float32 (rows, columns, width), patch tokens after the last norm.
        attention: float32 (heads, rows, columns), shares of the CLS token's attention in the last block; a head's
            shares and what it gives to the CLS and register tokens make one.
    """

    features: np.ndarray
    attention: np.ndarray


def patch_maps(backbone: nn.Module, pixels: torch.Tensor) -> PatchMaps:
    """Features and attention of one picture.

    Args:
        backbone: A DINOv3, DINOv2 or ViT of transformers in eval mode with `attn_implementation="eager"`: the other
            implementations never have the shares in hand.
        pixels: Normalised, (1, 3, height, width), whole patches.
    """
    import torch

    config: Any = backbone.config
    rows, columns = pixels.shape[2] // config.patch_size, pixels.shape[3] // config.patch_size
    first_patch = 1 + getattr(config, "num_register_tokens", 0)
    options = {"interpolate_pos_encoding": True} if config.model_type == "vit" else {}
    seen: list[torch.Tensor] = []
    # Only the last block's: to ask the model for attentions would keep those of all blocks.
    hook = last_attention(backbone).register_forward_hook(lambda _module, _args, out: seen.append(out[1]))
    try:
        with torch.inference_mode():
            tokens = backbone(pixel_values=pixels, **options).last_hidden_state
    finally:
        hook.remove()
    features = tokens[0, first_patch:].float().cpu().numpy().reshape(rows, columns, -1)
    attention = seen[0][0, :, 0, first_patch:].float().cpu().numpy().reshape(-1, rows, columns)
    return PatchMaps(features, attention)


def last_attention(backbone: nn.Module) -> nn.Module:
    """The attention of the last block."""
    # In order of use, whatever the blocks are called: `encoder.layer`, `model.layer`, `layers`.
    return [module for name, module in backbone.named_modules() if name.endswith(".attention")][-1]


@dataclass(frozen=True)
class Components:
    """Principal components of patch features.

    Args:
        mean: float64 (width,).
        directions: float64 (3, width), unit length; the entry of largest magnitude is positive.
        low, high: float64 (3,), what is drawn darkest and brightest.
        shares: float64 (3,), of the variance.
    """

    mean: np.ndarray
    directions: np.ndarray
    low: np.ndarray
    high: np.ndarray
    shares: np.ndarray

    def colours(self, features: np.ndarray) -> np.ndarray:
        """The three components as red, green and blue, float64 (rows, columns, 3) in 0 to 1."""
        scores = (features.astype(np.float64) - self.mean) @ self.directions.T
        spread = self.high - self.low
        scaled = np.divide(scores - self.low, spread, out=np.full(scores.shape, 0.5), where=spread > 0)
        return scaled.clip(0, 1)


def principal_components(features: Sequence[np.ndarray]) -> Components:
    """The three directions in which the patches of these pictures differ most.

    Components beyond the rank of the features are zero and come out as an even grey.

    Args:
        features: Of each picture, (rows, columns, width).
    """
    width = features[0].shape[-1]
    patches = np.concatenate([picture.reshape(-1, width) for picture in features]).astype(np.float64)
    mean = patches.mean(0)
    centred = patches - mean
    # Of the (width, width) scatter: there are far more patches than features.
    values, vectors = np.linalg.eigh(centred.T @ centred)
    values, vectors = values[::-1].clip(min=0), vectors[:, ::-1].T
    total = values.sum()
    kept = min(3, width)
    directions, shares = np.zeros((3, width)), np.zeros(3)
    is_real = values[:kept] > total * 1e-12
    directions[:kept][is_real] = vectors[:kept][is_real]
    shares[:kept][is_real] = values[:kept][is_real] / total if total else 0.0
    largest = np.abs(directions).argmax(1)
    directions *= np.where(directions[np.arange(3), largest] < 0, -1.0, 1.0)[:, None]
    scores = centred @ directions.T
    low, high = np.quantile(scores, [_CLIPPED, 1 - _CLIPPED], axis=0)
    return Components(mean, directions, low, high, shares)
