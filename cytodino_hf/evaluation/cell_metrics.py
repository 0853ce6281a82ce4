"""The project's metrics as an `evaluate` module, loaded by its path (`metrics.load_cell_metrics`).

`evaluate` copies this file and reads its imports with a pattern: one import per line.
"""

from __future__ import annotations

import datasets
import evaluate
import numpy as np

from cytodino_hf.evaluation.metrics import confusion_matrix, confusion_metrics


class CellMetrics(evaluate.Metric):
    """Accuracy, balanced accuracy and macro and weighted precision, recall and F1 of cell classes."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Classification metrics of cells; macro means leave out classes without an image.",
            citation="",
            inputs_description="predictions: labels the model gave; references: true labels; num_classes.",
            features=datasets.Features(
                {"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}
            ),
        )

    def _compute(
        self,
        predictions: list[int],
        references: list[int],
        num_classes: int,
        classes_counted: list[bool] | None = None,
    ) -> dict[str, float]:
        """Metrics of one fold.

        Args:
            predictions, references: Labels, 0 to `num_classes` - 1.
            num_classes: Classes K.
            classes_counted: K claims "is a class of the training fold"; None counts all.
        """
        matrix = confusion_matrix(np.asarray(references), np.asarray(predictions), num_classes)
        counted = None if classes_counted is None else np.asarray(classes_counted, dtype=bool)
        return {name: float(value) for name, value in confusion_metrics(matrix, counted).items()}
