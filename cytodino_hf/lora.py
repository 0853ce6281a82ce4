"""LoRA on the backbone: where it stands, its dropout in a form that keeps little, and merging for an evaluation."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F

from .errors import BackboneUnavailableError

if TYPE_CHECKING:
    from .model.modeling_cytodino import CytoDinoForImageClassification
    from .recipe import ModelSection

_ADAPTER = "default"  # peft's name of the only adapter
# Number of the block a part belongs to: "model.layer.7.norm1" (DINOv3), "encoder.layer.7.norm1" (DINOv2).
_BLOCK = re.compile(r"(?:^|\.)layer\.(\d+)\.")
_FINAL_NORM = ("norm.", "layernorm.")


def first_block(backbone_config: Any, last_blocks: int | None) -> int:
    """Number of the first block with LoRA, where the recipe asks for the last `last_blocks`; None is all of them.

    Raises:
        BackboneUnavailableError: The backbone has fewer blocks.
    """
    count: int = backbone_config.num_hidden_layers
    if last_blocks is not None and last_blocks > count:
        raise BackboneUnavailableError(
            f"model.lora_last_blocks = {last_blocks}: this backbone has {count} blocks; give at most {count}, or null "
            "for all"
        )
    return 0 if last_blocks is None else count - last_blocks


def lies_behind(name: str, first: int) -> bool:
    """Whether a part of the backbone comes after the beginning of block `first` (its name relative to the backbone)."""
    block = _BLOCK.search(name)
    return first == 0 or name.startswith(_FINAL_NORM) or (block is not None and int(block[1]) >= first)


def add_lora(model: CytoDinoForImageClassification, section: ModelSection, norms: list[str]) -> nn.Module:
    """Put LoRA on the linear layers of a frozen backbone, as the model section of a recipe says.

    Nothing trains below the first block with LoRA, so autograd keeps nothing of those blocks and never goes back
    through them.

    Args:
        model: With its backbone frozen.
        section: The model section of the recipe.
        norms: Names of the backbone's norms.

    Raises:
        BackboneUnavailableError: The backbone has no such linear layer, or fewer blocks than asked for.
    """
    from peft import LoraConfig, get_peft_model

    first = first_block(model.config.backbone_config, section.lora_last_blocks)
    blocks = "|".join(str(number) for number in range(first, model.config.backbone_config.num_hidden_layers))  # type: ignore[union-attr]
    targets = "|".join(map(re.escape, _targets(model.backbone, section)))
    trained_norms = [f"backbone.{name}" for name in norms if lies_behind(f"{name}.", first)]
    peft_model = get_peft_model(
        model,
        LoraConfig(
            r=section.lora_rank,
            lora_alpha=section.lora_alpha,  # type: ignore[arg-type]
            lora_dropout=section.lora_dropout,
            target_modules=r"backbone\..*" + (rf"layer\.({blocks})\..*" if first else "") + rf"\.({targets})",
            modules_to_save=["head", *(trained_norms if section.train_norms else [])],
            bias="all" if section.train_biases else "none",
        ),
    )
    for name, parameter in peft_model.named_parameters():
        # bias="all" also unfreezes the untouched copies peft keeps of the head and the norms, and every block.
        inside = name.rpartition("backbone.")[2]
        if "original_module" in name or ("backbone." in name and not lies_behind(inside, first)):
            parameter.requires_grad_(False)
    for layer in _lora_layers(peft_model):
        # Under autocast peft would turn the input to float32 and torch back again: two more copies of each input.
        layer.cast_input_dtype_enabled = False
        if section.lora_dropout > 0:
            layer.lora_A[_ADAPTER] = DroppedLinear.like(layer.lora_A[_ADAPTER], section.lora_dropout)
            layer.lora_dropout[_ADAPTER] = nn.Identity()
    return peft_model


def _targets(backbone: nn.Module, section: ModelSection) -> list[str]:
    linear = sorted(
        {name.rpartition(".")[2] for name, m in backbone.named_modules() if isinstance(m, nn.Linear)}
    )
    targets = linear if section.lora_targets == "all-linear" else list(section.lora_targets)
    if unknown := [name for name in targets if name not in linear]:
        raise BackboneUnavailableError(
            f"model.lora_targets: this backbone has no linear layer {', '.join(unknown)}; it has {', '.join(linear)}"
        )
    return targets


def _lora_layers(model: nn.Module) -> list[Any]:
    from peft.tuners.lora import LoraLayer

    return [module for module in model.modules() if isinstance(module, LoraLayer)]


class DroppedLinear(nn.Linear):
    """Dropout and the linear layer behind it (LoRA's A) in one, for the memory of one byte an element.

    Plain dropout keeps its mask and its result for the backward pass, each as large as the input. Here the backward
    pass makes the result again from the input, which q, k and v share, and from a mask of one byte an element.

    Args:
        drop: Probability that an input element is dropped in training mode; what stays is scaled up.
        kwargs: As for `nn.Linear`, without bias.
    """

    def __init__(self, in_features: int, out_features: int, drop: float, **kwargs: Any) -> None:
        super().__init__(in_features, out_features, bias=False, **kwargs)
        self.drop = drop

    @classmethod
    def like(cls, linear: nn.Linear, drop: float) -> DroppedLinear:
        """The same weights (the very parameter), with dropout before them."""
        # On the meta device, so that no random number is drawn for weights nobody uses.
        layer = cls(linear.in_features, linear.out_features, drop, device="meta")
        layer.weight = linear.weight
        return layer

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(..., in) -> (..., out)."""
        device = input.device.type
        autocast = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if autocast else self.weight.dtype
        x, weight = input.to(dtype), self.weight.to(dtype)
        if not self.training:
            return F.linear(x, weight)
        mask, share = keep_mask(x, self.drop)
        result: torch.Tensor = _MaskedLinear.apply(x, weight, mask, 1 / share)  # type: ignore[no-untyped-call]
        return result

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, drop={self.drop}"


class _MaskedLinear(torch.autograd.Function):
    """linear(x * mask, weight * scale); keeps x, mask and weight."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, mask: torch.Tensor, scale: float
    ) -> torch.Tensor:
        ctx.save_for_backward(x, weight, mask)
        ctx.scale = scale
        return F.linear(x * mask.to(x.dtype), weight * scale)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, mask = ctx.saved_tensors
        gradient, scale = gradients[0].to(x.dtype), ctx.scale
        for_x = for_weight = None
        factor = mask.to(x.dtype)
        if ctx.needs_input_grad[0]:
            for_x = (gradient @ (weight * scale)) * factor
        if ctx.needs_input_grad[1]:
            for_weight = gradient.flatten(0, -2).t() @ (x * factor).flatten(0, -2) * scale
        return for_x, for_weight, None, None


def keep_mask(x: torch.Tensor, drop: float) -> tuple[torch.Tensor, float]:
    """Which elements of `x` dropout keeps: int8, 1 or 0, of the shape of `x`; and the exact probability of a 1.

    On the CPU each element costs 16 random bits, which torch draws faster than its own dropout mask; the probability is
    rounded to a multiple of 2^-16.
    """
    if x.device.type != "cpu":
        keep = torch.empty(x.shape, dtype=torch.bool, device=x.device).bernoulli_(1 - drop)
        return keep.view(torch.int8), 1 - drop
    levels = min(max(round((1 - drop) * 2**16), 1), 2**16 - 1)  # 0 and 2^16 have no place in 16 bits
    words = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    bits = words.view(torch.int16)[: x.numel()].view(x.shape)
    return (bits < levels - 2**15).view(torch.int8), levels / 2**16


def share_casts(backbone: nn.Module) -> None:
    """Let the norms of each block hand on what autocast computes in, once, instead of each linear layer by itself.

    Every reader of these norms is a linear layer, which would cast its input just so; one copy then serves them all.
    """
    for name, module in backbone.named_modules():
        if _BLOCK.search(name) and isinstance(module, nn.LayerNorm):
            module.register_forward_hook(_cast_as_autocast_would)


def _cast_as_autocast_would(module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
    device = output.device.type
    return output.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else output


@contextmanager
def merged_for_evaluation(model: nn.Module, dtype: torch.dtype | None = None) -> Iterator[None]:
    """Fold LoRA into the weights for a while; afterwards, also after an error, the very same tensors are back.

    peft's own unmerging subtracts, which leaves rounding behind; here the originals are set aside and put back.
    It costs the memory of a second copy of the backbone's linear weights for that while.

    Args:
        model: Any model; one without LoRA only gets the cast.
        dtype: What autocast computes in: the backbone's frozen linear weights are cast once instead of at every
            call, to the very numbers autocast would use. None keeps float32.
    """
    aside: list[tuple[nn.Parameter, torch.Tensor]] = []
    layers = _lora_layers(model)
    deltas = {id(layer.get_base_layer().weight): layer for layer in layers}
    try:
        with torch.no_grad():
            for parameter in _linear_parameters(model):
                layer = deltas.get(id(parameter))
                value = parameter.data
                if layer is not None:
                    with torch.autocast(value.device.type, enabled=False):
                        value = value + layer.get_delta_weight(_ADAPTER)
                # Never what trains: another dtype would take the parameter's place in the graph, and with it the
                # hook by which data-parallel training learns of its gradient.
                if dtype is not None and not parameter.requires_grad:
                    value = value.to(dtype)
                aside.append((parameter, parameter.data))
                parameter.data = value
        for layer in layers:
            layer.merged_adapters.append(_ADAPTER)
        yield
    finally:
        for parameter, original in aside:
            parameter.data = original
        for layer in layers:
            layer.merged_adapters.clear()


def _linear_parameters(model: nn.Module) -> list[nn.Parameter]:
    # LoRA's own factors are linear layers too; merged, they are not used.
    return [
        parameter
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and "backbone." in f"{name}." and "lora_" not in name
        for parameter in module.parameters(recurse=False)
    ]
