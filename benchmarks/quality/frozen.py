"""What neighbours and logistic regression say of a study's images by the frozen features of a backbone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cytodino_hf.data.dataset import CellDataset
from cytodino_hf.evaluation.features import frozen_features
from cytodino_hf.evaluation.frozen_backbones import load_frozen_backbone
from cytodino_hf.evaluation.predictions import Predictions
from cytodino_hf.evaluation.scoring import as_predictions
from cytodino_hf.model_builder import build_processor
from cytodino_hf.probing.methods import Folds, ask_without_choice
from cytodino_hf.probing.systems import pictures_for
from cytodino_hf.recipe import DataSection

from .arms import ARMS, changed
from .backbones import crop_for
from .images import StudyImages
from .scores import FOLDS
from .settings import StudySettings

#: Method -> one entry a seed: fold -> what was said.
Said = dict[str, list[dict[str, Predictions]]]


def frozen_answers(
    settings: StudySettings, images: StudyImages, name: str, seeds: Sequence[int]
) -> tuple[Said, int | None]:
    """Answers to both folds, from pictures cut and painted over as the fine-tuning sees them.

    Args:
        settings: Of the study.
        images: Of the study.
        name: Of the backbone.
        seeds: Of untrained weights; one of a trained backbone.

    Returns:
        The answers, and the side of the square cut out first (None: the whole picture).
    """
    whole = images.plain.images
    train = whole.fold("train")
    asked = whole.select([row for row, fold in enumerate(whole.folds) if fold in FOLDS])
    said: Said = {}
    for seed in seeds:
        backbone = load_frozen_backbone(name, seed=seed)
        crop = crop_for(backbone, settings.center_crop_px)
        data = DataSection(
            image_size_px=settings.image_size_px, center_crop_px=crop, hide_center_px=hidden_px()
        )
        processor = build_processor(pictures_for(backbone, data))
        known, unknown = (
            frozen_features(backbone.model, CellDataset(part, processor), description=f"features, {name}")
            for part in (train, asked)
        )
        labels = np.asarray(train.labels)
        # Nothing is chosen, so there is nothing to choose by; the validation fold is asked as the test fold is.
        folds = Folds(known, known[:0], unknown, labels, labels[:0], len(whole.taxonomy))
        for answer in ask_without_choice(folds, None):
            predictions = as_predictions(asked, answer.logits, name)
            said.setdefault(answer.method, []).append({fold: predictions.fold(fold) for fold in FOLDS})
    return said, crop


def hidden_px() -> int:
    """Side of the square painted over in the centre, as in the recipe of ours, which the fine-tuning follows."""
    return int(changed(ARMS["ours"])["data"].get("hide_center_px", 0))
