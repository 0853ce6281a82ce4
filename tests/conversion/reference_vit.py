"""Vision transformers as published, in plain torch: what a converted backbone must equal.

Written from the papers (Dosovitskiy et al. 2021; Touvron et al. 2021 for LayerScale; Shazeer 2020 for SwiGLU; Oquab
et al. 2024) and from how DINOv2 and iBOT name their tensors; nothing of transformers is used.
"""

from __future__ import annotations

import math

import torch
from torch.nn import functional

Weights = dict[str, torch.Tensor]


def random_weights(
    *,
    width: int = 64,
    depth: int = 2,
    patch: int = 14,
    side: int = 4,
    layer_scale: bool = True,
    swiglu: bool = False,
    registers: int = 0,
    seed: int = 0,
) -> Weights:
    """Weights with the names of DINOv2 (with `layer_scale`) or of iBOT; every part of them matters to the output."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int, scale: float = 0.1, middle: float = 0.0) -> torch.Tensor:
        return middle + scale * torch.randn(*shape, generator=generator)

    hidden = (int(4 * width * 2 / 3) + 7) // 8 * 8 if swiglu else 4 * width
    weights = {
        "cls_token": draw(1, 1, width),
        "pos_embed": draw(1, side * side + 1, width, scale=0.5),
        "patch_embed.proj.weight": draw(width, 3, patch, patch),
        "patch_embed.proj.bias": draw(width),
        "norm.weight": draw(width, middle=1.0),
        "norm.bias": draw(width),
        "mask_token" if layer_scale else "masked_embed": draw(1, width),
    }
    if registers:
        weights["register_tokens"] = draw(1, registers, width)
    for i in range(depth):
        block = {
            "norm1.weight": draw(width, middle=1.0), "norm1.bias": draw(width),
            "attn.qkv.weight": draw(3 * width, width, scale=0.2), "attn.qkv.bias": draw(3 * width),
            "attn.proj.weight": draw(width, width), "attn.proj.bias": draw(width),
            "norm2.weight": draw(width, middle=1.0), "norm2.bias": draw(width),
        }  # fmt: skip
        if layer_scale:
            block |= {"ls1.gamma": draw(width, middle=0.7), "ls2.gamma": draw(width, middle=0.7)}
        if swiglu:
            block |= {
                "mlp.w12.weight": draw(2 * hidden, width), "mlp.w12.bias": draw(2 * hidden),
                "mlp.w3.weight": draw(width, hidden), "mlp.w3.bias": draw(width),
            }  # fmt: skip
        else:
            block |= {
                "mlp.fc1.weight": draw(hidden, width), "mlp.fc1.bias": draw(hidden),
                "mlp.fc2.weight": draw(width, hidden), "mlp.fc2.bias": draw(width),
            }  # fmt: skip
        weights |= {f"blocks.{i}.{name}": tensor for name, tensor in block.items()}
    return weights


def tokens(
    weights: Weights, pixels: torch.Tensor, heads: int, *, offset: float = 0.0, antialias: bool = False
) -> torch.Tensor:
    """CLS, registers and patches after the last norm, (batch, tokens, width), computed in float64.

    Args:
        weights: From `random_weights`.
        pixels: (batch, 3, height, width).
        heads: Attention heads.
        offset: Added to the number of patches when positions are resampled; the original code has 0.1.
        antialias: Of that resampling; the original code has it for models with registers.
    """
    w = {name: tensor.double() for name, tensor in weights.items()}
    x = pixels.double()
    patch = w["patch_embed.proj.weight"].shape[-1]
    rows, columns = x.shape[2] // patch, x.shape[3] // patch
    x = functional.conv2d(x, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=patch)
    x = x.flatten(2).transpose(1, 2)
    x = torch.cat([w["cls_token"].expand(len(x), -1, -1), x], dim=1)
    x = x + _positions(w["pos_embed"], rows, columns, offset, antialias)
    if "register_tokens" in w:
        x = torch.cat([x[:, :1], w["register_tokens"].expand(len(x), -1, -1), x[:, 1:]], dim=1)
    depth = len({name.split(".")[1] for name in w if name.startswith("blocks.")})
    for i in range(depth):
        x = _block(
            {n.removeprefix(f"blocks.{i}."): t for n, t in w.items() if n.startswith(f"blocks.{i}.")},
            x,
            heads,
        )
    return _norm(x, w["norm.weight"], w["norm.bias"])


def _block(w: Weights, x: torch.Tensor, heads: int) -> torch.Tensor:
    batch, count, width = x.shape
    qkv = _norm(x, w["norm1.weight"], w["norm1.bias"]) @ w["attn.qkv.weight"].T + w["attn.qkv.bias"]
    q, k, v = qkv.reshape(batch, count, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
    scores = q @ k.transpose(-1, -2) / math.sqrt(width // heads)
    shares = scores.exp() / scores.exp().sum(-1, keepdim=True)
    mixed = (shares @ v).transpose(1, 2).reshape(batch, count, width)
    x = x + w.get("ls1.gamma", 1.0) * (mixed @ w["attn.proj.weight"].T + w["attn.proj.bias"])
    y = _norm(x, w["norm2.weight"], w["norm2.bias"])
    if "mlp.w12.weight" in w:
        gate, up = (y @ w["mlp.w12.weight"].T + w["mlp.w12.bias"]).chunk(2, dim=-1)
        y = (gate * torch.sigmoid(gate) * up) @ w["mlp.w3.weight"].T + w["mlp.w3.bias"]
    else:
        y = y @ w["mlp.fc1.weight"].T + w["mlp.fc1.bias"]
        y = y * 0.5 * (1 + torch.erf(y / math.sqrt(2)))  # GELU
        y = y @ w["mlp.fc2.weight"].T + w["mlp.fc2.bias"]
    return x + w.get("ls2.gamma", 1.0) * y


def _norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / torch.sqrt(centred.square().mean(-1, keepdim=True) + 1e-6) * weight + bias


def _positions(
    positions: torch.Tensor, rows: int, columns: int, offset: float, antialias: bool
) -> torch.Tensor:
    side = math.isqrt(positions.shape[1] - 1)
    if (rows, columns) == (side, side):
        return positions
    grid = positions[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    if offset:
        scale = ((rows + offset) / side, (columns + offset) / side)
        grid = functional.interpolate(grid, scale_factor=scale, mode="bicubic", antialias=antialias)
    else:
        grid = functional.interpolate(grid, size=(rows, columns), mode="bicubic", antialias=antialias)
    return torch.cat([positions[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)
