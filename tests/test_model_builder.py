"""Building: parameter counts, what trains, LoRA targets, merging; one clear message without a backbone."""

from __future__ import annotations

import http.server
import json
import logging
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from cytodino_hf.backbones import explained
from cytodino_hf.errors import BackboneUnavailableError
from cytodino_hf.model.configuration_cytodino import CytoDinoConfig
from cytodino_hf.model.modeling_cytodino import CytoDinoForImageClassification
from cytodino_hf.model_builder import (
    build_config,
    build_model,
    build_on_meta,
    count_parameters,
    merge,
    prepare_for_training,
)
from cytodino_hf.recipe import ModelSection, load_recipe, parse_recipe
from cytodino_hf.taxonomy import MLL

ROOT = Path(__file__).parent.parent
VIT_L = {
    "model_type": "dinov3_vit", "patch_size": 16, "image_size": 224, "hidden_size": 1024, "num_hidden_layers": 24,
    "num_attention_heads": 16, "intermediate_size": 4096, "num_register_tokens": 4,
}  # fmt: skip
TINY = {
    "model_type": "dinov3_vit", "patch_size": 8, "image_size": 32, "hidden_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 2, "intermediate_size": 64,
}  # fmt: skip


def tiny(**section: Any) -> torch.nn.Module:
    config = CytoDinoConfig(
        backbone_config=dict(TINY), id2label=dict(enumerate("abc")), decoder_layers=1, decoder_heads=2
    )
    torch.manual_seed(0)
    values = {"backbone_config": TINY, "lora_rank": 4} | section
    return prepare_for_training(CytoDinoForImageClassification(config), ModelSection(**values)).train()


