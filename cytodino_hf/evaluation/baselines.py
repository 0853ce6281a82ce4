"""What a run has to beat: votes and logistic regression on features of its own frozen backbone, and the majority.

The backbone sees the very pictures of the run, unvaried, as it was before fine-tuning; everything is fitted on the
training fold and nothing is chosen. Answers are kept in the RUN, so that a start again asks no backbone twice.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data.samples import FOLDS
from ..errors import DataError
from ..files import write_json
from .features import frozen_features
from .linear_probe import MAX_ITERATIONS, LogisticProbe, fit_logistic, log_shares
from .neighbours import NEIGHBOURS, TEMPERATURE, knn_probabilities
from .predictions import Predictions

if TYPE_CHECKING:
    from torch import nn

    from ..data.samples import CellImages
    from ..data.splits import Split
    from ..recipe import Recipe

logger = logging.getLogger(__name__)

MAJORITY, LOGISTIC = "majority", "logistic"
#: Baseline -> (short name, how it works), in the order reports show them.
BASELINES: dict[str, tuple[str, str]] = {
    MAJORITY: (
        "majority class",
        "always the most frequent class of the training fold, with the classes' shares",
    ),
    **{
        f"knn_{k}": (
            f"kNN {k}, frozen",
            f"{k} nearest training image{'s' * (k > 1)} by cosine similarity of the backbone's CLS token"
            + (f", each votes with exp(similarity / {TEMPERATURE})" if k > 1 else ""),
        )
        for k in NEIGHBOURS
    },
    LOGISTIC: (
        "logistic, frozen",
        "multinomial logistic regression on the backbone's CLS token, L2 with C = width x classes / 100, at most "
        f"{MAX_ITERATIONS} iterations",
    ),
}
#: Baselines whose answers are meant as probabilities.
HAVE_PROBABILITIES = (MAJORITY, LOGISTIC)
# Raise it with any change of how baselines are made that `BASELINES` does not tell.
_VERSION = 2
_RECORD = "baselines.json"


def baseline_predictions(
    recipe: Recipe, split: Split, folder: Path, base: Path | None = None
) -> dict[str, dict[str, Predictions]]:
    """Answers of every baseline to the images outside the training fold; taken from the folder where they are there.

    Args:
        recipe: The run's recipe: says the backbone and how pictures are cut.
        split: Its images with folds.
        folder: Where answers are kept, such as `predictions/baselines` of the RUN.
        base: The RUN's own copy of a backbone that is not on the Hub; None, or no such folder: taken from its place.

    Returns:
        Baseline -> fold -> predictions; folds without image are left out. Without `logistic` where the training fold
        has one class only.

    Raises:
        DataError: The training fold is empty, or a picture cannot be read.
        BackboneUnavailableError: The backbone cannot be had.
    """
    images = split.images
    asked = [row for row, fold in enumerate(images.folds) if fold is not None and fold != "train"]
    if not images.fold("train").labels:
        raise DataError("baselines need images in the training fold; there are none")
    if not asked:
        return {}
    key = _key(recipe, split)
    record = folder / _RECORD
    known = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
    if known.get("key") != key:
        notes = _ask(recipe, images, asked, folder, base)
        known = {
            "key": key,
            "baselines": list(notes),
            "notes": {name: note for name, note in notes.items() if note},
        }
        write_json(record, known)  # last: it says that the files are whole
    answers = {name: Predictions.from_parquet(folder / f"{name}.parquet") for name in known["baselines"]}
    return {
        name: {fold: part for fold in FOLDS if len(part := answer.fold(fold))}
        for name, answer in answers.items()
    }


def kept_notes(folder: Path) -> dict[str, str]:
    """Baseline -> what a reader must know of how it went; empty where nothing is kept there.

    Args:
        folder: As of `baseline_predictions`.
    """
    record = folder / _RECORD
    found = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
    return dict(found.get("notes", {}))


def _key(recipe: Recipe, split: Split) -> str:
    """Changes where images, folds, pictures or the backbone do, or how answers are made."""
    data, model = recipe.data, recipe.model
    told = {
        "version": _VERSION,
        "baselines": BASELINES,
        "libraries": [version("scikit-learn"), version("numpy"), version("transformers")],
        "images": split.fingerprint(),
        "pictures": [
            data.center_crop_px, data.hide_center_px, data.image_size_px, data.image_mean, data.image_std,
        ],
        "backbone": [model.backbone, model.revision, model.backbone_config, recipe.training.seed],
        "precision": recipe.evaluation.precision,
    }  # fmt: skip
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _ask(
    recipe: Recipe, images: CellImages, asked: list[int], folder: Path, base: Path | None
) -> dict[str, str | None]:
    """Compute all answers and keep them; the names of those that could be given, with what there is to note."""
    import torch

    from ..data.dataset import CellDataset
    from ..model_builder import build_processor
    from .scoring import as_predictions

    backbone = own_backbone(recipe, base).to("cuda" if torch.cuda.is_available() else "cpu")
    features = frozen_features(
        backbone,
        CellDataset(images, build_processor(recipe.data)),
        batch_size=recipe.training.per_device_eval_batch_size,
        workers=recipe.training.dataloader_num_workers,
        precision=recipe.evaluation.precision,
        description="baselines",
    )
    train = np.flatnonzero(np.array(images.folds, dtype=object) == "train")
    labels = np.asarray(images.labels, dtype=np.int64)
    rows = images.select(asked)
    notes = {}
    for name, logits, note in answers(features[train], labels[train], features[asked], len(images.taxonomy)):
        revision = f"baseline {name} of {recipe.model.backbone or 'a backbone from scratch'}"
        as_predictions(rows, logits, revision).to_parquet(folder / f"{name}.parquet")
        notes[name] = note
    return notes


def answers(
    train: np.ndarray, labels: np.ndarray, queries: np.ndarray, num_classes: int
) -> Iterator[tuple[str, np.ndarray, str | None]]:
    """What every baseline says: its name, float32 logits (queries, classes), and what a reader must know of it.

    Args:
        train: (images, width) features of the training fold.
        labels: (images,) their labels.
        queries: (queries, width) features to classify.
        num_classes: Classes of the taxonomy.
    """
    shares = np.bincount(labels, minlength=num_classes) / len(labels)
    yield MAJORITY, np.tile(log_shares(shares), (len(queries), 1)), None
    for k in NEIGHBOURS:
        yield f"knn_{k}", log_shares(knn_probabilities(train, labels, queries, k, num_classes)), None
    if len(np.unique(labels)) > 1:
        probe = fit_logistic(train, labels, num_classes)
        yield LOGISTIC, probe.log_probabilities(queries).astype(np.float32), _note_of(probe)


def _note_of(probe: LogisticProbe) -> str | None:
    if probe.converged:
        return None
    logger.warning("the logistic baseline did not converge in %d iterations", MAX_ITERATIONS)
    return f"its fit did not converge in {MAX_ITERATIONS} iterations, so it may be better than shown"


def own_backbone(recipe: Recipe, base: Path | None = None) -> nn.Module:
    """The backbone a run starts from, as it was before: float32, in eval mode, without gradients.

    Args:
        recipe: Says which.
        base: See `baseline_predictions`.

    Raises:
        BackboneUnavailableError: It cannot be had.
    """
    from transformers import AutoModel, set_seed

    from ..backbones import backbone_source, explained, hub_arguments, is_on_hub, quiet, read_backbone_config

    section = recipe.model
    if base is not None and base.is_dir():
        with quiet():
            model = AutoModel.from_pretrained(base, dtype="float32")
    elif section.backbone is None:
        config, _ = read_backbone_config(section, recipe.hub, recipe.data.image_size_px)
        set_seed(recipe.training.seed)
        model = AutoModel.from_config(config, dtype="float32")
    else:
        _, commit = read_backbone_config(section, recipe.hub, recipe.data.image_size_px)
        hub: dict[str, Any] = {}
        if is_on_hub(section):
            hub = {"revision": commit, **hub_arguments(recipe.hub)}
        with explained(section), quiet():
            model = AutoModel.from_pretrained(backbone_source(section.backbone), dtype="float32", **hub)
    return model.eval().requires_grad_(False)
