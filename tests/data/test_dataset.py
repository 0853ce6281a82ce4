"""What the model sees: the processor's pixels in evaluation and `pipeline()`, keyed draws in training."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from transformers.image_utils import load_image

from cytodino_hf.data.dataset import CellDataset, collate, pick_examples
from cytodino_hf.data.images import read_rgb
from cytodino_hf.data.loading import load_split
from cytodino_hf.data.samplers import OversamplingSampler
from cytodino_hf.data.samples import build_cell_images
from cytodino_hf.data.transforms import build_augmentation
from cytodino_hf.errors import DataError
from cytodino_hf.model_builder import build_processor
from cytodino_hf.recipe import DataSection, parse_recipe
from cytodino_hf.taxonomy import MLL


@pytest.fixture
def cells(tmp_path: Path, make_images: Callable[..., Path], tiny_recipe: Callable[..., dict]) -> CellDataset:
    root = make_images(tmp_path / "images", per_class=8, side=50)
    recipe = parse_recipe(
        tiny_recipe(root, tmp_path / "out", data={"center_crop_px": 40, "augmentation": "default"}),
        source="test",
    )
    augmentation = build_augmentation("default", image_size_px=32, center_crop_px=40)
    return CellDataset(load_split(recipe).images, build_processor(recipe.data), augmentation, seed=3)


@pytest.mark.parametrize("size", [(250, 250), (363, 360), (31, 47), (32, 32)])
@pytest.mark.parametrize("crop", [None, 40, 180])
@pytest.mark.parametrize("hidden", [0, 7])
def test_evaluation_and_pipeline_see_the_same_pixels(
    size: tuple[int, int], crop: int | None, hidden: int, tmp_path: Path
) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)
    path = tmp_path / "cell.png"
    Image.fromarray(pixels).save(path)
    processor = build_processor(DataSection(image_size_px=32, center_crop_px=crop, hide_center_px=hidden))
    # What `pipeline()` does, file to tensor.
    wanted = processor(load_image(str(path)), return_tensors="pt")["pixel_values"]
    batch = collate(
        [{"pixel_values": processor.crop_and_resize(processor.hide_center(pixels)), "labels": 0, "rows": 0}]
    )
    assert batch["pixel_values"].dtype == torch.uint8
    got = processor.normalize_batch(batch["pixel_values"])
    assert got.shape == wanted.shape == (1, 3, 32, 32)
    torch.testing.assert_close(got, wanted, atol=1e-6, rtol=0)


def test_the_processor_crops_before_it_resizes_against_pillow() -> None:
    pixels = np.random.default_rng(2).integers(0, 256, (100, 90, 3), dtype=np.uint8)
    processor = build_processor(DataSection(image_size_px=32, center_crop_px=60))
    picture = Image.fromarray(pixels).crop((15, 20, 75, 80)).resize((32, 32), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(processor.crop_and_resize(pixels), np.asarray(picture))


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_grey_and_transparent_pictures_are_read_as_pipeline_reads_them(mode: str, tmp_path: Path) -> None:
    pixels = np.random.default_rng(3).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    path = tmp_path / ("cell.tif" if mode == "CMYK" else "cell.png")
    Image.fromarray(pixels).convert(mode).save(path)
    np.testing.assert_array_equal(read_rgb(path), np.asarray(load_image(str(path))))


def test_workers_change_nothing_and_repeats_differ(cells: CellDataset) -> None:
    sampler = OversamplingSampler(cells.labels, power=0.7, multiplier=2.0, seed=1)
    batches = []
    for workers in (0, 2):
        sampler.set_epoch(1)
        loader = DataLoader(cells, 8, sampler=sampler, collate_fn=collate, num_workers=workers)
        batches.append(torch.cat([batch["pixel_values"] for batch in loader]))
    assert torch.equal(batches[0], batches[1])
    assert not np.array_equal(cells.pixels((0, 0, 0)), cells.pixels((0, 0, 1)))
    assert not np.array_equal(cells.pixels((0, 0, 0)), cells.pixels((0, 1, 0)))
    np.testing.assert_array_equal(cells.pixels((0, 1, 5)), cells.pixels((0, 1, 5)))


def test_a_batch_fetched_at_once_is_the_batch_of_its_items(cells: CellDataset) -> None:
    """Row numbers as evaluation asks, and keys as the sampler gives them."""
    for keys in ([5, 0, 5, 17], [(5, 0, 0), (0, 0, 1), (5, 0, 2)]):
        at_once, one_by_one = collate(cells.__getitems__(keys)), collate([cells[key] for key in keys])
        assert at_once.keys() == one_by_one.keys() == {"pixel_values", "labels", "rows"}
        for name, tensor in at_once.items():
            assert torch.equal(tensor, one_by_one[name]), name
            assert tensor.dtype == (torch.uint8 if name == "pixel_values" else torch.int64)
        assert at_once["pixel_values"].is_contiguous(memory_format=torch.channels_last)
        assert at_once["labels"].tolist() == [cells.labels[row] for row in at_once["rows"]]


@pytest.mark.parametrize("context", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_of_either_kind_change_nothing(cells: CellDataset, context: str) -> None:
    alone = torch.cat([b["pixel_values"] for b in DataLoader(cells, 7, collate_fn=collate)])
    loader = DataLoader(cells, 5, collate_fn=collate, num_workers=2, multiprocessing_context=context)
    assert torch.equal(torch.cat([b["pixel_values"] for b in loader]), alone)


def test_a_set_for_a_worker_is_small(cells: CellDataset) -> None:
    """24 rows: no picture, no table travels; most of it is the image processor and the preset's name."""
    assert len(pickle.dumps(cells)) < 6000


