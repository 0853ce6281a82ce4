"""LoRA: the thrifty dropout against the plain formula, LoRA on the last blocks, merging for an evaluation."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cytodino_hf.errors import BackboneUnavailableError, RecipeError
from cytodino_hf.lora import DroppedLinear, keep_mask, merged_for_evaluation
from cytodino_hf.model.configuration_cytodino import CytoDinoConfig
from cytodino_hf.model.modeling_cytodino import CytoDinoForImageClassification
from cytodino_hf.model_builder import count_parameters, merge, prepare_for_training
from cytodino_hf.recipe import ModelSection, parse_recipe

BLOCKS = 4
DINOV3 = {
    "model_type": "dinov3_vit", "patch_size": 8, "image_size": 32, "hidden_size": 32, "num_hidden_layers": BLOCKS,
    "num_attention_heads": 2, "intermediate_size": 64,
}  # fmt: skip
DINOV2 = {
    "model_type": "dinov2", "patch_size": 8, "image_size": 32, "hidden_size": 32, "num_hidden_layers": BLOCKS,
    "num_attention_heads": 2, "mlp_ratio": 2,
}  # fmt: skip
RANK = 4
# Rank x (in + out) of q, k, v, o (32 to 32 each), up (32 to 64) and down (64 to 32).
LORA_OF_A_BLOCK = RANK * (4 * (32 + 32) + 2 * (32 + 64))
PIXELS = torch.sin(torch.arange(2 * 3 * 32 * 32).view(2, 3, 32, 32) * 0.37)


def build(backbone: dict[str, Any] = DINOV3, **section: Any) -> Any:
    config = CytoDinoConfig(
        backbone_config=dict(backbone), id2label=dict(enumerate("abc")), decoder_layers=1, decoder_heads=2
    )
    torch.manual_seed(0)
    values = {"backbone_config": backbone, "lora_rank": RANK} | section
    model = prepare_for_training(CytoDinoForImageClassification(config), ModelSection(**values)).train()
    with torch.no_grad():
        for number, (name, parameter) in enumerate(model.named_parameters()):
            if "lora_B" in name:
                at = torch.arange(parameter.numel()).view(parameter.shape)
                parameter.copy_(0.1 * torch.sin(at * 0.7 + number))
    return model


def autocast() -> torch.autocast:
    return torch.autocast("cpu", dtype=torch.bfloat16)


def plain(model: Any) -> CytoDinoForImageClassification:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.05)], ids=str
)
def test_dropped_linear_is_dropout_and_a_linear_layer(dtype: torch.dtype, tolerance: float) -> None:
    """Value and both gradients, against the written-out formula with the same mask."""
    weight = torch.sin(torch.arange(3 * 10.0) * 0.9).view(3, 10).to(dtype)
    x = torch.cos(torch.arange(2 * 5 * 10.0) * 0.3).view(2, 5, 10).to(dtype)
    layer = DroppedLinear(10, 3, 0.3, dtype=dtype)
    layer.weight.data = weight.clone()
    ours = x.clone().requires_grad_()
    torch.manual_seed(3)
    result = layer(ours)
    torch.manual_seed(3)
    mask, share = keep_mask(x, 0.3)
    theirs, their_weight = x.double().requires_grad_(), weight.double().requires_grad_()
    wanted = (theirs * mask / share) @ their_weight.T
    torch.testing.assert_close(result.double(), wanted, atol=tolerance, rtol=tolerance)
    assert 0 < mask.sum() < mask.numel()
    result.square().sum().backward()
    wanted.square().sum().backward()
    for got, expected in ((ours.grad, theirs.grad), (layer.weight.grad, their_weight.grad)):
        torch.testing.assert_close(got.double(), expected, atol=tolerance, rtol=20 * tolerance)


def test_dropped_linear_drops_nothing_in_evaluation_and_draws_nothing_when_made() -> None:
    linear = nn.Linear(6, 2, bias=False)
    before = torch.get_rng_state()
    layer = DroppedLinear.like(linear, 0.5).eval()
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(layer(x), linear(x))
    assert layer.weight is linear.weight
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("drop", [1e-6, 1 - 1e-6])
def test_hardly_any_dropout_and_nearly_all_of_it_stay_in_range(drop: float) -> None:
    torch.manual_seed(0)
    mask, share = keep_mask(torch.empty(1_000_000), drop)
    assert abs(share - (1 - drop)) < 2**-15
    assert 0 < share < 1
    assert abs(mask.double().mean() - share) < 1e-4


@pytest.mark.parametrize("drop", [0.05, 0.1, 0.5])
def test_the_mask_keeps_the_right_share_everywhere_and_independently(drop: float) -> None:
    """Four elements share one random word: each of the four must be right, and they must not go together."""
    torch.manual_seed(0)
    n = 400_000
    mask, share = keep_mask(torch.empty(n), drop)
    assert mask.dtype == torch.int8
    assert abs(share - (1 - drop)) <= 2**-17
    lanes = mask.view(-1, 4).double()
    bound = 5 * math.sqrt(share * (1 - share) / len(lanes))
    assert ((lanes.mean(0) - share).abs() < bound).all()
    correlation = torch.corrcoef(torch.cat([lanes.T, lanes.T.roll(1, dims=1)]))
    assert (correlation - torch.eye(8)).abs().max() < 5 / math.sqrt(len(lanes))
    assert keep_mask(torch.empty(3, 5, 7), drop)[0].shape == (3, 5, 7)  # no multiple of four
    elsewhere, probability = keep_mask(
        torch.empty(2, 3, device="meta"), drop
    )  # a device with its own generator
    assert (elsewhere.shape, elsewhere.dtype, probability) == ((2, 3), torch.int8, 1 - drop)


def saved_bytes(model: Any, pixels: torch.Tensor) -> int:
    weights = {p.untyped_storage()._cdata for p in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage()._cdata not in weights:
            kept.setdefault(tensor.untyped_storage()._cdata, tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(pixel_values=pixels)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def test_lora_dropout_keeps_one_byte_an_input_element() -> None:
    """Five inputs of 32 (q, k, v, o, up) and one of 64 (down) in each of 4 blocks, 17 tokens a picture."""
    sizes = [
        [saved_bytes(build(lora_dropout=drop), PIXELS[:1].expand(count, -1, -1, -1)) for count in (1, 3)]
        for drop in (0.0, 0.1)
    ]
    without, dropped = ((three - one) / 2 for one, three in sizes)
    assert dropped - without == BLOCKS * 17 * (5 * 32 + 64)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_norms_cast_once_change_nothing_under_autocast(method: str) -> None:
    model = build(method=method).eval()
    norm = next(m for n, m in model.named_modules() if n.endswith("layer.0.norm1"))
    dtypes: list[torch.dtype] = []
    handle = norm.register_forward_hook(lambda module, inputs, output: dtypes.append(output.dtype))
    with torch.no_grad():
        with autocast():
            shared = model(pixel_values=PIXELS).logits
        exact = model(pixel_values=PIXELS).logits
    handle.remove()
    assert dtypes == [torch.bfloat16, torch.float32]
    for module in model.modules():
        module._forward_hooks.clear()
    with torch.no_grad():
        with autocast():
            assert torch.equal(model(pixel_values=PIXELS).logits, shared)
        assert torch.equal(model(pixel_values=PIXELS).logits, exact)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_bf16_gives_the_loss_and_the_gradients_of_float32(method: str) -> None:
    """Loss within 1e-2; each large gradient points the same way."""
    model = build(method=method, lora_dropout=0.0).eval()
    losses, gradients = [], []
    for context in (nullcontext(), autocast()):
        model.zero_grad()
        with context:
            logits = model(pixel_values=PIXELS).logits
        loss = nn.functional.cross_entropy(logits.float(), torch.tensor([0, 2]))
        loss.backward()
        losses.append(loss.item())
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert losses[1] == pytest.approx(losses[0], abs=1e-2)
    assert torch.cosine_similarity(*gradients, dim=0) > 0.9


@pytest.mark.parametrize("backbone", [DINOV3, DINOV2], ids=["dinov3", "dinov2"])
@pytest.mark.parametrize("last", [1, 3, BLOCKS, None])
def test_lora_on_the_last_blocks_only(backbone: dict[str, Any], last: int | None) -> None:
    model = build(backbone, lora_last_blocks=last, train_norms=True, train_biases=True)
    count = last or BLOCKS
    assert count_parameters(model).lora == count * LORA_OF_A_BLOCK
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    first = BLOCKS - count
    for block in range(BLOCKS):
        inside = {n for n in trained if f"layer.{block}." in n}
        assert bool(inside) is (block >= first), block
        if inside:
            assert any("norm1" in n for n in inside)
            assert any(n.endswith("q_proj.base_layer.bias") for n in inside)
    assert any(n.endswith("norm.modules_to_save.default.weight") for n in trained)
    outputs: dict[int, bool] = {}
    for name, module in model.named_modules():
        if re.search(r"\.layer\.\d+$", name):
            number = int(name.rpartition(".")[2])

            def note(m: Any, i: Any, output: Any, number: int = number) -> None:
                outputs[number] = output.requires_grad

            module.register_forward_hook(note)
    if first:  # a bias of the patches would train with null
        model(pixel_values=PIXELS)
        assert outputs == {block: block >= first for block in range(BLOCKS)}


def test_nothing_is_kept_below_the_first_block_with_lora() -> None:
    whole, last = (saved_bytes(build(lora_last_blocks=k), PIXELS) for k in (None, 1))
    head = saved_bytes(build(method="head"), PIXELS)
    assert last - head == pytest.approx((whole - head) / BLOCKS, rel=0.1)


def test_a_frozen_backbone_is_in_eval_mode_and_leaves_no_graph() -> None:
    model = build(dict(DINOV3, drop_path_rate=0.5), method="head")
    tokens: list[torch.Tensor] = []
    model.backbone.register_forward_hook(lambda m, i, output: tokens.append(output.last_hidden_state))
    model(pixel_values=PIXELS)
    assert tokens[0].grad_fn is None
    assert not any(module.training for module in model.backbone.modules())


def test_more_blocks_than_there_are_is_a_mistake(tmp_path: Path, tiny_recipe: Callable[..., dict]) -> None:
    with pytest.raises(BackboneUnavailableError, match="has 4 blocks"):
        build(lora_last_blocks=5)
    with pytest.raises(RecipeError, match=r"lora_last_blocks = 3: the backbone has 2 blocks"):
        parse_recipe(tiny_recipe(tmp_path, tmp_path / "out", model={"lora_last_blocks": 3}), source="test")
    with pytest.raises(RecipeError, match=r"for model\.method 'lora' only"):
        parse_recipe(
            tiny_recipe(tmp_path, tmp_path / "out", model={"lora_last_blocks": 1, "method": "full"}),
            source="test",
        )


def fingerprint(model: nn.Module) -> dict[str, tuple[int, torch.dtype, torch.Tensor]]:
    return {n: (p.data_ptr(), p.dtype, p.detach().clone()) for n, p in model.named_parameters()}


def assert_untouched(model: nn.Module, before: dict[str, tuple[int, torch.dtype, torch.Tensor]]) -> None:
    for name, parameter in model.named_parameters():
        pointer, dtype, values = before[name]
        assert (parameter.data_ptr(), parameter.dtype) == (pointer, dtype), name
        assert torch.equal(parameter, values), name
    assert not any(getattr(module, "merged_adapters", []) for module in model.modules())


@pytest.mark.parametrize(
    "section", [{}, {"train_norms": True, "train_biases": True}, {"lora_last_blocks": 2}], ids=str
)
def test_merged_for_an_evaluation_and_back_to_the_last_bit(section: dict[str, Any]) -> None:
    model = build(**section).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "modules_to_save" in name:
                parameter.add_(0.01)  # the copy that trains differs from the original
        before = fingerprint(model)
        unmerged = model(pixel_values=PIXELS).logits
        with model.disable_adapter():
            without = model(pixel_values=PIXELS).logits
        with merged_for_evaluation(model):
            inside = model(pixel_values=PIXELS).logits
            assert not any(
                torch.equal(p, before[n][2])
                for n, p in model.named_parameters()
                if "layer.3" in n and n.endswith("q_proj.base_layer.weight")
            )
        assert_untouched(model, before)
        torch.testing.assert_close(inside, unmerged, atol=1e-5, rtol=1e-5)
        assert (inside - without).abs().max() > 1e-3
        assert torch.equal(model(pixel_values=PIXELS).logits, unmerged)
        assert torch.equal(merge(model)(PIXELS).logits, inside)  # as peft itself merges


@pytest.mark.parametrize("method", ["lora", "head", "full"])
def test_merged_in_bf16_is_what_autocast_computes(method: str) -> None:
    """To the last bit what autocast makes of the merged float32 weights, without casting them in every call."""
    model = build(method=method).eval()
    before = fingerprint(model)
    with torch.no_grad(), autocast():
        with merged_for_evaluation(model):
            wanted = model(pixel_values=PIXELS).logits
        with merged_for_evaluation(model, torch.bfloat16):
            got = model(pixel_values=PIXELS).logits
            cast = [p for n, p in plain(model).backbone.named_parameters() if p.dtype == torch.bfloat16]
    assert torch.equal(got, wanted)
    # What trains keeps its type: in data-parallel training a parameter must not change it.
    assert len(cast) >= 6 * BLOCKS if method != "full" else not cast
    assert_untouched(model, before)


def test_after_an_error_the_weights_are_back() -> None:
    model = build()
    before = fingerprint(model)
    with pytest.raises(KeyboardInterrupt), merged_for_evaluation(model, torch.bfloat16):
        raise KeyboardInterrupt
    assert_untouched(model, before)
    broken = [m for m in model.modules() if hasattr(m, "get_delta_weight")][-1]
    broken.get_delta_weight = lambda adapter: (_ for _ in ()).throw(MemoryError())
    with pytest.raises(MemoryError), merged_for_evaluation(model):
        raise AssertionError("merging failed half-way, so nothing is evaluated")
    assert_untouched(model, before)
