"""Pictures that show the images themselves, pixel for pixel."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from cytodino_hf.evaluation.panels import draw_augmentation_strip, draw_class_panel
from cytodino_hf.evaluation.plots import figure_bytes


def test_panel_and_strip_show_the_images_themselves() -> None:
    red = np.zeros((250, 250, 3), dtype=np.uint8)
    red[..., 0] = 200
    panel = figure_bytes(
        draw_class_panel({"granulocytic": {"BLA  blast": [red]}, "lymphoid": {"LYT  lymphocyte": []}}), "png"
    )
    shown = np.asarray(Image.open(io.BytesIO(panel)).convert("RGB"))
    assert (shown == [200, 0, 0]).all(-1).sum() == 96 * 96
    wide = np.random.default_rng(0).integers(0, 256, (40, 120, 3), dtype=np.uint8)
    strip = figure_bytes(draw_augmentation_strip([[red, red, wide], [wide]]), "png")
    shown = np.asarray(Image.open(io.BytesIO(strip)).convert("RGB"))
    assert (shown == [200, 0, 0]).all(-1).sum() == 2 * 96 * 96