def test_pictures_of_several_sizes_come_in_one_batch(tmp_path: Path) -> None:
    rng, root = np.random.default_rng(5), tmp_path / "images"
    sizes = [(50, 40), (32, 32), (50, 40), (31, 77), (200, 30)]
    for i, size in enumerate(sizes):
        path = root / ("BLA" if i % 2 else "LYT") / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)
    names = sorted(str(p.relative_to(root)) for p in root.rglob("*.png"))
    images = build_cell_images(names, [n[:3] for n in names], root=root, source="image_folder", taxonomy=MLL)
    for crop in (None, 40):
        processor = build_processor(DataSection(image_size_px=32, center_crop_px=crop, hide_center_px=3))
        batch = next(iter(DataLoader(CellDataset(images, processor), 5, collate_fn=collate)))
        wanted = processor([load_image(str(root / name)) for name in names], return_tensors="pt")[
            "pixel_values"
        ]
        torch.testing.assert_close(
            processor.normalize_batch(batch["pixel_values"]), wanted, atol=1e-6, rtol=0
        )


@pytest.mark.parametrize("hidden", [0, 5])
@pytest.mark.parametrize("others", [0, 2])
def test_memory_used_again_within_a_batch_shows_in_no_picture(
    tmp_path: Path, hidden: int, others: int
) -> None:
    """More pictures than are worked on at once; some, also the first, of another kind or size than their neighbours."""
    rng, names = (
        np.random.default_rng(7),
        [f"BLA/{i:02d}.{'png' if i % 5 == 1 else 'jpg'}" for i in range(21)],
    )
    (tmp_path / "BLA").mkdir()
    for i, name in enumerate(names):
        side = 30 + 4 * (others > 0 and i % 9 < others)
        pixels = rng.integers(0, 256, (side, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / name)
    images = build_cell_images(names, ["BLA"] * 21, root=tmp_path, source="image_folder", taxonomy=MLL)
    processor = build_processor(DataSection(image_size_px=32, hide_center_px=hidden))
    augmentation = build_augmentation("published", image_size_px=32, center_crop_px=None)
    cells = CellDataset(images, processor, augmentation)
    singly = [processor.crop_and_resize(processor.hide_center(read_rgb(tmp_path / name))) for name in names]
    for order in (list(range(21)), list(range(20, -1, -1))):
        at_once = cells.__getitems__(order)["pixel_values"].permute(0, 2, 3, 1).numpy()
        np.testing.assert_array_equal(at_once, np.stack(singly)[order])
        keys = [(row, 1, place) for place, row in enumerate(order)]
        varied = cells.__getitems__(keys)["pixel_values"].permute(0, 2, 3, 1).numpy()
        np.testing.assert_array_equal(varied, [cells.pixels(key) for key in keys])


def test_an_unreadable_image_stops_with_its_name(cells: CellDataset, tmp_path: Path) -> None:
    path = next((tmp_path / "images").rglob(f"{cells.ids([3])[0]}.png"))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match=path.name):
        cells[3]
    with pytest.raises(DataError, match=path.name):
        cells.__getitems__([0, 3])


def test_examples_are_taken_from_every_class(cells: CellDataset, tmp_path: Path) -> None:
    assert len(cells) == 24
    from cytodino_hf.data.sources import SOURCES

    source = SOURCES["image_folder"]
    images = source.load(tmp_path / "images", MLL, source.options())
    rows = pick_examples(images, 2)
    assert list(rows) == ["BLA", "LYT", "NGS"]
    labels = images.labels
    for label, chosen in enumerate(rows.values()):
        assert len(chosen) == 2
        assert all(labels[row] == label for row in chosen)
