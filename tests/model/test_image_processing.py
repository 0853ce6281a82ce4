"""The image processor's pixels: Pillow's to the last bit on every path, and the same normalisation on the device."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cytodino_hf.model.image_processing_cytodino import (
    CytoDinoImageProcessor,
    paint_over_center,
    resize_pictures,
)
from cytodino_hf.model_builder import build_processor
from cytodino_hf.recipe import DataSection

BILINEAR = Image.Resampling.BILINEAR


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def pillow(pictures: np.ndarray, height: int, width: int) -> np.ndarray:
    return np.stack([np.asarray(Image.fromarray(p).resize((width, height), BILINEAR)) for p in pictures])


@pytest.mark.parametrize("size", [8, 16, 32, 48, 64, 96, 128, 224, 256])
def test_resizing_is_pillows_for_every_length(size: int) -> None:
    """Up and down, odd and even, square and not; noise makes every rounding count."""
    step = max(1, size // 40)
    for length in [*range(1, 2 * size + 2, step), size - 1, size, size + 1]:
        for width in {length, size, max(1, length // 2)}:
            pictures = noise(2, length, width, 3, seed=length)
            wanted, out = pillow(pictures, size, size), np.empty((2, size, size, 3), np.uint8)
            got = resize_pictures(pictures, size, size, BILINEAR)
            np.testing.assert_array_equal(got, wanted, err_msg=f"{length} x {width}")
            assert resize_pictures(pictures, size, size, BILINEAR, out) is out
            np.testing.assert_array_equal(out, wanted, err_msg=f"{length} x {width}, into an array")


@pytest.mark.parametrize("resample", [Image.Resampling.BICUBIC, Image.Resampling.NEAREST])
def test_other_filters_are_pillows_too(resample: int) -> None:
    pictures = noise(2, 50, 60, 3)
    wanted = [np.asarray(Image.fromarray(p).resize((64, 64), resample)) for p in pictures]
    np.testing.assert_array_equal(resize_pictures(pictures, 64, 64, resample), wanted)


def test_torch_resizes_the_sizes_of_the_recipes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fast way is taken for 250 pixels to 256, and not for a ratio whose weights it would round."""
    calls: list[tuple[int, ...]] = []
    plain = torch.nn.functional.interpolate

    def note(batch: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
        calls.append(tuple(batch.shape))
        return plain(batch, *args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "interpolate", note)
    resize_pictures(noise(3, 250, 250, 3), 256, 256, BILINEAR)
    assert calls == [(3, 3, 250, 250)]
    resize_pictures(noise(3, 250, 250, 3), 224, 224, BILINEAR)
    resize_pictures(noise(3, 160, 160, 3), 64, 64, BILINEAR)
    assert len(calls) == 1


@pytest.mark.parametrize("crop", [None, 40, 101])
@pytest.mark.parametrize("hidden", [0, 5])
@pytest.mark.parametrize("size", [32, 64, 128])
def test_single_batch_and_call_give_the_same_pixels(crop: int | None, hidden: int, size: int) -> None:
    processor = build_processor(DataSection(image_size_px=size, center_crop_px=crop, hide_center_px=hidden))
    for shape in ((3, 100, 100, 3), (2, 63, 45, 3), (1, 32, 32, 3)):
        pictures = [processor.hide_center(picture) for picture in noise(*shape, seed=shape[1])]
        single = np.stack([processor.crop_and_resize(picture) for picture in pictures])
        for given in (pictures, np.stack(pictures)):
            out = np.empty((len(pictures), *processor.size_after(pictures[0]), 3), np.uint8)
            processor.crop_and_resize_batch(given, out)
            np.testing.assert_array_equal(out, single)
        called = processor(
            [Image.fromarray(picture) for picture in noise(*shape, seed=shape[1])],
            do_normalize=False,
            do_rescale=False,
            return_tensors="pt",
        )["pixel_values"]
        np.testing.assert_array_equal(called.permute(0, 2, 3, 1).numpy(), single)


def test_a_picture_that_cannot_be_written_to_is_taken_without_a_warning_and_left_alone() -> None:
    processor = build_processor(DataSection(image_size_px=64, hide_center_px=5))
    picture = noise(50, 50, 3)
    before = picture.copy()
    picture.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        out = np.empty((2, 64, 64, 3), np.uint8)
        processor.crop_and_resize_batch([processor.hide_center(picture), picture], out)
        assert processor.crop_and_resize(picture).flags.writeable
    np.testing.assert_array_equal(picture, before)


def test_normalising_on_the_device_is_the_formula_and_leaves_the_batch_alone() -> None:
    processor = build_processor(DataSection(image_mean=[0.5, 0.25, 0.75], image_std=[0.2, 0.3, 0.1]))
    pixels = torch.from_numpy(noise(2, 3, 8, 8))
    mean = np.array([0.5, 0.25, 0.75])[:, None, None]
    std = np.array([0.2, 0.3, 0.1])[:, None, None]
    wanted = (pixels.numpy().astype(np.float64) / 255 - mean) / std
    with torch.inference_mode():
        processor.normalize_batch(pixels)  # what is kept from here must serve training too
    got = processor.normalize_batch(pixels)
    assert got.dtype == torch.float32
    np.testing.assert_allclose(got.numpy(), wanted, atol=1e-5)
    weight = torch.ones(3, 1, 1, requires_grad=True)
    (processor.normalize_batch(pixels) * weight).sum().backward()
    as_float = pixels.float()
    again = processor.normalize_batch(as_float)
    assert torch.equal(again, got)
    assert torch.equal(as_float, pixels.float())


def test_a_step_moves_no_constant_to_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    processor = build_processor(DataSection())
    pixels = torch.from_numpy(noise(2, 3, 8, 8))
    processor.normalize_batch(pixels)

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a tensor is built from Python numbers in every step")

    monkeypatch.setattr(torch, "tensor", refuse)
    processor.normalize_batch(pixels)


def test_two_processors_keep_their_own_statistics() -> None:
    pixels = torch.full((1, 3, 2, 2), 255, dtype=torch.uint8)
    one, two = (build_processor(DataSection(image_mean=[m] * 3, image_std=[1.0] * 3)) for m in (0.25, 0.75))
    assert one.normalize_batch(pixels).unique().item() == pytest.approx(0.75)
    assert two.normalize_batch(pixels).unique().item() == pytest.approx(0.25)


@pytest.mark.parametrize(("height", "width", "side"), [(30, 30, 7), (31, 40, 6), (9, 9, 7), (8, 9, 7)])
def test_the_centre_is_painted_from_its_border(height: int, width: int, side: int) -> None:
    """Pixel by pixel from the two lines through it."""
    picture = noise(height, width, 3)
    got = paint_over_center(picture, side)
    if min(height, width) < side + 2:
        np.testing.assert_array_equal(got, picture)
        return
    top, left = (height - side) // 2, (width - side) // 2
    wanted = picture.astype(float)
    for i in range(side):
        for j in range(side):
            down, across = (i + 1) / (side + 1), (j + 1) / (side + 1)
            column = (1 - down) * picture[top - 1, left + j] + down * picture[top + side, left + j].astype(
                float
            )
            row = (1 - across) * picture[top + i, left - 1] + across * picture[top + i, left + side].astype(
                float
            )
            wanted[top + i, left + j] = (column + row) / 2
    assert np.abs(got - wanted).max() <= 0.5 + 1e-4
    outside = np.ones((height, width), bool)
    outside[top : top + side, left : left + side] = False
    np.testing.assert_array_equal(got[outside], picture[outside])


def test_what_is_kept_for_speed_is_not_saved(tmp_path: Path) -> None:
    processor = build_processor(DataSection(hide_center_px=7))
    processor.normalize_batch(torch.zeros((1, 3, 4, 4), dtype=torch.uint8))
    processor.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    again = CytoDinoImageProcessor.from_pretrained(tmp_path)
    assert again.to_dict() == processor.to_dict()
    assert math.isclose(saved["rescale_factor"], 1 / 255)
    assert not any(key.startswith("_") for key in saved)
