"""The memory estimate: counting by hand, and against the peak of a process that trains for real."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from cytodino_hf.memory import CARD_BYTES, Memory, _Storages, estimate_memory
from cytodino_hf.model.configuration_cytodino import CytoDinoConfig
from cytodino_hf.model.modeling_cytodino import CytoDinoForImageClassification
from cytodino_hf.model_builder import prepare_for_training
from cytodino_hf.recipe import ModelSection

VIT_S = {
    "model_type": "dinov3_vit", "patch_size": 16, "image_size": 256, "hidden_size": 384, "num_hidden_layers": 12,
    "num_attention_heads": 6, "intermediate_size": 1536, "num_register_tokens": 4,
}  # fmt: skip
THIRD = dict(VIT_S, num_hidden_layers=4)
TINY = {
    "model_type": "dinov3_vit", "patch_size": 8, "image_size": 32, "hidden_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 2, "intermediate_size": 64,
}  # fmt: skip


def build(backbone: dict[str, Any], **section: Any) -> torch.nn.Module:
    config = CytoDinoConfig(backbone_config=dict(backbone), id2label=dict(enumerate("abcdefghijklmnopqrstu")))
    values = {"backbone_config": backbone, "lora_rank": 64} | section
    return prepare_for_training(CytoDinoForImageClassification(config), ModelSection(**values)).train()


def on_meta(backbone: dict[str, Any], **section: Any) -> torch.nn.Module:
    with torch.device("meta"):
        return build(backbone, **section)


def test_storages_are_counted_while_they_live() -> None:
    """float32 vectors of 100: 400 bytes each; views and work in place take nothing."""
    with _Storages() as storages:
        a = torch.ones(100)
        b = a + 1
        assert (storages.held, storages.peak) == (800, 800)
        c = b.view(10, 10)[2:]
        c += 1
        del b
        assert storages.held == 800  # the view holds it
        del c
        d = (a + 1) * 2  # the sum lives only until the product is there
        assert (storages.held, storages.peak) == (800, 1200)
        del a, d
    assert storages.held == 0


def test_weights_gradients_and_moments_are_those_of_the_parameters() -> None:
    real = build(TINY, lora_rank=4)
    estimate = estimate_memory(on_meta(TINY, lora_rank=4), image_size_px=32, batch_size=2)
    trainable = sum(p.numel() for p in real.parameters() if p.requires_grad)
    assert estimate.weights == 4 * sum(p.numel() for p in real.parameters())
    assert estimate.gradients_and_moments == 12 * trainable


def test_saved_activations_against_a_real_forward_pass() -> None:
    """A batch so large that activations are all there is: the estimate adds only the temporaries of the last steps."""
    real, count = build(TINY, lora_rank=4), 64
    held: dict[int, torch.Tensor] = {}
    weights = {p.untyped_storage()._cdata for p in real.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage()._cdata not in weights:
            held.setdefault(tensor.untyped_storage()._cdata, tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        real(pixel_values=torch.zeros(count, 3, 32, 32)).logits.sum()
    saved = sum(tensor.untyped_storage().nbytes() for tensor in held.values())
    estimate = estimate_memory(on_meta(TINY, lora_rank=4), image_size_px=32, batch_size=count)
    assert saved < estimate.activations < 1.25 * saved


def test_what_changes_the_estimate() -> None:
    def activations(section: dict[str, Any] | None = None, **changes: Any) -> int:
        values = {"image_size_px": 256, "batch_size": 4} | changes
        return estimate_memory(on_meta(THIRD, **(section or {})), **values).activations

    plain = activations()
    assert activations(autocast=True) < 0.8 * plain
    assert activations(checkpointing=True) < 0.45 * plain  # one block of four, and its input
    assert activations({"lora_last_blocks": 1}) < 0.45 * plain
    assert activations({"method": "head"}) < 0.1 * plain
    assert activations(batch_size=8) == pytest.approx(2 * plain, rel=0.1)


def test_a_held_gradient_and_the_merged_copy_are_counted() -> None:
    """With accumulation the gradients are there during the forward pass; an evaluation holds a copy of the weights."""
    section = {"lora_rank": 256}  # many trainable weights, little else
    alone, held = (
        estimate_memory(on_meta(TINY, **section), image_size_px=32, batch_size=1, accumulates=flag)
        for flag in (False, True)
    )
    assert held.activations > alone.activations
    copies = (
        4 * 2 * (4 * (32 * 32 + 32) - 32 + 2 * 32 * 64 + 64 + 32)
    )  # linear layers of two blocks; keys: no bias
    assert copies < alone.evaluation < copies + 4 * 40 * 32 * 64


def test_an_estimate_leaves_nothing_behind_in_this_process() -> None:
    """transformers keeps position coordinates for the whole process; a fake tensor there would end a real training."""
    side = 48  # a size nobody else here uses
    estimate_memory(on_meta(TINY, lora_rank=4), image_size_px=side, batch_size=1)
    logits = build(TINY, lora_rank=4)(pixel_values=torch.zeros(1, 3, side, side)).logits
    assert type(logits) is torch.Tensor
    assert torch.isfinite(logits).all()


def test_peak_is_the_larger_of_training_and_evaluation() -> None:
    """By hand: slack of .1 on what comes and goes, 1 GiB of context; no gradient during an evaluation."""
    gib = 2**30
    memory = Memory(
        weights=gib, gradients_and_moments=3 * gib, activations=10 * gib, evaluation=4 * gib, runtime=7
    )
    assert memory.on_gpu == pytest.approx((1 + 3 + 11 + 1) * gib)
    assert not memory.fits_card
    memory = Memory(
        weights=gib, gradients_and_moments=3 * gib, activations=1 * gib, evaluation=4 * gib, runtime=7
    )
    assert memory.on_gpu == pytest.approx((1 + 2 + 4.4 + 1) * gib)
    assert memory.fits_card
    assert memory.on_gpu <= CARD_BYTES


# Trains in a process of its own, with the very loop of a step, and tells its peak.
_TRAINS = """
import json, sys
import psutil, torch
from cytodino_hf.launch import use_large_pages
use_large_pages()
assert torch.empty(2**22).data_ptr() % 4096 == 0, "large tensors stand on whole pages"
sys.path.insert(0, {tests!r})
from test_memory import build, estimate_memory, on_meta
import cytodino_hf.trainer
runtime = psutil.Process().memory_info().rss
backbone, section, batch, autocast, checkpointing = json.loads(sys.argv[1])
estimate = estimate_memory(
    on_meta(backbone, **section), image_size_px=256, batch_size=batch, autocast=autocast,
    checkpointing=checkpointing, runtime=runtime,
)
torch.set_num_threads(1)
model = build(backbone, **section)
if checkpointing:
    model.activation_checkpointing_enable()
    model.train()
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, fused=True)
for step in range(3):
    labels = torch.arange(batch) % 21
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        logits = model(pixel_values=torch.randn(batch, 3, 256, 256)).logits
    torch.nn.functional.cross_entropy(logits.float(), labels).backward()
    optimizer.step()
    optimizer.zero_grad()
