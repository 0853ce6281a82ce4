"""Shared fixtures. No test may reach the network: sockets are closed except on loopback."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

ROOT = Path(__file__).parent.parent
_LOOPBACK = ("127.", "::1", "localhost")


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse every connection that leaves this machine."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> Any:
        if self.family in (socket.AF_INET, socket.AF_INET6) and not str(address[0]).startswith(_LOOPBACK):
            raise PermissionError(f"a test tried to reach {address}; tests use loopback only")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture(autouse=True)
def _environment_as_it_was() -> Iterator[None]:
    """A command run inside a test sets the precision of its process; the next test must not inherit it."""
    kept = os.environ.get("ACCELERATE_MIXED_PRECISION")
    yield
    if kept is None:
        os.environ.pop("ACCELERATE_MIXED_PRECISION", None)
    else:
        os.environ["ACCELERATE_MIXED_PRECISION"] = kept


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What scans and caches keep goes to a folder of this test run, not to the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CYTODINO_CACHE", str(tmp_path_factory.mktemp("cytodino_cache")))
        yield


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder with real cell images; tests that need it are skipped without it."""
    folder = os.environ.get("CYTODINO_REAL_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("needs real cell images: set CYTODINO_REAL_DATA to their folder")
    return Path(folder)


@pytest.fixture(scope="session")
def make_images() -> Callable[..., Path]:
    """Write a small set of coloured squares, `<root>/<CLASS>/<CLASS>_NNNNN.png`: one colour a class, with noise."""

    def make(
        root: Path, classes: tuple[str, ...] = ("BLA", "LYT", "NGS"), per_class: int = 12, side: int = 32
    ) -> Path:
        rng = np.random.default_rng(0)
        for number, code in enumerate(classes):
            (root / code).mkdir(parents=True, exist_ok=True)
            colour = np.array([40 + 70 * (number % 3), 30 + 60 * (number % 4), 200 - 50 * (number % 3)])
            for i in range(per_class):
                pixels = np.clip(colour + rng.normal(0, 25, (side, side, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(root / code / f"{code}_{i + 1:05d}.png")
        return root

    return make


@pytest.fixture(scope="session")
def tiny_recipe() -> Callable[..., dict[str, Any]]:
    """Sections of the smallest recipe that trains in a second or two."""

    def recipe(root: Path, out: Path, **changes: Any) -> dict[str, Any]:
        document: dict[str, Any] = {
            "data": {"source": "image_folder", "root": str(root), "image_size_px": 32, "augmentation": "none"},
            "model": {
                "backbone_config": {
                    "model_type": "dinov3_vit", "patch_size": 8, "image_size": 32, "hidden_size": 32,
                    "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
                    "num_register_tokens": 2,
                },
                "method": "lora", "decoder_layers": 1, "decoder_heads": 2, "lora_rank": 4, "lora_alpha": 8.0,
            },
            "loss": {"name": "hierarchical_focal"},
            "training": {
                "output_dir": str(out), "max_steps": 4, "per_device_train_batch_size": 4, "logging_steps": 1,
                "eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2,
                "dataloader_num_workers": 0, "learning_rate": 1e-3, "disable_tqdm": True,
            },
            "evaluation": {"interval_draws": 200, "parts": False},
        }  # fmt: skip
        for name, keys in changes.items():
            document[name] = document.get(name, {}) | keys
        return document

    return recipe


@pytest.fixture(scope="session")
def cells(tmp_path_factory: pytest.TempPathFactory, make_images: Callable[..., Path]) -> Path:
    """A folder of class folders that many tests read; none writes to it."""
    return make_images(tmp_path_factory.mktemp("cells"), per_class=10)


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory, cells: Path, tiny_recipe: Callable[..., dict]) -> Path:
    """A finished RUN trained on `cells` that many tests read: LoRA, the backbone beside it."""
    from cytodino_hf.finetune import finetune
    from cytodino_hf.recipe import parse_recipe

    out = tmp_path_factory.mktemp("runs") / "demo"
    document = tiny_recipe(
        cells,
        out,
        training={"max_steps": 30, "eval_steps": 30, "save_steps": 30},
        evaluation={"parts": True},
    )
    return finetune(parse_recipe(document, source="test")).path
