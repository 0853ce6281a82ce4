"""Predictions with the embeddings of the same images, in the same order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...errors import DataError
from ..predictions import Predictions


@dataclass(frozen=True)
class EmbeddedFold:
    """Some images with what the model said and, where it was kept, what it saw.

    Args:
        predictions: What the model said.
        embeddings: float32 (images, width) of its head, or None.

    Raises:
        DataError: They are not as many.
    """

    predictions: Predictions
    embeddings: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.embeddings is not None and len(self.embeddings) != len(self.predictions):
            raise DataError(
                f"{len(self.embeddings)} embeddings for {len(self.predictions)} images; take both from one run"
            )

    def __len__(self) -> int:
        return len(self.predictions)

    def select(self, rows: np.ndarray) -> EmbeddedFold:
        """Only some rows, in the order given."""
        rows = np.asarray(rows, dtype=np.int64)
        chosen = None if self.embeddings is None else self.embeddings[rows]
        return EmbeddedFold(self.predictions.select(rows), chosen)

    @classmethod
    def joined(cls, predictions: Predictions, ids: Sequence[str], embeddings: np.ndarray) -> EmbeddedFold:
        """Find the embedding of each image by id.

        Args:
            predictions: Of some images.
            ids, embeddings: As `read_embeddings` gives them, of these images and perhaps others.

        Raises:
            DataError: An image has no embedding; names it.
        """
        row_of = {name: row for row, name in enumerate(ids)}
        if missing := [name for name in predictions.ids if name not in row_of]:
            raise DataError(
                f"{len(missing)} images have no embedding, such as {missing[0]}; score the fold again with this model"
            )
        return cls(predictions, embeddings[[row_of[name] for name in predictions.ids]])
