"""The model: the cheap decoder against torch's own, the frozen backbone, heads, saving and loading."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cytodino_hf.model.configuration_cytodino import CytoDinoConfig
from cytodino_hf.model.modeling_cytodino import (
    CytoDinoDecoderBlock,
    CytoDinoDecoderHead,
    CytoDinoForImageClassification,
)

TINY = {
    "model_type": "dinov3_vit", "patch_size": 8, "image_size": 32, "hidden_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 2, "intermediate_size": 64, "num_register_tokens": 2,
}  # fmt: skip
DINOV2 = {
    "model_type": "dinov2", "patch_size": 14, "image_size": 28, "hidden_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 2, "mlp_ratio": 2,
}  # fmt: skip


def config(backbone: dict[str, Any] | None = None, **kwargs: Any) -> CytoDinoConfig:
    return CytoDinoConfig(
        backbone_config=dict(backbone or TINY),
        **{"id2label": dict(enumerate("abcde")), "decoder_heads": 2, "decoder_layers": 2} | kwargs,
    )


def fill(module: nn.Module) -> None:
    """Weights by formula, so that no seed decides a comparison."""
    with torch.no_grad():
        for number, parameter in enumerate(module.parameters()):
            at = torch.arange(parameter.numel(), dtype=torch.float64).view(parameter.shape)
            parameter.copy_(
                torch.sin(at * 0.7 + number) / math.sqrt(parameter.shape[-1]) + (parameter.ndim == 1) * 0.3
            )


def torch_decoder(head: CytoDinoDecoderHead, dropout: float) -> nn.TransformerDecoder:
    """torch's own decoder with the weights of our head."""
    width = head.query.shape[0]
    first = head.blocks[0]
    layer = nn.TransformerDecoderLayer(
        width, first.heads, first.up.out_features, dropout, "gelu", batch_first=True, norm_first=True
    )
    decoder = nn.TransformerDecoder(layer, len(head.blocks), norm=nn.LayerNorm(width))
    names = {
        "self_attention": "self_attn", "cross_attention": "multihead_attn", "up": "linear1", "down": "linear2",
        "norm_self": "norm1", "norm_cross": "norm2", "norm_feedforward": "norm3",
    }  # fmt: skip
    for ours, theirs in zip(head.blocks, decoder.layers, strict=True):
        for a, b in names.items():
            getattr(theirs, b).load_state_dict(getattr(ours, a).state_dict())
    decoder.norm.load_state_dict(head.norm.state_dict())
    return decoder


@pytest.mark.parametrize(("width", "heads", "blocks"), [(32, 2, 1), (32, 4, 4), (48, 1, 2)])
def test_decoder_equals_torch_in_value_and_gradient(width: int, heads: int, blocks: int) -> None:
    head = CytoDinoDecoderHead(
        config(dict(TINY, hidden_size=width), decoder_heads=heads, decoder_layers=blocks)
    ).eval()
    fill(head)
    reference = torch_decoder(head, 0.2).eval()
    tokens = torch.sin(torch.arange(3 * 21 * width).view(3, 21, width) * 0.37)
    ours_in, theirs_in = tokens.clone().requires_grad_(), tokens.clone().requires_grad_()
    ours = head.embed(ours_in)
    theirs = reference(head.query.expand(3, 1, -1), theirs_in)[:, 0]
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    ours.square().sum().backward()
    theirs.square().sum().backward()
    torch.testing.assert_close(ours_in.grad, theirs_in.grad, atol=1e-4, rtol=1e-3)


def test_decoder_equals_torch_in_distribution_under_dropout() -> None:
    """Mean and deviation of one block's output over many dropout draws, against torch's layer.

    4,000 draws; the tolerance is 5 standard errors of a mean.
    """
    torch.manual_seed(0)
    head = CytoDinoDecoderHead(config(decoder_layers=1, head_dropout=0.3))
    fill(head)
    reference = torch_decoder(head, 0.3).train()
    head.train()
    tokens = torch.sin(torch.arange(7 * 32).view(1, 7, 32) * 0.37).expand(4000, -1, -1)
    with torch.no_grad():
        ours = head.blocks[0](head.query.expand(4000, -1), tokens)
        theirs = reference.layers[0](head.query.expand(4000, 1, -1), tokens)[:, 0]
    error = 5 * theirs.std(0) * math.sqrt(2 / 4000) + 1e-6
    assert ((ours.mean(0) - theirs.mean(0)).abs() < error).all()
    assert ((ours.std(0) / theirs.std(0) - 1).abs() < 0.12).all()


