"""Drawn cells must not give themselves away to global colour, edges or texture: a network has to look.

Baselines are those of scikit-image and scikit-learn with common settings, on the same centre crop as the network's.
"""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from skimage.feature import hog, local_binary_pattern
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.metrics import f1_score
from sklearn.neighbors import KNeighborsClassifier

from cytodino_hf.data.images import read_rgb
from cytodino_hf.data.sources.synthetic import Options, load
from cytodino_hf.data.splits import assign_folds
from cytodino_hf.taxonomy import MLL

RECIPE = Path(__file__).parents[2] / "recipes" / "demo.json"
FRACTIONS = {"train": 0.65, "validation": 0.10, "calibration": 0.05, "test": 0.20}
CROP_PX, SIDE_PX = 160, 96


def classical_features(pixels: np.ndarray) -> np.ndarray:
    """Histograms of RGB and HSV (32 bins a channel), HOG (9 directions, 16-pixel cells), LBP at three radii."""
    parts = [
        np.histogram(space[..., channel], 32, (0, 256))[0] / SIDE_PX**2
        for space in (pixels, cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV_FULL))
        for channel in range(3)
    ]
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    parts.append(hog(grey, orientations=9, pixels_per_cell=(16, 16), cells_per_block=(2, 2)))
    for points, radius in ((8, 1), (16, 2), (24, 3)):
        patterns = local_binary_pattern(grey, points, radius, "uniform")
        parts.append(np.histogram(patterns, points + 2, (0, points + 2))[0] / SIDE_PX**2)
    return np.concatenate(parts)


def baselines(folder: Path, options: Options, trees: int) -> dict[str, float]:
    """Test macro F1 of extra trees on classical features and of the nearest 24-pixel thumbnail."""
    split = assign_folds(load(folder, MLL, options), split="stratified", fractions=FRACTIONS, seed=0)
    assert "by patient" in split.promise
    images, edge = split.images, (250 - CROP_PX) // 2
    crops = [
        cv2.resize(
            read_rgb(folder / path)[edge:-edge, edge:-edge], (SIDE_PX, SIDE_PX), interpolation=cv2.INTER_AREA
        )
        for path in images.dataset["path"]
    ]
    labels, folds = np.array(images.labels), np.array(images.folds)
    train, test = folds == "train", folds == "test"
    thumbnails = np.stack([cv2.resize(c, (24, 24), interpolation=cv2.INTER_AREA).ravel() for c in crops])
    models = {
        "extra trees": (
            ExtraTreesClassifier(trees, random_state=0),
            np.stack([*map(classical_features, crops)]),
        ),
        "nearest thumbnail": (KNeighborsClassifier(1), thumbnails.astype(np.float32)),
    }
    return {
        name: float(
            f1_score(labels[test], model.fit(x[train], labels[train]).predict(x[test]), average="macro")
        )
        for name, (model, x) in models.items()
    }


def test_a_small_set_is_hard_for_classical_features(tmp_path: Path) -> None:
    found = baselines(tmp_path / "cells", Options(cells=600, patients=20), trees=100)
    assert 0.15 < found["extra trees"] <= 0.70, found  # above chance (0.05): the classes do differ
    assert found["nearest thumbnail"] <= 0.60, found


@pytest.mark.slow
def test_the_demo_set_is_hard_for_classical_features(tmp_path: Path) -> None:
    options = Options(**json.loads(RECIPE.read_text(encoding="utf-8"))["data"].get("synthetic", {}))
    found = baselines(tmp_path / "cells", options, trees=500)
    assert found["extra trees"] <= 0.70, found
    assert found["nearest thumbnail"] <= 0.60, found
