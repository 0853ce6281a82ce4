"""Ask the model of a RUN about its test images in the 8 symmetries of the square, and keep what it says."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .data.loading import load_split
from .errors import DataError
from .evaluation.predictions import Predictions
from .model_loading import load_classifier
from .recipe import load_recipe
from .run_report import AVERAGED_FILE


def ask_symmetries(path: Path, test: Predictions) -> None:
    """Score the test fold of a RUN with averaged answers, into its predictions; nothing where that was done.

    Args:
        path: The RUN; its recipe says where the images are.
        test: Its plain predictions.

    Raises:
        CytoDinoError: The images are not there any more or are others, or the model cannot be loaded.
    """
    import torch

    from .evaluation.symmetries import score_with_symmetries

    file = path / "predictions" / AVERAGED_FILE
    if file.is_file() and Predictions.from_parquet(file).model_revision == test.model_revision:
        return
    recipe = load_recipe(path / "recipe.json")
    images = load_split(recipe).images
    row_of = {name: row for row, name in enumerate(images.column("id"))}
    if missing := [name for name in test.ids if name not in row_of]:
        raise DataError(
            f"{path}: {len(missing)} of {len(test)} test images are not where its recipe looks for them, such as "
            f"{missing[0]}; bring them back to {recipe.data.root}"
        )
    chosen = images.select([row_of[name] for name in test.ids])
    if not np.array_equal(chosen.labels, test.labels):
        raise DataError(f"{path}: the labels of its test images have changed since; run the recipe anew")
    model, processor = load_classifier(path)
    averaged, _ = score_with_symmetries(
        model.to("cuda" if torch.cuda.is_available() else "cpu"),  # type: ignore[arg-type]
        processor,
        chosen,
        model_revision=test.model_revision,
        workers=recipe.training.dataloader_num_workers,
        precision=recipe.evaluation.precision,
    )
    averaged.to_parquet(file)
