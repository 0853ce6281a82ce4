"""The main job from nothing: images from Kaggle and backbone from the Hub, both on loopback, with the real clients."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import Hub, hub_server
from kaggle_server import DROP, TOKEN, Kaggle, kaggle_server, zipped

from cytodino_hf.data.sources.synthetic import draw_image_set
from cytodino_hf.publishing.classifier import CLASSIFIER

ROOT = Path(__file__).parent.parent
BACKBONE = "facebook/dinov3-vitl16-pretrain-lvd1689m"
IMAGES = "andrewmvd/bone-marrow-cell-classification"
CELLS = 420
LICENCE = b"Stand-in for the text of the licence.\n"


def stand_in(folder: Path) -> Path:
    """A backbone of the architecture and patch of the real one, but tiny and untrained."""
    import torch
    from transformers import DINOv3ViTConfig, DINOv3ViTModel

    torch.manual_seed(0)
    config = DINOv3ViTConfig(
        patch_size=16, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        num_register_tokens=4,
    )  # fmt: skip
    DINOv3ViTModel(config).save_pretrained(folder)
    (folder / "LICENSE.md").write_bytes(LICENCE)
    return folder


def publish(folder: Path, hub: Hub, run: Path) -> str:
    """What `push_to_hub.py` says."""
    command = [sys.executable, str(ROOT / "push_to_hub.py"), str(run), "--repo-id", "me/cytodino32"]
    environment = os.environ | hub.environment(folder / "home" / "hf") | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def drawn_archive(folder: Path) -> bytes:
    """Drawn cells in the layout of Kaggle's archive."""
    draw_image_set(folder, cells=CELLS, seed=0, imbalance_power=0.25, patients=8, progress=False)
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return zipped(
        {f"bone_marrow_cell_dataset/{p.relative_to(folder).as_posix()}": p.read_bytes() for p in files}
    )


def launch(
    folder: Path, hub: Hub, kaggle: Kaggle, *words: str, offline: bool = False
) -> subprocess.CompletedProcess[str]:
    """The literal command, in a folder that holds what a checkout holds; its RUN goes below it."""
    for name in ("run_finetune.py", "recipes"):
        if not (folder / name).exists():
            (folder / name).symlink_to(ROOT / name)
    command = [str(Path(sys.executable).with_name("accelerate")), "launch", "run_finetune.py"]
    environment = os.environ | kaggle.environment(folder / "home", None if offline else TOKEN)
    environment |= hub.environment(folder / "home" / "hf", offline=offline)
    environment |= {"PYTHONPATH": str(ROOT), "CYTODINO_CACHE": str(folder / "home" / "cytodino")}
    for name in ("OMP_NUM_THREADS", "ACCELERATE_MIXED_PRECISION"):
        environment.pop(name, None)
    done = subprocess.run(
        [*command, "recipes/cytodino32.json", *words],
        cwd=folder, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done


@pytest.mark.slow
def test_one_command_brings_images_and_backbone_and_the_next_publishes_the_run(tmp_path: Path) -> None:
    with hub_server() as hub, kaggle_server() as kaggle:
        revision = hub.commit(BACKBONE, stand_in(tmp_path / "backbone"), gated=True)
        kaggle.needs_token = True
        kaggle.add(IMAGES, 1, drawn_archive(tmp_path / "drawn"))
        kaggle.fail("/storage/", DROP)
        launch(tmp_path, hub, kaggle)

        run = tmp_path / "runs" / "cytodino32"
        report = json.loads((run / "report" / "report.json").read_text())
        assert report["is_drawn"]
        assert report["data"]["source"] == "mll"
        assert sum(sum(fold.values()) for fold in report["data"]["counts"].values()) == CELLS
        # 273 images of the training fold or a few less, drawn twice, 16 at once: about 34 steps in each of 8 epochs.
        assert 5 * 30 <= report["training"]["steps"] <= 8 * 36
        config = json.loads((run / "config.json").read_text())
        assert (config["base_model_name_or_path"], config["base_model_revision"]) == (BACKBONE, revision)
        assert (run / "adapter" / "adapter_model.safetensors").is_file()
        assert json.loads((run / "run.json").read_text())["state"] == "finished"

        pushed = publish(tmp_path, hub, run)
        assert "commit" in pushed
        files = hub.files("me/cytodino32")
        assert {name for name in files if CLASSIFIER.allows(name)} == set(files) - {".gitattributes"}
        assert "adapter/adapter_model.safetensors" in files
        assert files["LICENSE.md"] == LICENCE
        assert not any(name.startswith("base/") for name in files), "a base of the Hub stays there"
        card = files["README.md"].decode()
        assert f"{BACKBONE} at commit {revision}" in card
        assert "drawn by a program" in card

        hub.requests.clear()
        kaggle.requests.clear()
        plan = launch(tmp_path, hub, kaggle, "--dry-run", "--training.output_dir", "runs/again", offline=True)
        assert "nothing was trained" in plan.stdout
        assert (hub.requests, kaggle.requests) == ([], []), "offline nobody is asked"
