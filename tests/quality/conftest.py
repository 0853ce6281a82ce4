"""Small images, a small backbone, and a study of two arms, for the tests of `benchmarks/quality`."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT))  # benchmarks/ lies in a checkout and is not installed

from study_runs import InThisProcess, make_backbone  # noqa: E402

from benchmarks.quality import study  # noqa: E402
from benchmarks.quality.settings import QualitySettings  # noqa: E402

CLASSES = ("BLA", "LYT", "NGS")
FOLD_OF = {1: "validation", 2: "validation", 3: "test", 4: "test", 5: "test", 6: "calibration"}


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory, make_images: Callable[..., Path]) -> Path:
    """Twelve pictures a class with a split.csv."""
    root = make_images(tmp_path_factory.mktemp("quality"), CLASSES)
    with open(root / "split.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "label", "fold"))
        for path in sorted(root.glob("*/*.png")):
            number = int(path.stem.rpartition("_")[2])
            writer.writerow(
                (path.relative_to(root).as_posix(), path.parent.name, FOLD_OF.get(number, "train"))
            )
    return root


@pytest.fixture(scope="session")
def more(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Other pictures of the same classes."""
    from PIL import Image

    root = tmp_path_factory.mktemp("more")
    rng = np.random.default_rng(5)
    for code in CLASSES:
        (root / code).mkdir()
        for i in range(4):
            pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(
                root / code / f"{code}_{i + 1:05d}.png"
            )  # the same names as in the set
    return root


@pytest.fixture(scope="session")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_backbone(tmp_path_factory.mktemp("backbone"), 0)


@pytest.fixture(scope="session")
def settings(tmp_path_factory: pytest.TempPathFactory, images: Path, backbone: Path) -> QualitySettings:
    return QualitySettings(
        images=images,
        images_name="coloured squares",
        backbone=str(backbone),
        seeds=(0, 3),
        output=tmp_path_factory.mktemp("study"),
        only=("ours", "published"),
        image_size_px=16,
        max_steps=1,
        draws=200,
    )


@pytest.fixture(scope="session")
def done(settings: QualitySettings) -> study.Study:
    """Two arms with two seeds, trained seed by seed."""
    InThisProcess.started.clear()
    found = study.run(settings, start=InThisProcess)
    assert InThisProcess.started == ["ours/seed0", "published/seed0", "ours/seed3", "published/seed3"]
    return found
