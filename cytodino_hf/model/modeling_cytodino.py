"""CytoDINO: a ViT backbone (DINOv3, DINOv2) and a head that reads all its tokens."""

import copy
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F
from transformers import AutoModel, PreTrainedModel, initialization
from transformers.modeling_outputs import ImageClassifierOutput
from transformers.utils import cached_file, can_return_tuple, logging

from .binding_cytodino import access_explained, check_binding, is_bound
from .configuration_cytodino import CytoDinoConfig

_HUB_KEYS = ("cache_dir", "force_download", "local_files_only", "token", "revision")
# What a configuration says of weights that lie in parts.
_ABOUT_PARTS = (
    "binding", "base_model_name_or_path", "base_model_revision", "base_subfolder", "adapter_subfolder", "adapter_type",
)  # fmt: skip


@dataclass
class CytoDinoOutput(ImageClassifierOutput):
    """Logits (batch, classes) and what they were read from: `embedding` (batch, width)."""

    embedding: torch.FloatTensor | None = None


class CytoDinoDecoderBlock(nn.Module):
    """One pre-norm transformer decoder layer for a single query, in the cheap exact form.

    With one query, self-attention is a plain linear map (its softmax runs over one value). In cross-attention the
    key projection moves to the query, `q . (W_k m + b_k) = (W_k^T q) . m + const`, and the value projection behind
    the weighted sum, so the tokens are never projected: about 100 times less work for 261 tokens of width 1024.
    Equal to `torch.nn.TransformerDecoderLayer(norm_first=True, activation="gelu")` with the same weights; dropout
    acts on the attention weights as there (the value bias is scaled by the sum of the weights kept).

    Args:
        width: Width of query and tokens.
        heads: Attention heads; divides `width`.
        feedforward_width: Width of the hidden layer.
        dropout: Dropout on attention weights, on the hidden layer and on each branch.
    """

    def __init__(self, width: int, heads: int, feedforward_width: int, dropout: float):
        super().__init__()
        self.heads = heads
        # nn.MultiheadAttention only holds the weights: its packed `in_proj_weight` always gets a gradient (zero for
        # the unused rows), so that data-parallel training finds no parameter without one.
        self.self_attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.cross_attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.up = nn.Linear(width, feedforward_width)
        self.down = nn.Linear(feedforward_width, width)
        self.norm_self = nn.LayerNorm(width)
        self.norm_cross = nn.LayerNorm(width)
        self.norm_feedforward = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, query: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        # query (batch, width), tokens (batch, count, width) -> (batch, width)
        query = query + self.dropout(self._attend_self(self.norm_self(query)))
        query = query + self.dropout(self._attend_tokens(self.norm_cross(query), tokens))
        hidden = self.dropout(F.gelu(self.up(self.norm_feedforward(query))))
        return query + self.dropout(self.down(hidden))

    def _attend_self(self, query: torch.Tensor) -> torch.Tensor:
        attention = self.self_attention
        _, _, value_weight = attention.in_proj_weight.chunk(3)
        _, _, value_bias = attention.in_proj_bias.chunk(3)
        value = F.linear(query, value_weight, value_bias)
        # The softmax over one key is 1; dropout still drops it for whole heads.
        kept = self.dropout(value.new_ones(len(query), self.heads, 1))
        return attention.out_proj((value.unflatten(-1, (self.heads, -1)) * kept).flatten(1))

    def _attend_tokens(self, query: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        attention = self.cross_attention
        weights = self.attention_weights(query, tokens)  # (batch, heads, count)
        weights = self.dropout(weights)
        _, _, value_weight = (w.unflatten(0, (self.heads, -1)) for w in attention.in_proj_weight.chunk(3))
        _, _, value_bias = (b.unflatten(0, (self.heads, -1)) for b in attention.in_proj_bias.chunk(3))
        summed = weights @ tokens  # (batch, heads, width)
        values = torch.einsum("bhw,hdw->bhd", summed, value_weight)
        values = values + value_bias * weights.sum(-1, keepdim=True)
        return attention.out_proj(values.flatten(1))

    def attention_weights(self, query: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Softmax weights of the (normalised) query over the tokens, (batch, heads, count)."""
        attention = self.cross_attention
        query_weight, key_weight, _ = attention.in_proj_weight.chunk(3)
        query_bias, _, _ = attention.in_proj_bias.chunk(3)
        projected = F.linear(query, query_weight, query_bias).unflatten(-1, (self.heads, -1))
        key_weight = key_weight.unflatten(0, (self.heads, -1))  # (heads, head width, width)
        probe = torch.einsum("bhd,hdw->bhw", projected, key_weight) * projected.shape[-1] ** -0.5
        return (probe @ tokens.transpose(1, 2)).softmax(-1)


class CytoDinoDecoderHead(nn.Module):
    """A learned query attends to all tokens of the backbone through a few decoder blocks (arXiv 2512.17930).

    One module that holds its query, so that peft can keep it whole (`modules_to_save`). The list of blocks is not
    called `layers`: the renaming rules of DINOv3 checkpoints would rewrite that name.
    """

    def __init__(self, config: CytoDinoConfig):
        super().__init__()
        width = config.hidden_size
        feedforward_width = int(width * config.decoder_feedforward_ratio)
        self.query = nn.Parameter(torch.zeros(width))
        self.blocks = nn.ModuleList(
            CytoDinoDecoderBlock(width, config.decoder_heads, feedforward_width, config.head_dropout)
            for _ in range(config.decoder_layers)
        )
        self.norm = nn.LayerNorm(width)
        self.classifier = nn.Linear(width, config.num_labels)

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens (batch, count, width) -> embedding (batch, width)."""
        query = self.query.expand(len(tokens), -1)
        for block in self.blocks:
            query = block(query, tokens)
        return self.norm(query)

    def forward(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        embedding = self.embed(tokens)
        return self.classifier(embedding), embedding


class CytoDinoLinearHead(nn.Module):
    """A linear layer on the CLS token and the mean of the patch tokens."""

    def __init__(self, config: CytoDinoConfig):
        super().__init__()
        self.num_prefix_tokens = config.num_prefix_tokens
        self.dropout = nn.Dropout(config.head_dropout)
        self.classifier = nn.Linear(2 * config.hidden_size, config.num_labels)

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens (batch, count, width) -> embedding (batch, 2 x width)."""
        return torch.cat([tokens[:, 0], tokens[:, self.num_prefix_tokens :].mean(1)], dim=-1)

    def forward(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        embedding = self.embed(tokens)
        return self.classifier(self.dropout(embedding)), embedding


HEADS = {"decoder": CytoDinoDecoderHead, "linear": CytoDinoLinearHead}


class CytoDinoPreTrainedModel(PreTrainedModel):
    """Loading, saving and initialising."""

    config: CytoDinoConfig
    config_class = CytoDinoConfig
    base_model_prefix = "backbone"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _supports_sdpa = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        # A raw parameter that is not filled here stays uninitialised memory when a checkpoint lacks it.
        if isinstance(module, CytoDinoDecoderHead):
            initialization.trunc_normal_(module.query, std=0.02)
        if isinstance(module, (CytoDinoDecoderHead, CytoDinoLinearHead)):
            initialization.xavier_uniform_(module.classifier.weight)
            initialization.zeros_(module.classifier.bias)


class CytoDinoForImageClassification(CytoDinoPreTrainedModel):
    """Backbone and head.

    `from_pretrained` takes a folder or a Hub id in any of three forms, told apart by the configuration: whole
    weights; an adapter whose backbone lies on the Hub; an adapter whose backbone travels beside it.
    """

    def __init__(self, config: CytoDinoConfig):
        super().__init__(config)
        self.backbone = AutoModel.from_config(config.backbone_config)
        self.head = HEADS[config.head_type](config)
        # Set by the one who freezes the backbone: it then stays in eval mode, whatever `train()` is told.
        self.backbone_is_frozen = False
        self.post_init()

    def train(self, mode: bool = True) -> "CytoDinoForImageClassification":
        """Set training mode; a frozen backbone stays in eval mode but for the dropout of its LoRA layers.

        DINOv3 rescales its position coordinates at random in training mode, also when it is frozen; that happens
        only where the configuration asks for it (`position_jitter`).
        """
        super().train(mode)
        for name, module in self.backbone.named_modules():
            if name.endswith("rope_embeddings"):
                module.training = mode and self.config.position_jitter
            elif self.backbone_is_frozen and "lora_" not in name:
                # transformers checkpoints activations only in layers that are in training mode; the flag of the
                # layer itself switches nothing else, its dropouts are modules of their own.
                module.training = mode and getattr(module, "gradient_checkpointing", False)
        return self

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None, **kwargs: Any
    ) -> CytoDinoOutput:
        """Classify normalised pictures.

        Args:
            pixel_values: (batch, 3, height, width), normalised; both sides multiples of the patch.
            labels: (batch,) class labels; with them the output holds the plain cross-entropy.
        """
        kwargs.pop("return_dict", None)
        outputs = self.backbone(pixel_values, **kwargs)
        # A backbone in bfloat16 may stand before a head in float32.
        tokens = outputs.last_hidden_state.to(next(self.head.parameters()).dtype)
        logits, embedding = self.head(tokens)
        loss = F.cross_entropy(logits.float(), labels) if labels is not None else None
        return CytoDinoOutput(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            embedding=embedding,
        )

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: Any, *args: Any, config: Any = None, **kwargs: Any
    ) -> "CytoDinoForImageClassification":
        """Load whole weights, or a backbone and the adapter trained on it (merged, in eval mode).

        Raises:
            BindingError: Base, labels, preprocessing or weights are not those the model was made with.
            BaseUnavailableError: The backbone of an adapter cannot be had; says how to get it.
        """
        path = str(pretrained_model_name_or_path)
        hub = {key: kwargs[key] for key in _HUB_KEYS if key in kwargs}
        if config is None:
            config = cls.config_class.from_pretrained(path, **hub)
        if is_bound(config) or getattr(config, "adapter_subfolder", None) is not None:
            check_binding(path, config, hub)
        if getattr(config, "adapter_subfolder", None) is None:
            return super().from_pretrained(path, *args, config=config, **kwargs)
        for key in ("adapter_kwargs", "subfolder"):  # they belong to the adapter, not to the backbone
            kwargs.pop(key, None)
        if config.base_subfolder is not None:
            base, base_kwargs = path, {**kwargs, "subfolder": config.base_subfolder}
        else:
            base, base_kwargs = (
                config.base_model_name_or_path,
                {**kwargs, "revision": config.base_model_revision},
            )
        with access_explained(str(base), config.base_model_revision):
            model = _load_quietly(super().from_pretrained, base, *args, config=config, **base_kwargs)
        load = _load_lora if config.adapter_type == "lora" else _load_tensors
        return load(model, path, config.adapter_subfolder, hub).eval()

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> None:
        """Save whole weights, bound to nothing: they may have been trained further, and need no backbone."""
        bound = self.config
        self.config = copy.deepcopy(bound)
        for key in _ABOUT_PARTS:
            setattr(self.config, key, None)
        try:
            super().save_pretrained(save_directory, **kwargs)
        finally:
            self.config = bound


def _load_quietly(load: Callable[..., Any], base: str | None, *args: Any, **kwargs: Any) -> Any:
    # The loader lists every tensor of the head as missing; the adapter brings them right afterwards.
    level = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        return load(base, *args, **kwargs)
    finally:
        logging.set_verbosity(level)


def _load_lora(model: Any, path: str, subfolder: str, hub: dict[str, Any]) -> Any:
    try:
        from peft import PeftModel
    except ImportError as error:
        raise ImportError(f"{path} is a LoRA adapter: install peft (`pip install peft`)") from error
    # peft's own download doubles the subfolder offline, so the files are fetched here.
    folder = os.path.dirname(cached_file(path, "adapter_config.json", subfolder=subfolder, **hub))
    cached_file(path, "adapter_model.safetensors", subfolder=subfolder, **hub)
    return PeftModel.from_pretrained(model, folder).merge_and_unload()


def _load_tensors(model: Any, path: str, subfolder: str, hub: dict[str, Any]) -> Any:
    tensors = load_file(cached_file(path, "trained.safetensors", subfolder=subfolder, **hub))
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    if unexpected or any(name.startswith("head.") for name in missing):
        raise ValueError(
            f"{path}/{subfolder}/trained.safetensors does not fit this model: {unexpected or missing}"
        )
    return model


CytoDinoForImageClassification.register_for_auto_class("AutoModelForImageClassification")
