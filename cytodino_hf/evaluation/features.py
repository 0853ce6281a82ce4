"""Frozen features: what a backbone says of a picture before anybody has taught it a class."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ..data.dataset import CellDataset

#: `cls`: the CLS token after the last norm. `cls+mean patches`: beside it the mean of the patch tokens, twice as wide.
Pooling = Literal["cls", "cls+mean patches"]
_REMEDY = (
    "Look at these images and leave out what is no picture of a cell; where all of them are named the weights of the "
    "backbone are bad, or too large for the precision: compute in float32 or take another backbone."
)


def frozen_features(
    backbone: nn.Module,
    dataset: CellDataset,
    *,
    batch_size: int = 64,
    workers: int = 0,
    precision: Literal["float32", "bfloat16"] = "float32",
    pooling: Pooling = "cls",
    description: str = "features",
    show_progress: bool = True,
) -> np.ndarray:
    """Features of every picture of a dataset, unvaried, in its order.

    The backbone computes in eval mode and is in its former mode afterwards; its weights are not touched.

    Args:
        backbone: A ViT of transformers whose `last_hidden_state` is (batch, CLS + registers + patches, width) after
            the last norm (DINOv3, DINOv2, ViT), on the device to compute on.
        dataset: Pictures; its processor normalises them.
        batch_size: Pictures at once.
        workers: Processes that read pictures.
        precision: float32 is exact float32 on a GPU too (no TF32); bfloat16 is autocast.
        pooling: What is taken of the tokens.
        description: Word before the progress bar.
        show_progress: Whether to show one.

    Returns:
        float32 (images, width), or (images, 2 width) for `cls+mean patches`.

    Raises:
        DataError: A picture cannot be read; names it.
        BadNumbersError: A feature is not finite; names the pictures.
    """
    import torch
    from torch.utils.data import DataLoader
    from tqdm.auto import tqdm

    from ..data.dataset import collate
    from ..training.guards import refuse_bad_logits

    device = next(backbone.parameters()).device
    # Without a generator of its own a loader draws from the global one: a training in between would go on differently.
    loader = DataLoader(
        dataset, batch_size, num_workers=workers, collate_fn=collate, generator=torch.Generator()
    )
    progress = tqdm(total=len(dataset), desc=description, unit="image", disable=not show_progress)
    rows: list[np.ndarray] = []
    with _at_rest(backbone), _computing(device, precision), torch.inference_mode(), progress:
        for batch in loader:
            pixels = dataset.processor.normalize_batch(batch["pixel_values"].to(device))
            found = pool_tokens(backbone, pixels, pooling).float().cpu().numpy()
            if bad := np.flatnonzero(~np.isfinite(found).all(axis=1)).tolist():
                refuse_bad_logits(description, dataset.ids(batch["rows"][bad].tolist()), _REMEDY)
            rows.append(found)
            progress.update(len(found))
    return np.concatenate(rows) if rows else np.zeros((0, _width(backbone, pooling)), dtype=np.float32)


def pool_tokens(backbone: nn.Module, pixels: torch.Tensor, pooling: Pooling = "cls") -> torch.Tensor:
    """Features of normalised pictures (batch, 3, height, width), with whatever gradient and precision are in force."""
    import torch

    config: Any = backbone.config
    # A plain ViT knows one size of picture unless it is told to interpolate its positions; the others always do.
    options = {"interpolate_pos_encoding": True} if config.model_type == "vit" else {}
    tokens: torch.Tensor = backbone(pixel_values=pixels, **options).last_hidden_state
    if pooling == "cls":
        return tokens[:, 0]
    first_patch = 1 + getattr(config, "num_register_tokens", 0)
    return torch.cat([tokens[:, 0], tokens[:, first_patch:].mean(1)], dim=1)


def _width(backbone: nn.Module, pooling: Pooling) -> int:
    width: int = backbone.config.hidden_size  # type: ignore[union-attr, assignment]
    return width if pooling == "cls" else 2 * width


@contextmanager
def _at_rest(backbone: nn.Module) -> Iterator[None]:
    """Eval mode for a while: no dropout, no drop path, no jitter of positions."""
    modes = [(module, module.training) for module in backbone.modules()]
    backbone.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def _computing(device: torch.device, precision: str) -> Iterator[None]:
    import torch

    cudnn = torch.backends.cudnn
    exact = cudnn.flags(
        cudnn.enabled, cudnn.benchmark, cudnn.benchmark_limit, cudnn.deterministic, allow_tf32=False
    )
    # The caller may be within autocast: float32 has to switch it off.
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")
    with exact, autocast:
        yield
