"""Patch features, their components and attention, against values worked out from the weights by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModel

from cytodino_hf.evaluation.patch_maps import last_attention, patch_maps, principal_components

SIZES = {
    "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "patch_size": 8, "image_size": 32,
}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "dinov3_vit": {"intermediate_size": 96, "num_register_tokens": 4},
    "dinov2": {"mlp_ratio": 2},
    "dinov2_with_registers": {"mlp_ratio": 2, "num_register_tokens": 2},
    "vit": {"intermediate_size": 96},
}


def backbone(kind: str) -> Any:
    torch.manual_seed(3)
    model = AutoModel.from_config(CONFIG_MAPPING[kind](**SIZES, **KINDS[kind]), attn_implementation="eager")
    for parameter in model.parameters():  # sharp attention, so that a wrong row or head shows
        parameter.data += 0.15 * torch.randn_like(parameter)
    return model.double().eval()


def shares_by_hand(model: Any, inputs: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Softmax of q k / sqrt(width of a head) with what goes into the last attention, (heads, tokens, tokens)."""
    attention, heads = last_attention(model), SIZES["num_attention_heads"]
    width = SIZES["hidden_size"] // heads

    def split(x: torch.Tensor) -> torch.Tensor:
        return x[0].reshape(len(x[0]), heads, width).transpose(0, 1)

    q, k = split(attention.q_proj(inputs)), split(attention.k_proj(inputs))  # type: ignore[operator]
    if model.config.model_type == "dinov3_vit":
        q, k = (rotated(x, rows, columns, model.config.rope_theta) for x in (q, k))
    scores = torch.einsum("hid,hjd->hij", q, k) / math.sqrt(width)
    return scores.exp() / scores.exp().sum(-1, keepdim=True)


def rotated(x: torch.Tensor, rows: int, columns: int, theta: float) -> torch.Tensor:
    """DINOv3's rotary positions: each half of a head is turned by y and by x, with one period per pair of features."""
    width, patches = x.shape[-1], rows * columns
    out = x.clone()
    for number in range(patches):
        place = (
            2 * (number // columns + 0.5) / rows - 1,
            2 * (number % columns + 0.5) / columns - 1,
        )
        for axis in range(2):
            for i in range(width // 4):
                angle = 2 * math.pi * place[axis] / theta ** (4 * i / width)
                first = axis * width // 4 + i
                token = x.shape[1] - patches + number
                a, b = x[:, token, first], x[:, token, first + width // 2]
                out[:, token, first] = a * math.cos(angle) - b * math.sin(angle)
                out[:, token, first + width // 2] = b * math.cos(angle) + a * math.sin(angle)
    return out


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("rows", "columns"), [(4, 4), (3, 6)])
def test_attention_and_features_are_those_of_the_weights(kind: str, rows: int, columns: int) -> None:
    model = backbone(kind)
    pixels = torch.randn(1, 3, rows * 8, columns * 8, generator=torch.Generator().manual_seed(0)).double()
    seen: list[torch.Tensor] = []
    hook = last_attention(model).register_forward_pre_hook(
        lambda _module, args, kwargs: seen.append(args[0] if args else kwargs["hidden_states"]),
        with_kwargs=True,
    )
    maps = patch_maps(model, pixels)
    hook.remove()
    with torch.no_grad():
        shares = shares_by_hand(model, seen[0], rows, columns)
        options = {"interpolate_pos_encoding": True} if kind == "vit" else {}
        tokens = model(pixel_values=pixels, **options).last_hidden_state[0]
    first = 1 + KINDS[kind].get("num_register_tokens", 0)
    assert maps.attention.shape == (3, rows, columns)
    np.testing.assert_allclose(maps.attention.reshape(3, -1), shares[:, 0, first:].numpy(), atol=1e-6)
    np.testing.assert_allclose(maps.features.reshape(rows * columns, -1), tokens[first:].numpy(), atol=1e-5)
    assert np.ptp(maps.attention) > 0.01  # not flat, so the comparison means something
    assert not last_attention(model)._forward_hooks


def test_components_are_those_of_the_singular_value_decomposition() -> None:
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(10, 10)) * np.geomspace(4, 0.1, 10)[:, None]
    pictures = [(rng.normal(size=(rows, 5, 10)) @ mixing).astype(np.float32) for rows in (6, 9)]
    found = principal_components(pictures)
    patches = np.concatenate([p.reshape(-1, 10) for p in pictures]).astype(np.float64)
    centred = patches - patches.mean(0)
    _, singular, right = np.linalg.svd(centred, full_matrices=False)
    np.testing.assert_allclose(np.abs(found.directions @ right[:3].T), np.eye(3), atol=1e-8)
    np.testing.assert_allclose(found.shares, (singular**2 / (singular**2).sum())[:3], atol=1e-10)
    assert all(d[np.abs(d).argmax()] > 0 for d in found.directions)
    scores = centred @ found.directions.T
    low, high = np.quantile(scores, 0.02, axis=0), np.quantile(scores, 0.98, axis=0)
    expected = np.clip((scores[:30] - low) / (high - low), 0, 1).reshape(6, 5, 3)
    np.testing.assert_allclose(found.colours(pictures[0]), expected, atol=1e-9)


def test_the_sign_does_not_hang_on_the_order_of_the_pictures() -> None:
    rng = np.random.default_rng(1)
    pictures = [rng.normal(size=(4, 4, 6)).astype(np.float32) for _ in range(3)]
    one, other = principal_components(pictures), principal_components(pictures[::-1])
    np.testing.assert_allclose(one.directions, other.directions, atol=1e-7)


@pytest.mark.parametrize("width", [1, 2, 8])
def test_features_with_less_than_three_directions_come_out_grey_there(width: int) -> None:
    picture = np.zeros((4, 4, width), dtype=np.float32)
    assert (principal_components([picture]).colours(picture) == 0.5).all()
    picture[:2, :, 0] = 1.0
    colours = principal_components([picture]).colours(picture)
    assert colours[0, 0, 0] == 1.0
    assert colours[3, 0, 0] == 0.0
    assert (colours[..., 1:] == 0.5).all()