status = dict(line.split(":") for line in open("/proc/self/status") if ":" in line)
print(json.dumps([int(status["VmHWM"].split()[0]) * 1024, estimate.on_cpu]))
"""


def peak_and_estimate(*case: Any) -> tuple[int, int]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "THP_", "LD_PRELOAD"))}
    done = subprocess.run(
        [sys.executable, "-c", _TRAINS.format(tests=str(Path(__file__).parent)), json.dumps(case)],
        capture_output=True,
        text=True,
        check=True,
        env=environment | {"OMP_NUM_THREADS": "1"},
    )
    peak, estimate = json.loads(done.stdout.splitlines()[-1])
    return peak, estimate


needs_linux = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak from /proc")


@needs_linux
@pytest.mark.parametrize(
    "autocast", [pytest.param(True, id="bf16", marks=pytest.mark.slow), pytest.param(False, id="float32")]
)
def test_estimate_against_the_peak_of_a_real_training(autocast: bool) -> None:
    """Within 20 % of the resident set of the whole process, with the heap as the command line sets it."""
    peak, estimate = peak_and_estimate(THIRD, {}, 8, autocast, False)
    assert estimate == pytest.approx(peak, rel=0.2)


@needs_linux
@pytest.mark.slow
@pytest.mark.parametrize(
    ("section", "batch", "autocast", "checkpointing"),
    [
        ({}, 4, True, False),
        ({}, 8, True, False),
        ({}, 16, True, False),
        ({}, 4, False, False),
        ({}, 8, False, False),
        ({"lora_dropout": 0.0}, 8, True, False),
        ({"lora_last_blocks": 4}, 8, True, False),
        ({"method": "full"}, 8, True, False),
        ({"method": "full"}, 8, False, False),
        ({"method": "head"}, 16, True, False),
        ({"method": "head"}, 16, False, False),
        ({}, 16, True, True),
        ({}, 16, False, True),
        ({"method": "full"}, 16, True, True),
    ],
    ids=str,
)
def test_estimate_of_every_kind_of_training(
    section: dict[str, Any], batch: int, autocast: bool, checkpointing: bool
) -> None:
    peak, estimate = peak_and_estimate(VIT_S, section, batch, autocast, checkpointing)
    assert estimate == pytest.approx(peak, rel=0.2)


@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("rank", [32, 64])
def test_the_published_architecture_trains_under_15_gb_of_a_gpu(rank: int) -> None:
    """ViT-L at the micro-batch of the shipped recipes, with random weights; the estimate within 20 % as well."""
    recipe = json.loads((Path(__file__).parent.parent / f"recipes/cytodino{rank}.json").read_text())
    batch = recipe["training"]["per_device_train_batch_size"]
    backbone = dict(
        VIT_S, hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096
    )
    torch.cuda.set_per_process_memory_fraction(CARD_BYTES / torch.cuda.get_device_properties(0).total_memory)
    try:
        model = build(backbone, lora_rank=rank).cuda()
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], fused=True)
        for _ in range(2):
            with torch.autocast("cuda", dtype=torch.bfloat16):
                logits = model(pixel_values=torch.randn(batch, 3, 256, 256, device="cuda")).logits
            labels = torch.arange(batch, device="cuda") % 21
            torch.nn.functional.cross_entropy(logits.float(), labels).backward()
            optimizer.step()
            optimizer.zero_grad()
        estimate = estimate_memory(
            on_meta(backbone, lora_rank=rank), image_size_px=256, batch_size=batch, autocast=True
        )
        context = torch.cuda.mem_get_info()[1] - torch.cuda.mem_get_info()[0] - torch.cuda.memory_reserved()
        assert estimate.on_gpu == pytest.approx(torch.cuda.max_memory_reserved() + context, rel=0.2)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_nothing_without_content_stays_behind() -> None:
    """DINOv3 keeps the places of its patches by their number: an estimate must not fill that store with fakes."""
    from transformers import DINOv3ViTConfig, DINOv3ViTModel

    from cytodino_hf.memory import fake_tensors

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = DINOv3ViTConfig(patch_size=4, image_size=52, **sizes)
    pixels = {"pixel_values": torch.zeros(1, 3, 52, 52)}  # 13 x 13 patches, as in no other test
    model = DINOv3ViTModel(config).eval()
    with fake_tensors():
        model._apply(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype))
        model(pixel_values=torch.zeros(1, 3, 52, 52))
    features = DINOv3ViTModel(config).eval()(**pixels).last_hidden_state
    assert features.detach().numpy().shape == (1, 1 + config.num_register_tokens + 169, 16)
