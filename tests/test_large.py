"""The published architecture for real: ViT-L with random weights, one optimizer step on the CPU. Slow, about 10 GiB."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from cytodino_hf.cli import main

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def vit_l(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A local folder with a ViT-L of random weights."""
    from transformers import AutoModel, DINOv3ViTConfig

    config = DINOv3ViTConfig(
        hidden_size=1024,
        num_hidden_layers=24,
        num_attention_heads=16,
        intermediate_size=4096,
        num_register_tokens=4,
    )
    folder = tmp_path_factory.mktemp("vit_l")
    AutoModel.from_config(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("name", "total"), [("cytodino32", "367,711,253"), ("cytodino64", "381,867,029")])
def test_the_recipe_plans_and_takes_one_step(
    name: str,
    total: str,
    vit_l: Path,
    tmp_path: Path,
    make_images: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    from cytodino_hf.taxonomy import MLL

    root = make_images(tmp_path / "images", classes=MLL.codes, per_class=4)
    arguments = [
        "finetune", str(ROOT / "recipes" / f"{name}.json"), "--data.root", str(root), "--model.backbone", str(vit_l),
        "--training.output_dir", str(tmp_path / "run"), "--training.max_steps", "1",
        "--training.per_device_train_batch_size", "1", "--training.per_device_eval_batch_size", "4",
        "--training.dataloader_num_workers", "0",
    ]  # fmt: skip
    with pytest.raises(SystemExit) as stop:
        main([*arguments, "--dry-run"])
    assert not stop.value.code
    shown = capsys.readouterr().out
    for number in ("303,129,600", total, "50,425,877"):
        assert number in shown
    if name == "cytodino64":
        return  # one step of the larger one would show nothing new
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert not stop.value.code
    report = json.loads((tmp_path / "run" / "report" / "report.json").read_text())
    assert report["training"]["steps"] == 1
    # Adapter and head alone: 64.6 million float32 numbers.
    size = (tmp_path / "run" / "adapter" / "adapter_model.safetensors").stat().st_size
    assert size == pytest.approx(4 * (14_155_776 + 50_425_877), rel=0.001)
