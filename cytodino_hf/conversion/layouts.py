"""Names and sizes of vision transformers as DINOv2, iBOT and timm save them, and the same ones in transformers.

All of them are one architecture: norm, attention with q, k and v in one matrix, norm, MLP or SwiGLU. DINOv2 adds
LayerScale (`ls1.gamma`), without which a layer is scaled by one. So every kind can be written as a `Dinov2Model`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ..errors import WeightsFileError

if TYPE_CHECKING:
    import torch

Kind = Literal["dinobloom", "ibot"]

#: Width of one attention head in every ViT of DINO, iBOT, DINOv2 and timm from tiny to giant; weights do not show it.
HEAD_WIDTH = 64
#: Norms of DINO, iBOT and DINOv2 (vision_transformer.py: partial(nn.LayerNorm, eps=1e-6)); weights do not show it.
LAYER_NORM_EPS = 1e-6
_WIDEST = 8192  # twice DINOv3's 7 billion parameters; a wider one is a damaged file
_SHOWN = 8  # names in a message

_ONE_TO_ONE = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "mask_token": "embeddings.mask_token",
    "masked_embed": "embeddings.mask_token",  # iBOT's name
    "register_tokens": "embeddings.register_tokens",
    "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
    "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
    "norm.weight": "layernorm.weight",
    "norm.bias": "layernorm.bias",
}
# Within a block: start of a name -> one start, or several whose tensors lie one after the other along the rows.
_BLOCK = {
    "norm1.": ("norm1.",),
    "attn.qkv.": ("attention.q_proj.", "attention.k_proj.", "attention.v_proj."),
    "attn.proj.": ("attention.o_proj.",),
    "ls1.gamma": ("layer_scale1.lambda1",),
    "gamma_1": ("layer_scale1.lambda1",),
    "norm2.": ("norm2.",),
    "mlp.fc1.": ("mlp.fc1.",),
    "mlp.fc2.": ("mlp.fc2.",),
    "mlp.w12.": ("mlp.gate_proj.", "mlp.up_proj."),
    "mlp.w3.": ("mlp.down_proj.",),
    "ls2.gamma": ("layer_scale2.lambda1",),
    "gamma_2": ("layer_scale2.lambda1",),
}
# DINOv2 trained in parallel keeps blocks in chunks, `blocks.CHUNK.NUMBER.`, and NUMBER counts through all of them.
_BLOCK_NAME = re.compile(r"blocks\.(?:\d+\.)?(\d+)\.(\D.*)")
_AS_VIT = (
    (re.compile(r"^encoder\.layer\.(\d+)\.norm1\."), r"layers.\1.layernorm_before."),
    (re.compile(r"^encoder\.layer\.(\d+)\.norm2\."), r"layers.\1.layernorm_after."),
    (re.compile(r"^encoder\.layer\."), "layers."),
)


@dataclass(frozen=True)
class Sizes:
    """What the shapes of the tensors say of a vision transformer.

    Args:
        width, depth, patch, hidden: Of tokens, blocks, a patch in pixels, and the MLP.
        side: Patches along a side of the pictures it was trained on.
        registers: Register tokens.
        is_swiglu, has_layer_scale, has_qkv_bias: Which parts it has.
    """

    width: int
    depth: int
    patch: int
    hidden: int
    side: int
    registers: int
    is_swiglu: bool
    has_layer_scale: bool
    has_qkv_bias: bool

    @property
    def image_size(self) -> int:
        """Side in pixels of the pictures it was trained on."""
        return self.side * self.patch

    @property
    def kind(self) -> Kind:
        """`dinobloom` has DINOv2's LayerScale, `ibot` is a plain ViT."""
        return "dinobloom" if self.has_layer_scale else "ibot"


def measure(shapes: Mapping[str, tuple[int, ...]], source: str) -> Sizes:
    """Read every size off the shapes of the tensors.

    Args:
        shapes: Name, without prefix, -> shape.
        source: The file, for messages.

    Raises:
        WeightsFileError: Tensors that every vision transformer has are missing or have odd shapes.
    """
    try:
        width, channels, patch, other = shapes["patch_embed.proj.weight"]
        positions, blocks = shapes["pos_embed"], {int(m[1]) for m in map(_BLOCK_NAME.fullmatch, shapes) if m}
        has_layer_scale = any(name.endswith(("ls1.gamma", "gamma_1")) for name in shapes)
        hidden = next(
            shape for name, shape in shapes.items() if name.endswith(("mlp.fc1.weight", "mlp.w12.weight"))
        )[0]
        registers = shapes["register_tokens"][1] if "register_tokens" in shapes else 0
    except (LookupError, ValueError, StopIteration) as error:
        raise WeightsFileError(
            f"{source}: no vision transformer of DINOv2, DINO, iBOT or timm (patch_embed.proj.weight, pos_embed or "
            f"MLP missing or odd); it holds {listed(shapes)}"
        ) from error
    is_swiglu = any(name.endswith("mlp.w12.weight") for name in shapes)
    side = math.isqrt(max(positions[1] - 1, 0)) if len(positions) == 3 else 0
    odd_patch = patch != other or not patch or channels != 3 or not 0 < width <= _WIDEST
    if not side or side * side + 1 != positions[1] or odd_patch:
        raise WeightsFileError(
            f"{source}: pos_embed {positions} and patch_embed.proj.weight {shapes['patch_embed.proj.weight']} are not "
            "those of a model of square RGB pictures with one CLS token"
        )
    if not blocks or max(blocks) + 1 != len(blocks):
        missing = f"only {len(blocks)} blocks, numbered up to {max(blocks, default=0)}"
        raise WeightsFileError(f"{source}: {missing}; the file is not whole")
    return Sizes(
        width=width,
        depth=len(blocks),
        patch=patch,
        hidden=hidden // 2 if is_swiglu else hidden,
        side=side,
        registers=registers,
        is_swiglu=is_swiglu,
        has_layer_scale=has_layer_scale,
        has_qkv_bias=any(name.endswith("attn.qkv.bias") for name in shapes),
    )