def test_attention_weights_against_float64_numpy() -> None:
    block = CytoDinoDecoderBlock(8, 2, 16, 0.0)
    fill(block)
    query, tokens = np.cos(np.arange(8.0)), np.sin(np.arange(40.0).reshape(5, 8))
    w = block.cross_attention.in_proj_weight.detach().double().numpy()
    b = block.cross_attention.in_proj_bias.detach().double().numpy()
    q = (w[:8] @ query + b[:8]).reshape(2, 4)
    k = (tokens @ w[8:16].T + b[8:16]).reshape(5, 2, 4)
    scores = np.einsum("hd,nhd->hn", q, k) / 2
    wanted = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    got = block.attention_weights(torch.tensor(query)[None].float(), torch.tensor(tokens)[None].float())
    np.testing.assert_allclose(got[0].detach().numpy(), wanted, atol=1e-6)


def test_every_parameter_of_the_decoder_gets_a_gradient() -> None:
    model = CytoDinoForImageClassification(config()).train()
    model(torch.randn(2, 3, 32, 32)).logits.sum().backward()
    assert [n for n, p in model.head.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("backbone", [TINY, DINOV2], ids=["dinov3", "dinov2"])
@pytest.mark.parametrize("head", ["decoder", "linear"])
def test_forward_shapes(backbone: dict, head: str) -> None:
    model = CytoDinoForImageClassification(config(backbone, head_type=head)).eval()
    side = 2 * backbone["patch_size"]
    output = model(torch.randn(3, 3, side, side), labels=torch.tensor([0, 1, 2]))
    assert output.logits.shape == (3, 5)
    assert output.embedding.shape == (3, 32 if head == "decoder" else 64)
    assert torch.isfinite(output.loss)


def test_linear_head_reads_cls_and_the_mean_of_patches_only() -> None:
    model = CytoDinoForImageClassification(config(head_type="linear")).eval()
    tokens = torch.randn(2, 1 + 2 + 16, 32)
    wanted = torch.cat([tokens[:, 0], tokens[:, 3:].mean(1)], -1)
    torch.testing.assert_close(model.head.embed(tokens), wanted)


def test_position_jitter_only_where_asked() -> None:
    pixels = torch.randn(1, 3, 32, 32)
    for jitter in (False, True):
        torch.manual_seed(0)
        model = CytoDinoForImageClassification(config(head_dropout=0.0, position_jitter=jitter)).train()
        model.backbone_is_frozen = True
        model.train()
        same = torch.equal(model(pixels).logits, model(pixels).logits)
        assert same is not jitter
        model.eval()
        assert torch.equal(model(pixels).logits, model(pixels).logits)


def test_a_frozen_backbone_stays_in_eval_mode() -> None:
    model = CytoDinoForImageClassification(config(dict(TINY, drop_path_rate=0.5)))
    model.backbone_is_frozen = True
    model.train()
    assert model.head.training
    assert not any(module.training for module in model.backbone.modules())
    model.backbone_is_frozen = False
    model.train()
    assert any(module.training for module in model.backbone.modules())


def test_saved_and_loaded_whole(tmp_path: Any) -> None:
    model = CytoDinoForImageClassification(config()).eval()
    model.save_pretrained(tmp_path)
    again = CytoDinoForImageClassification.from_pretrained(tmp_path)
    pixels = torch.randn(2, 3, 32, 32)
    assert torch.equal(model(pixels).logits, again(pixels).logits)


def test_loading_a_bare_backbone_initialises_the_head(tmp_path: Any) -> None:
    model = CytoDinoForImageClassification(config())
    model.backbone.save_pretrained(tmp_path)
    loaded = CytoDinoForImageClassification.from_pretrained(tmp_path, config=config())
    for name, tensor in loaded.backbone.state_dict().items():
        assert torch.equal(tensor, model.backbone.state_dict()[name]), name
    assert 0.01 < loaded.head.query.std() < 0.04
    assert all(torch.isfinite(p).all() for p in loaded.parameters())


def test_activation_checkpointing_gives_the_same_gradients() -> None:
    torch.manual_seed(0)
    model = CytoDinoForImageClassification(config(head_dropout=0.0)).train()
    pixels = torch.randn(2, 3, 32, 32)
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.activation_checkpointing_enable()
        model.zero_grad()
        model(pixels).logits.square().sum().backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


@pytest.mark.parametrize("bad", [{"head_type": "mlp"}, {"decoder_layers": "2"}])
def test_a_wrong_configuration_is_refused(bad: dict) -> None:
    with pytest.raises(Exception, match=next(iter(bad))):
        config(**bad)