@pytest.fixture(scope="module")
def vit_l_config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that says it is a ViT-L; its weights are not needed to count them."""
    from transformers import DINOv3ViTConfig

    folder = tmp_path_factory.mktemp("vit_l")
    DINOv3ViTConfig(**{k: v for k, v in VIT_L.items() if k != "model_type"}).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("name", "lora", "total"),
    [("cytodino32", 14_155_776, 367_711_253), ("cytodino64", 28_311_552, 381_867_029)],
)
def test_parameter_counts_of_the_published_architecture(
    vit_l_config: Path, name: str, lora: int, total: int
) -> None:
    recipe = load_recipe(ROOT / "recipes" / f"{name}.json", ["--model.backbone", str(vit_l_config)])
    model = build_on_meta(recipe, build_config(recipe, MLL))
    counts = count_parameters(model)
    assert (counts.backbone, counts.lora, counts.head) == (303_129_600, lora, 50_425_877)
    assert counts.total == total
    assert counts.trainable == lora + counts.head


@pytest.mark.parametrize(
    ("section", "trains", "frozen"),
    [
        ({"method": "lora"}, ["lora_", "head."], ["norm1", "q_proj.base_layer"]),
        ({"method": "lora", "train_norms": True}, ["norm1.modules_to_save", "norm1"], ["q_proj.base_layer"]),
        ({"method": "lora", "train_biases": True}, ["q_proj.base_layer.bias"], ["q_proj.base_layer.weight"]),
        ({"method": "head"}, ["head."], ["backbone."]),
        ({"method": "head", "train_norms": True}, ["norm1.weight", "head."], ["q_proj"]),
        ({"method": "head", "train_biases": True}, ["q_proj.bias", "head."], ["q_proj.weight"]),
        ({"method": "full"}, ["q_proj.weight", "cls_token", "head."], ["mask_token"]),
    ],
    ids=str,
)
def test_what_trains(section: dict, trains: list[str], frozen: list[str]) -> None:
    model = tiny(**section)
    names = {n: p.requires_grad for n, p in model.named_parameters() if "original_module" not in n}
    for part in trains:
        assert any(on for n, on in names.items() if part in n), part
    for part in frozen:
        assert not any(
            on for n, on in names.items() if part in n and "head." not in n and "lora_" not in n
        ), part
    assert not any(p.requires_grad for n, p in model.named_parameters() if "original_module" in n)


def test_lora_stands_on_every_linear_layer_of_the_backbone_and_on_none_of_the_head() -> None:
    model = tiny()
    with_lora = {n.split(".lora_A")[0] for n, _ in model.named_parameters() if ".lora_A." in n}
    inside = {n for n, m in model.named_modules() if hasattr(m, "lora_A")}
    assert len(with_lora) == 2 * 6
    assert with_lora == inside
    assert not any(".head." in n for n in with_lora)


def test_lora_dropout_acts_while_the_frozen_backbone_is_in_eval_mode() -> None:
    model = tiny(lora_dropout=0.5)
    training = {n for n, m in model.named_modules() if m.training and ".backbone." in n}
    assert any("lora_dropout" in n for n in training)
    assert all("lora_" in n for n in training)


@pytest.mark.parametrize("backbone", ["dinov3_vit", "dinov2"])
def test_activation_checkpointing_works_on_a_frozen_backbone(backbone: str) -> None:
    """It must save memory, change no gradient, and switch on no dropout of the backbone."""
    values = TINY if backbone == "dinov3_vit" else {
        "model_type": "dinov2", "patch_size": 8, "image_size": 32, "hidden_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "mlp_ratio": 2, "drop_path_rate": 0.5,
    }  # fmt: skip
    config = CytoDinoConfig(
        backbone_config=dict(values),
        id2label=dict(enumerate("abc")),
        decoder_layers=1,
        decoder_heads=2,
        head_dropout=0,
    )
    torch.manual_seed(0)
    section = ModelSection(backbone_config=values, lora_rank=4, lora_dropout=0.0)
    model = prepare_for_training(CytoDinoForImageClassification(config), section).train()
    pixels, gradients, sizes = torch.randn(4, 3, 32, 32), [], []
    for checkpointing in (False, True):
        if checkpointing:
            model.activation_checkpointing_enable()
            model.train()
        held: dict[int, int] = {}
        model.zero_grad()

        def note(tensor: torch.Tensor, held: dict[int, int] = held) -> torch.Tensor:
            held[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
            output = model(pixel_values=pixels).logits.square().sum()
        output.backward()
        sizes.append(sum(held.values()))
        gradients.append([p.grad.clone() for p in model.parameters() if p.requires_grad])
    assert sizes[1] < 0.8 * sizes[0]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(other, one)


def test_a_lora_target_that_is_not_there_is_named() -> None:
    with pytest.raises(BackboneUnavailableError, match=r"no linear layer qkv.*q_proj"):
        tiny(lora_targets=["qkv"])


def test_fresh_lora_changes_nothing_and_merging_changes_nothing() -> None:
    model = tiny()
    plain = model.get_base_model()
    pixels = torch.randn(2, 3, 32, 32)
    model.eval()
    with torch.no_grad(), model.disable_adapter():
        without = model(pixel_values=pixels).logits
    with torch.no_grad():
        torch.testing.assert_close(model(pixel_values=pixels).logits, without, atol=0, rtol=0)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.02)
        unmerged = model(pixel_values=pixels).logits
        merged = merge(model)
        assert merged is plain
        torch.testing.assert_close(merged(pixels).logits, unmerged, atol=1e-5, rtol=1e-5)
    assert not (unmerged - without).abs().max() < 1e-4


def test_the_same_seed_builds_the_same_model_and_keeps_its_base(
    tmp_path: Path, tiny_recipe: Callable[..., dict]
) -> None:
    recipe = parse_recipe(tiny_recipe(tmp_path, tmp_path / "out"), source="test")
    config = build_config(recipe, MLL)
    first = build_model(recipe, config, tmp_path / "base")
    assert (tmp_path / "base" / "model.safetensors").is_file()
    again = build_model(recipe, build_config(recipe, MLL), tmp_path / "base")
    afresh = build_model(recipe, build_config(recipe, MLL), tmp_path / "other")
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, afresh.state_dict()[name]), name
        assert torch.equal(tensor, again.state_dict()[name]), name


class _Hub(http.server.BaseHTTPRequestHandler):
    """A Hub on loopback that refuses in the ways the real one does."""

    def do_GET(self) -> None:
        codes = {
            "gated": (403, "GatedRepo"),
            "missing": (401, "RepoNotFound"),
            "norev": (404, "RevisionNotFound"),
        }
        status, code = next((v for k, v in codes.items() if k in self.path), (404, "EntryNotFound"))
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET  # noqa: N815 - the name http.server calls

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_gated_missing_refused_or_offline_gives_one_clear_message(hub: str, tmp_path: Path) -> None:
    """In a process of its own: the Hub's address is read when its client is imported."""
    program = """
import json, sys
from cytodino_hf.errors import BackboneUnavailableError
from cytodino_hf.model_builder import build_config
from cytodino_hf.recipe import parse_recipe
from cytodino_hf.taxonomy import MLL
found = {}
for name, revision in (("me/gated", None), ("me/missing", None), ("me/norev", "a" * 40),
                       ("facebook/dinov3-gone", None)):
    for local in (False, True):
        sections = {"model": {"backbone": name, "revision": revision}, "training": {"output_dir": "out"},
                    "hub": {"local_files_only": local}}
        try:
            build_config(parse_recipe(sections, source="test"), MLL)
        except BackboneUnavailableError as error:
            found[f"{name} {local}"] = str(error)
print(json.dumps(found))
"""
    environment = os.environ | {
        "HF_ENDPOINT": hub,
        "HF_HOME": str(tmp_path),
        "HF_HUB_OFFLINE": "0",
        "HF_TOKEN": "hf_x",
    }
    out = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True
    )
    found = json.loads(out.stdout.strip().splitlines()[-1])
    assert "accept its licence" in found["me/gated False"]
    assert "HF_TOKEN" in found["me/gated False"]
    assert "dinov2-large" in found["me/gated False"]
    assert "does not exist" in found["me/missing False"]
    assert "no revision 'aaaa" in found["me/norev False"]
    for name in ("me/gated True", "me/missing True", "me/norev True"):
        assert "local cache" in found[name]
        assert "hf download" in found[name]
    assert "licence" not in found["me/gated True"]  # nobody knows that it is gated
    offline = found["facebook/dinov3-gone True"]
    assert "accept its licence on https://huggingface.co/facebook/dinov3-gone" in offline
    assert "hf auth login" in offline
    assert "hf download" in offline
    assert "forbids asking the Hub" in offline
    assert all("hf_x" not in message for message in found.values())


def test_a_hub_out_of_reach_is_told_in_one_line_and_one_message(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    client = logging.getLogger("huggingface_hub.utils._http")
    monkeypatch.setattr(client, "propagate", True)
    monkeypatch.setattr(logging.getLogger("huggingface_hub"), "propagate", True)

    def fail() -> None:
        for attempt in range(3):
            client.warning("'[Errno -2] Name or service not known' thrown while requesting HEAD https://x")
            client.warning("Retrying in %ds [Retry %d/5].", 2**attempt, attempt + 1)
        client.warning("Rate limited. Waiting 3s before retry [Retry 1/5].")
        raise OSError("We could not connect") from socket.gaierror(-2, "Name or service not known")

    with (
        pytest.raises(BackboneUnavailableError, match=r"me/far .* \(no connection\)") as raised,
        explained(ModelSection(backbone="me/far")),
    ):
        fail()
    assert "gaierror" not in str(raised.value)
    assert [record.getMessage().split()[0] for record in caplog.records] == ["the", "Rate"]
    client.warning("Retrying in 1s [Retry 1/5].")
    assert "Retrying in 1s" in caplog.text, "the client was left silent"
