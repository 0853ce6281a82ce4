"""The binding: every way of loading refuses what the model was not made with, and names both values."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_server import WRONG_BYTES, hub_server

from cytodino_hf.binding import recipe_fingerprint
from cytodino_hf.model import binding_cytodino as module
from cytodino_hf.model.binding_cytodino import BindingError, kept_sha256
from cytodino_hf.model.modeling_cytodino import CytoDinoForImageClassification
from cytodino_hf.model_builder import build_config, build_model, build_processor, save_model
from cytodino_hf.recipe import Recipe, parse_recipe
from cytodino_hf.taxonomy import MLL

TESTS = Path(__file__).parent
CLASSES = ("BLA", "LYT", "NGS")
BASE = "lab/base"
SWAPPED = "['LYT', 'BLA', 'NGS']"

Recipes = Callable[..., dict[str, Any]]


def save(document: dict[str, Any], folder: Path) -> Recipe:
    """A model as a run writes it, untrained."""
    recipe = parse_recipe(document, source="test")
    config = build_config(recipe, MLL.subset(CLASSES), data_fingerprint="d" * 64)
    model = build_model(recipe, config, folder / "base")
    save_model(model, build_processor(recipe.data), folder, recipe.model.method)
    return recipe


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory, tiny_recipe: Recipes) -> Path:
    """A LoRA adapter with its base beside it."""
    folder = tmp_path_factory.mktemp("adapter") / "run"
    save(tiny_recipe(folder.parent, folder), folder)
    return folder


def edited(source: Path, target: Path, file: str, change: Callable[[Any], None]) -> Path:
    """A copy of a model with one JSON file changed."""
    shutil.copytree(source, target)
    document = json.loads((target / file).read_text())
    change(document)
    (target / file).write_text(json.dumps(document))
    return target


def flipped(source: Path, target: Path, file: str) -> Path:
    """A copy of a model with one byte of a file changed: as many bytes, other ones."""
    shutil.copytree(source, target)
    content = bytearray((target / file).read_bytes())
    content[-1] ^= 0x01
    (target / file).write_bytes(bytes(content))
    return target


def swap_labels(config: dict) -> None:
    config["id2label"] |= {"0": "LYT", "1": "BLA"}


def swap_taxonomy(config: dict) -> None:
    rows = config["taxonomy"]["classes"]
    rows[0], rows[1] = rows[1], rows[0]


def uncritical(config: dict) -> None:
    config["taxonomy"]["classes"][0]["is_critical"] = False


# Name -> how a copy is spoilt, and what the refusal must say: both values.
SPOILT: dict[str, tuple[Callable[[Path, Path], Path], tuple[str, ...]]] = {
    "labels": (lambda s, t: edited(s, t, "config.json", swap_labels), (SWAPPED, str(list(CLASSES)))),
    "taxonomy": (lambda s, t: edited(s, t, "config.json", swap_taxonomy), (SWAPPED, str(list(CLASSES)))),
    "critical": (lambda s, t: edited(s, t, "config.json", uncritical), ("taxonomy", "sha256")),
    "mean": (
        lambda s, t: edited(s, t, "preprocessor_config.json", lambda d: d.update(image_mean=[0.5, 0.5, 0.5])),
        ("image_mean", "[0.5, 0.5, 0.5]", "[0.485, 0.456, 0.406]"),
    ),
    "crop": (
        lambda s, t: edited(s, t, "preprocessor_config.json", lambda d: d.pop("do_center_crop")),
        ("do_center_crop", "not there", "False"),
    ),
    "alpha": (
        lambda s, t: edited(s, t, "adapter/adapter_config.json", lambda d: d.update(lora_alpha=999)),
        ("adapter/adapter_config.json has sha256",),
    ),
    "weights": (
        lambda s, t: flipped(s, t, "adapter/adapter_model.safetensors"),
        ("adapter/adapter_model.safetensors has sha256",),
    ),
    "base": (lambda s, t: flipped(s, t, "base/model.safetensors"), ("base/model.safetensors has sha256",)),
    "unbound": (lambda s, t: edited(s, t, "config.json", lambda d: d.pop("binding")), ("`binding` is missing",)),
}  # fmt: skip


@pytest.mark.parametrize("name", SPOILT)
def test_what_was_changed_is_refused_and_both_values_are_named(
    adapter: Path, tmp_path: Path, name: str
) -> None:
    spoil, words = SPOILT[name]
    spoilt = spoil(adapter, tmp_path / "spoilt")
    with pytest.raises(BindingError) as refused:
        CytoDinoForImageClassification.from_pretrained(spoilt)
    for word in words:
        assert word in str(refused.value)
    if name in ("weights", "base", "alpha"):
        file = {"alpha": "adapter/adapter_config.json", "base": "base/model.safetensors"}.get(
            name, "adapter/adapter_model.safetensors"
        )
        for folder in (spoilt, adapter):
            assert hashlib.sha256((folder / file).read_bytes()).hexdigest() in str(refused.value)


def test_the_binding_says_what_the_model_was_made_of(
    adapter: Path, tmp_path: Path, tiny_recipe: Recipes
) -> None:
    bound = json.loads((adapter / "config.json").read_text())["binding"]
    assert bound["labels"] == list(CLASSES)
    assert bound["data"] == "d" * 64
    assert bound["preprocessing"] == json.loads((adapter / "preprocessor_config.json").read_text())
    assert set(bound["weights"]) == {
        "adapter/adapter_config.json", "adapter/adapter_model.safetensors", "base/model.safetensors",
    }  # fmt: skip
    for name, sha256 in bound["weights"].items():
        assert hashlib.sha256((adapter / name).read_bytes()).hexdigest() == sha256
    elsewhere = parse_recipe(tiny_recipe(tmp_path, tmp_path / "other"), source="test").to_dict()
    assert bound["recipe"] == recipe_fingerprint(elsewhere), "places do not count"
    elsewhere["training"]["learning_rate"] = 0.5
    assert bound["recipe"] != recipe_fingerprint(elsewhere)


def test_whole_weights_are_bound_too(tmp_path: Path, tiny_recipe: Recipes) -> None:
    folder = tmp_path / "full"
    save(tiny_recipe(tmp_path, folder, model={"method": "full"}), folder)
    CytoDinoForImageClassification.from_pretrained(folder)
    with pytest.raises(BindingError, match=r"model\.safetensors has sha256"):
        CytoDinoForImageClassification.from_pretrained(
            flipped(folder, tmp_path / "flipped", "model.safetensors")
        )
    with pytest.raises(BindingError, match="labels of id2label"):
        CytoDinoForImageClassification.from_pretrained(
            edited(folder, tmp_path / "swapped", "config.json", swap_labels)
        )


def test_what_is_saved_by_hand_is_whole_and_bound_to_nothing(adapter: Path, tmp_path: Path) -> None:
    model = CytoDinoForImageClassification.from_pretrained(adapter)
    with torch.no_grad():
        model.head.classifier.bias += 1.0
    model.save_pretrained(tmp_path / "further")
    again = CytoDinoForImageClassification.from_pretrained(tmp_path / "further")
    pixels = torch.linspace(-1, 1, 2 * 3 * 32 * 32).view(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(
            again.eval()(pixels).logits, model.eval()(pixels).logits, atol=1e-6, rtol=0
        )
    assert again.config.binding is None
    assert model.config.binding is not None


def test_a_large_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    reads = []
    read = module._sha256
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(module, "_KEPT_FROM_BYTES", 4)
    monkeypatch.setattr(module, "_sha256", lambda path: reads.append(path) or read(path))
    file = tmp_path / "large.safetensors"
    file.write_bytes(b"first")
    (tmp_path / "link").symlink_to(file)  # as the cache of the Hub has it
    wanted = hashlib.sha256(b"first").hexdigest()
    assert [kept_sha256(str(p)) for p in (file, tmp_path / "link", file)] == [wanted] * 3
    assert len(reads) == 1
    file.write_bytes(b"other")
    os.utime(file, ns=(1, 1))
    assert kept_sha256(str(file)) == hashlib.sha256(b"other").hexdigest()
    assert len(reads) == 2
    (tmp_path / "home" / "cytodino" / "sha256.json").write_text("{half")
    assert kept_sha256(str(file)) == hashlib.sha256(b"other").hexdigest()


def test_a_home_that_cannot_be_written_to_costs_only_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    (tmp_path / "home").write_text("a file, not a folder")
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(module, "_KEPT_FROM_BYTES", 1)
    (tmp_path / "file").write_bytes(b"x")
    assert kept_sha256(str(tmp_path / "file")) == hashlib.sha256(b"x").hexdigest()


def in_a_cache(folder: Path, repo_id: str, commit: str, files: Path) -> Path:
    """A cache of the Hub's files that holds one commit, as a download would leave it."""
    repository = folder / f"models--{repo_id.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    shutil.copytree(files, repository / "snapshots" / commit)
    return folder


