"""Figures: they draw what they are given, twice the same, and no name is taken for a formula."""

from __future__ import annotations

import base64
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from cytodino_hf.evaluation.panels import draw_class_panel
from cytodino_hf.evaluation.plots import (
    draw_class_f1,
    draw_confusion_matrix,
    draw_training_curves,
    figure_bytes,
    figure_to_data_uri,
    training_curves,
)

HOSTILE = ["$\\frac{", "<script>alert(1)</script>", "a_b^c & d"]
LOG = [
    {"step": 10, "loss": 2.0, "learning_rate": 1e-4, "grad_norm": 1.0},
    {"step": 20, "loss": float("nan"), "learning_rate": 5e-5},
    {"step": 20, "eval_loss": 1.5, "eval_macro_f1": 0.4},
    {"step": 20, "train_runtime": 3.0, "train_loss": 1.0},
]


def _pixels(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)


def test_training_curves_sort_the_log_and_leave_out_what_is_not_finite() -> None:
    curves = training_curves(LOG)
    assert curves.train_loss.tolist() == [[10, 2.0]]
    assert curves.eval_loss.tolist() == [[20, 1.5]]
    assert curves.eval_macro_f1.tolist() == [[20, 0.4]]
    assert {name: values.tolist() for name, values in curves.learning_rates.items()} == {
        "learning_rate": [[10, 1e-4], [20, 5e-5]]
    }
    assert not curves.is_empty
    assert training_curves([]).is_empty


def test_training_curves_draw_what_was_logged() -> None:
    figure = draw_training_curves(training_curves(LOG), best_step=20)
    loss, score, rate = figure.axes
    assert [line.get_label() for line in loss.get_lines()] == ["training", "validation", "chosen step"]
    assert score.get_lines()[0].get_ydata().tolist() == [0.4]
    assert rate.get_lines()[0].get_xdata().tolist() == [10, 20]
    assert figure_bytes(figure, "svg")


def test_the_confusion_matrix_writes_counts_and_colours_rows() -> None:
    matrix = np.array([[8, 2], [0, 0]])
    dangerous = np.array([[False, True], [False, True]])
    figure = draw_confusion_matrix(matrix, ["BLA", "LYT"], ["granulocytic", "lymphoid"], dangerous)
    axes = figure.axes[0]
    assert axes.images[0].get_array().tolist() == [[0.8, 0.2], [0.0, 0.0]]
    written = [text.get_text() for text in axes.texts]
    assert written == ["8", "2", "granulocytic", "lymphoid"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["BLA  10", "LYT  0"]
    assert len(axes.patches) == 1  # only the dangerous cell that happened is outlined


def test_class_f1_stands_best_first_with_its_interval() -> None:
    figure = draw_class_f1(
        ["a", "b", "c"],
        np.array([0.5, 0.9, 0.7]),
        np.array([0.3, 0.8, 0.2]),
        np.array([0.7, 1.0, 0.9]),
        np.array([5, 50, 1]),
        np.array([False, False, True]),
    )
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["b  n=50", "c  n=1 (few)", "a  n=5"]
    other, critical = axes.get_lines()
    assert other.get_xydata().tolist() == [[0.9, 0], [0.5, 2]]
    assert critical.get_xydata().tolist() == [[0.7, 1]]
    assert other.get_marker() != critical.get_marker()


@pytest.mark.parametrize("kind", ["svg", "png"])
def test_names_are_no_formulas_and_the_bytes_are_the_same_twice(kind: str) -> None:
    def draw() -> list[bytes]:
        ones = np.ones(3)
        return [
            figure_bytes(draw_confusion_matrix(np.eye(3, dtype=int), HOSTILE, HOSTILE), kind),
            figure_bytes(draw_class_f1(HOSTILE, ones, ones, ones, ones.astype(int), ones > 0), kind),
            figure_bytes(draw_class_panel({name: {name: [_pixels(30, 30)]} for name in HOSTILE}), kind),
        ]

    first = draw()
    assert first == draw()
    if kind == "svg":
        for content in first:
            tags = {element.tag.rsplit("}", 1)[-1] for element in ElementTree.fromstring(content).iter()}
            assert "script" not in tags


def test_a_data_address_holds_the_rendered_bytes() -> None:
    figure = draw_class_panel({"x": {"a": [_pixels(20, 20)]}})
    address = figure_to_data_uri(figure, "png")
    assert address.startswith("data:image/png;base64,")
    assert base64.b64decode(address.split(",", 1)[1]) == figure_bytes(figure, "png")


def test_importing_and_drawing_leave_pyplot_alone() -> None:
    code = (
        "import sys, numpy as np; import cytodino_hf.evaluation.plots as p;"
        "assert 'matplotlib' not in sys.modules;"
        "p.figure_bytes(p.draw_confusion_matrix(np.eye(2, dtype=int), ['a', 'b'], ['x', 'y']), 'svg');"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
