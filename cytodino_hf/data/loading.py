"""The data section of a recipe becomes images with folds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ..errors import DataError
from ..recipe import Recipe
from ..taxonomy import load_taxonomy
from .dataset import read_into_memory
from .sources import SOURCES
from .splits import Split, assign_folds


def load_split(recipe: Recipe) -> Split:
    """The images of a recipe with their folds.

    Raises:
        DataError: Images or split cannot be used as asked.
    """
    data = recipe.data
    taxonomy = load_taxonomy(data.taxonomy)
    root = Path(data.root) if data.root is not None else None
    images = SOURCES[data.source].load(root, taxonomy, recipe.source_options[data.source])
    split = assign_folds(
        images, split=data.split, fractions=data.fractions.model_dump(), seed=data.split_seed
    )
    if not split.images.fold("train").labels:
        raise DataError(f"{images.root}: the split leaves no image to train on")
    if not split.images.fold("validation").labels and recipe.training.eval_strategy != "no":
        raise DataError(
            f"{images.root}: the split leaves no image for the validation fold, which chooses the model; "
            "change data.split or data.fractions, or set training.eval_strategy and save_strategy to 'no'"
        )
    if data.cache == "bytes":
        split = replace(split, images=read_into_memory(split.images))
    return split