def dinov2_names(name: str) -> tuple[str, ...] | None:
    """Names in `Dinov2Model` of what one tensor holds, in the order of its rows; None for an unknown tensor.

    Example:
        >>> dinov2_names("blocks.3.norm1.weight")
        ('encoder.layer.3.norm1.weight',)
    """
    if name in _ONE_TO_ONE:
        return (_ONE_TO_ONE[name],)
    found = _BLOCK_NAME.fullmatch(name)
    for start, targets in _BLOCK.items() if found else ():
        assert found is not None
        number, rest = found.groups()
        if rest == start or (start.endswith(".") and rest.startswith(start)):
            return tuple(f"encoder.layer.{number}.{target}{rest.removeprefix(start)}" for target in targets)
    return None


def dinov2_config(sizes: Sizes, heads: int, source: str) -> Any:
    """Configuration of transformers' DINOv2, with registers where the weights have some.

    Raises:
        WeightsFileError: The MLP is of a size that this configuration cannot say.
    """
    from transformers import Dinov2Config, Dinov2WithRegistersConfig

    ratio = sizes.hidden // sizes.width
    if sizes.is_swiglu:  # two thirds of the MLP, rounded up to a multiple of 8 (Dinov2SwiGLUFFN)
        ratio = next((r for r in range(1, 17) if _swiglu_width(sizes.width, r) == sizes.hidden), 0)
    if not ratio or (not sizes.is_swiglu and ratio * sizes.width != sizes.hidden):
        raise WeightsFileError(
            f"{source}: an MLP of {sizes.hidden} for a width of {sizes.width}; transformers' DINOv2 has whole "
            "multiples only"
        )
    common: dict[str, Any] = {
        "hidden_size": sizes.width,
        "num_hidden_layers": sizes.depth,
        "num_attention_heads": heads,
        "mlp_ratio": ratio,
        "use_swiglu_ffn": sizes.is_swiglu,
        "qkv_bias": sizes.has_qkv_bias,
        "image_size": sizes.image_size,
        "patch_size": sizes.patch,
        "layer_norm_eps": LAYER_NORM_EPS,
    }
    if sizes.registers:
        return Dinov2WithRegistersConfig(**common, num_register_tokens=sizes.registers)
    return Dinov2Config(**common)


def vit_config(sizes: Sizes, heads: int) -> Any:
    """Configuration of transformers' ViT, whose pooler hands the CLS token on unchanged."""
    from transformers import ViTConfig

    return ViTConfig(
        hidden_size=sizes.width,
        num_hidden_layers=sizes.depth,
        num_attention_heads=heads,
        intermediate_size=sizes.hidden,
        qkv_bias=sizes.has_qkv_bias,
        image_size=sizes.image_size,
        patch_size=sizes.patch,
        layer_norm_eps=LAYER_NORM_EPS,
        pooler_act="linear",
    )


def vit_tensors(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors named for `Dinov2Model`, of a model without LayerScale, as those of `ViTModel`.

    The pooler, which these checkpoints do not have and transformers would draw at random, becomes the identity.
    """
    import torch

    found = {}
    for name, tensor in tensors.items():
        if ".layer_scale" in name or name == "embeddings.mask_token":
            continue
        for pattern, replacement in _AS_VIT:
            name = pattern.sub(replacement, name)
        found[name] = tensor
    cls = tensors["embeddings.cls_token"]
    width = cls.shape[-1]
    return found | {
        "pooler.dense.weight": torch.eye(width, dtype=cls.dtype),
        "pooler.dense.bias": torch.zeros(width, dtype=cls.dtype),
    }


def listed(names: Iterable[str]) -> str:
    """The first few names, and how many there are more."""
    known = list(names)
    shown = ", ".join(str(name)[:80] for name in known[:_SHOWN]) or "nothing"
    return shown + (f" and {len(known) - _SHOWN} more" if len(known) > _SHOWN else "")


def _swiglu_width(width: int, ratio: int) -> int:
    return (int(width * ratio * 2 / 3) + 7) // 8 * 8
