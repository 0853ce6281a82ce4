"""Backbones over the time they were pretrained."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from study_runs import InThisProcess

from benchmarks.quality import pretraining_time
from benchmarks.quality.images import load_images
from benchmarks.quality.settings import (
    PretrainingTimeSettings,
)
from cytodino_hf.errors import CytoDinoError
from cytodino_hf.evaluation.predictions import Predictions
from cytodino_hf.model.image_processing_cytodino import paint_over_center


def test_quality_over_the_time_of_pretraining(images: Path, backbone: Path, tmp_path: Path) -> None:
    """Two backbones of known times; logistic regression again by scikit-learn on features of our own."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import balanced_accuracy_score
    from transformers import AutoModel

    folders = []
    for name, seconds in (("long", 600.0), ("short", 60.0)):
        folder = tmp_path / name / "backbone"
        shutil.copytree(backbone, folder)
        log = [{"step": 1, "loss": 1.0}, {"step": 2, "seconds": seconds / 2, "knn20_balanced_accuracy": 0.4}]
        record = {
            "recipe": {"views": {"center_crop_px": 24 if name == "long" else None}},
            "training": {"seconds": seconds, "images_seen": 320, "log_history": log},
            "environment": {"gpus": [], "processor": "a processor", "cores": 2},
        }
        (folder / "pretraining.json").write_text(json.dumps(record))
        folders.append(folder)
    settings = PretrainingTimeSettings(
        images=images, backbones=tuple(folders), output=tmp_path / "study", seeds=(0, 1), image_size_px=32,
        fine_tune=False, draws=200,
    )  # fmt: skip
    found = pretraining_time.run(settings, start=InThisProcess)
    assert [(one.name, one.seconds) for one in found.backbones] == [
        ("untrained", 0.0), ("short", 60.0), ("long", 600.0),
    ]  # fmt: skip
    assert found.backbones[1].monitored == [(30.0, 0.4)]
    assert [one.center_crop_px for one in found.backbones] == [24, None, 24]
    assert found.backbones[0].scores["test"]["logistic"].seeds == 2
    assert found.backbones[0].scores["test"]["logistic"].spread is not None

    model = AutoModel.from_pretrained(backbone).eval()
    split = load_images(images, images / "split.csv", (), tmp_path).plain.images

    def features(fold: str, crop: int) -> np.ndarray:
        from PIL import Image

        part = split.fold(fold)
        pictures = [paint_over_center(np.asarray(Image.open(images / p)), 7) for p in part.column("path")]
        edge = (32 - crop) // 2
        cut = [Image.fromarray(p[edge : edge + crop, edge : edge + crop]) for p in pictures]
        pixels = np.stack([np.asarray(p.resize((32, 32), Image.Resampling.BILINEAR)) for p in cut]) / 255
        mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
        with torch.no_grad():
            batch = torch.tensor(((pixels - mean) / std).transpose(0, 3, 1, 2), dtype=torch.float32)
            return model(batch).last_hidden_state[:, 0].numpy()

    # DinoBloom's protocol: C = width x classes / 100.
    for one, crop in zip(found.backbones[1:], (32, 24), strict=True):
        probe = LogisticRegression(C=16 * 3 / 100, max_iter=1000)
        probe.fit(features("train", crop), split.fold("train").labels)
        for fold in ("validation", "test"):
            expected = balanced_accuracy_score(split.fold(fold).labels, probe.predict(features(fold, crop)))
            assert one.scores[fold]["logistic"].value == pytest.approx(expected)
    text = pretraining_time.write(found, json=tmp_path / "t.json", figure=tmp_path / "t.png")
    assert f"| long | 10.0 | 320 | {found.backbones[2].scores['test']['knn_1'].value:.3f}" in text
    assert "| validation fold (it decides) |" in text
    assert "the middle 24 px, the whole picture of the file at 32 px, the middle 7 px painted over" in text
    assert str(tmp_path) not in text + (tmp_path / "t.json").read_text()

    # Fine-tuned on one of them: what its run said of both folds, cut as it was pretrained.
    one = settings.model_copy(
        update={"backbones": folders[:1], "fine_tune": True, "max_steps": 1, "seeds": (0,)}
    )
    tuned = pretraining_time.run(one, start=InThisProcess).backbones[1]
    run = one.output / "long" / "runs" / "ours" / "seed0"
    assert json.loads((run / "recipe.json").read_text())["data"]["center_crop_px"] == 24
    for fold in ("validation", "test"):
        said = Predictions.from_parquet(run / "predictions" / f"{fold}.parquet")
        reached = tuned.scores[fold]["fine_tuned"]
        assert reached.value == pytest.approx(balanced_accuracy_score(said.labels, said.predicted))
        assert tuned.scores[fold]["logistic"] == found.backbones[2].scores[fold]["logistic"]
    with pytest.raises(CytoDinoError, match=r"pretraining\.json"):
        pretraining_time.run(settings.model_copy(update={"backbones": (backbone,)}))
