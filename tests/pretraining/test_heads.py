"""The projection head against float64 NumPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from cytodino_hf.pretraining.heads import IBotHead, Prototypes


def fill(module: torch.nn.Module) -> None:
    """Weights by formula."""
    for number, parameter in enumerate(module.parameters(), start=1):
        steps = torch.arange(parameter.numel(), dtype=torch.float64)
        parameter.data = torch.cos(steps * 0.7 * number).reshape(parameter.shape).float()


def gelu(x: np.ndarray) -> np.ndarray:
    return x * np.vectorize(lambda v: (1 + math.erf(v / math.sqrt(2))) / 2)(x)


def expected_logits(head: IBotHead, tokens: np.ndarray) -> np.ndarray:
    weights = [parameter.detach().double().numpy() for parameter in head.parameters()]
    for weight, bias in (weights[0:2], weights[2:4]):
        tokens = gelu(tokens @ weight.T + bias)
    tokens = tokens @ weights[4].T + weights[5]
    prototypes = weights[6]
    lengths = np.sqrt((tokens**2).sum(axis=1))[:, None] * np.sqrt((prototypes**2).sum(axis=1))
    return tokens @ prototypes.T / lengths


def test_logits_are_the_cosines_of_the_projected_tokens_with_the_prototypes() -> None:
    head = IBotHead(6, 7, 4, 9)
    fill(head)
    tokens = np.sin(np.arange(30.0).reshape(5, 6))
    logits = head(torch.tensor(tokens, dtype=torch.float32))
    np.testing.assert_allclose(logits.detach().numpy(), expected_logits(head, tokens), atol=2e-6)


def test_a_prototype_does_not_win_by_growing() -> None:
    layer = Prototypes(4, 3)
    vectors = torch.nn.functional.normalize(torch.randn(5, 4), dim=-1)
    before = layer(vectors)
    layer.weight.data *= torch.tensor([[100.0], [1.0], [0.01]])
    torch.testing.assert_close(layer(vectors), before)


def test_fresh_weights() -> None:
    """Hidden weights spread .02 with biases of 0, as in DINO; the prototypes as a linear layer's."""
    torch.manual_seed(0)
    head = IBotHead(64, 512, 128, 256)
    for layer in (head.mlp[0], head.mlp[2], head.mlp[4]):
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.03)
        assert not layer.bias.any()
    assert head.last_layer.weight.abs().max().item() == pytest.approx(1 / math.sqrt(128), rel=0.01)


def test_no_rows_give_no_logits_and_zero_gradients() -> None:
    head = IBotHead(6, 7, 4, 9)
    logits = head(torch.empty(0, 6))
    logits.sum().backward()
    assert logits.shape == (0, 9)
    assert all(p.grad is not None and not p.grad.any() for p in head.parameters())


def test_bfloat16_is_near_float32() -> None:
    """Each of four matrix products rounds to 8 bits; the norms between are taken in float32."""
    head = IBotHead(6, 7, 4, 9)
    fill(head)
    tokens = torch.sin(torch.arange(30.0).reshape(5, 6))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = head(tokens)
    assert rough.dtype == torch.bfloat16
    assert (rough.float() - head(tokens)).abs().max().item() < 0.03
