"""The model and its training step as CytoDINO published them, plainly: peft on every linear layer, torch's own decoder.

One image at a time, four of them for one optimizer step, float32, keys and values of all tokens projected in every
decoder layer, AdamW with one group. Source: arXiv 2512.17930 and its README, in code of our own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

LORA_RANK = 64
LORA_ALPHA = 128
LORA_DROPOUT = 0.1
#: Images of one optimizer step, given to the model one by one.
ACCUMULATION = 4
_LINEAR_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj")
_DECODER_LAYERS, _DECODER_HEADS, _FEEDFORWARD_RATIO, _HEAD_DROPOUT = 4, 4, 2, 0.2
_LEARNING_RATE, _WEIGHT_DECAY, _MAX_GRADIENT_NORM = 3e-4, 0.01, 1.0


class DecoderHead(nn.Module):
    """A learned query and torch's `TransformerDecoder` over all tokens."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        layer = nn.TransformerDecoderLayer(
            width,
            _DECODER_HEADS,
            dim_feedforward=_FEEDFORWARD_RATIO * width,
            dropout=_HEAD_DROPOUT,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
        self.decoder = nn.TransformerDecoder(layer, _DECODER_LAYERS)
        self.norm = nn.LayerNorm(width)
        self.classifier = nn.Linear(width, classes)
        nn.init.xavier_uniform_(self.classifier.weight)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens (batch, count, width) -> logits (batch, classes)."""
        query = self.query.expand(len(tokens), -1, -1)
        return self.classifier(self.norm(self.decoder(query, tokens).squeeze(1)))


class PublishedClassifier(nn.Module):
    """DINOv3 with LoRA on every linear layer, and the decoder head.

    Args:
        backbone_config: A `DINOv3ViTConfig`; the weights are random.
        classes: Number of classes.
        lora_dropout: Dropout before each LoRA update.
    """

    def __init__(self, backbone_config: Any, classes: int, lora_dropout: float = LORA_DROPOUT) -> None:
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModel

        super().__init__()
        lora = LoraConfig(
            r=LORA_RANK,
            lora_alpha=LORA_ALPHA,
            lora_dropout=lora_dropout,
            target_modules=list(_LINEAR_LAYERS),
            bias="none",
        )
        self.backbone = get_peft_model(AutoModel.from_config(backbone_config), lora)
        self.head = DecoderHead(backbone_config.hidden_size, classes)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Normalised pictures (batch, 3, side, side) -> logits (batch, classes)."""
        return self.head(self.backbone(pixel_values).last_hidden_state)


class PublishedStep:
    """One optimizer step of the published training: four images one by one, clip, AdamW.

    Args:
        model: Its device and precision are kept; it is put into training mode.
        loss: Module (logits, labels) -> scalar.
    """

    def __init__(self, model: PublishedClassifier, loss: nn.Module) -> None:
        self.model = model.train()
        self.loss = loss
        self.trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=_LEARNING_RATE, weight_decay=_WEIGHT_DECAY)

    def __call__(self, pixels: torch.Tensor, labels: torch.Tensor) -> None:
        """Learn from normalised pictures (images, 3, side, side), one at a time."""
        for row in range(len(pixels)):
            loss = self.loss(self.model(pixels[row : row + 1]), labels[row : row + 1])
            (loss / len(pixels)).backward()
        nn.utils.clip_grad_norm_(self.trained, _MAX_GRADIENT_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad()


@torch.no_grad()
def evaluate(model: PublishedClassifier, pixels: torch.Tensor) -> torch.Tensor:
    """Logits of normalised pictures, one at a time, LoRA beside the weights: the model in eval mode."""
    return torch.cat([model(pixels[row : row + 1]) for row in range(len(pixels))])