def test_pipeline_without_our_package_refuses_the_same(
    adapter: Path, tmp_path: Path, tiny_recipe: Recipes
) -> None:
    """Adapters on the Hub: the base is right, gated, gone, of wrong bytes, at a moving revision; and local edits."""
    document = tiny_recipe(tmp_path, tmp_path)
    del document["model"]["backbone_config"]
    folder = tmp_path / "on_hub"
    with hub_server() as hub:
        commit = hub.commit(BASE, {p.name: p.read_bytes() for p in (adapter / "base").iterdir()})
        document["model"]["backbone"] = BASE
        cache = in_a_cache(tmp_path / "maker", BASE, commit, adapter / "base")
        save(document | {"hub": {"cache_dir": str(cache), "local_files_only": True}}, folder)
        config = json.loads((folder / "config.json").read_text())
        weights = {"model.safetensors": hashlib.sha256(hub.files(BASE)["model.safetensors"]).hexdigest()}
        assert config["binding"]["base"] == {"id": BASE, "revision": commit, "weights": weights}

        def rebased(name: str, **changes: Any) -> str:
            def change(document: dict) -> None:
                document |= {f"base_model_{k}": v for k, v in changes.items()}
                bound = {"name_or_path": "id", "revision": "revision"}
                document["binding"]["base"] |= {bound[k]: v for k, v in changes.items()}

            hub.commit(f"me/{name}", edited(folder, tmp_path / name, "config.json", change))
            return f"me/{name}"

        hub.commit("me/good", folder)
        files = dict(hub.files(BASE))
        files["model.safetensors"] = files["model.safetensors"][:-1] + b"\x7f"
        wanted = {
            "me/good": "loaded",
            rebased("moving", revision="main"): "BindingError",
            rebased("gone", name_or_path="lab/gone"): "BaseUnavailableError",
            rebased("gated", name_or_path="lab/gated", revision=hub.commit("lab/gated", files, gated=True)):
                "BaseUnavailableError",
            rebased("lost", revision="e" * 40): "BaseUnavailableError",
            rebased("corrupt", name_or_path="lab/corrupt", revision=hub.commit("lab/corrupt", hub.files(BASE))):
                "BindingError",
            rebased("other", name_or_path="lab/other", revision=hub.commit("lab/other", files)): "BindingError",
        }  # fmt: skip
        hub.members.clear()
        hub.fail(r"lab/corrupt/resolve/.*/model\.safetensors", WRONG_BYTES)
        hub.commit("me/swapped", edited(folder, tmp_path / "swapped", "config.json", lambda d: d.update(
            base_model_name_or_path="lab/other")))  # fmt: skip
        wanted["me/swapped"] = "BindingError"
        for name in ("labels", "mean", "weights"):
            hub.commit(f"me/{name}", SPOILT[name][0](folder, tmp_path / name))
            wanted[f"me/{name}"] = "BindingError"
        said = load(tmp_path, hub.environment(tmp_path / "user"), list(wanted))
        assert {name: text.partition(":")[0] for name, text in said.items()} == wanted, said
        assert not any("pytorch_model.bin" in text for text in said.values())
        for name, words in {
            "me/moving": ("'main'", "40 hexadecimal digits"),
            "me/gone": ("lab/gone", "does not exist"),
            "me/gated": ("https://huggingface.co/lab/gated", "HF_TOKEN", "gated"),
            "me/lost": ("no commit " + "e" * 40,),
            "me/other": (
                hashlib.sha256(files["model.safetensors"]).hexdigest(),
                weights["model.safetensors"],
            ),
            "me/corrupt": ("model.safetensors of lab/corrupt", "hf cache rm"),
            "me/swapped": ("'lab/other'", f"'{BASE}'"),
            "me/labels": SPOILT["labels"][1],
            "me/mean": SPOILT["mean"][1],
        }.items():
            for word in words:
                assert word in said[name], said[name]

        count = len(hub.requests)
        offline = load(
            tmp_path, hub.environment(tmp_path / "user", offline=True), ["me/good", str(tmp_path / "gone")]
        )
        assert offline["me/good"] == "loaded"
        assert "hf download lab/gone --revision" in offline[str(tmp_path / "gone")]
        assert hub.requests[count:] == []


def load(tmp_path: Path, variables: dict[str, str], models: list[str]) -> dict[str, str]:
    out = tmp_path / "said.json"
    command = [sys.executable, str(TESTS / "load_without_package.py"), str(out), *models]
    done = subprocess.run(command, env=os.environ | variables, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text())
