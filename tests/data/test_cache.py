"""Images kept in one file: the same pixels, made once, never read when half made."""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from transformers.image_utils import load_image

from cytodino_hf.data import cache
from cytodino_hf.data.cache import pack_images
from cytodino_hf.data.dataset import CellDataset, collate
from cytodino_hf.data.images import read_rgb
from cytodino_hf.data.inspection.scan_cache import ScanCache
from cytodino_hf.data.pictures import pictures_of
from cytodino_hf.data.samples import CellImages, build_cell_images
from cytodino_hf.data.transforms import build_augmentation
from cytodino_hf.errors import DataError
from cytodino_hf.model_builder import build_processor
from cytodino_hf.recipe import DataSection
from cytodino_hf.taxonomy import MLL

KINDS = ("bytes", "pixels")


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache, empty."""
    monkeypatch.setenv("CYTODINO_CACHE", str(tmp_path / "kept"))
    return tmp_path / "kept" / "pictures"


@pytest.fixture
def images(tmp_path: Path) -> CellImages:
    return draw(tmp_path / "images")


def draw(root: Path, count: int = 23) -> CellImages:
    """JPEG and PNG, grey too, of several sizes; in three folds."""
    rng = np.random.default_rng(0)
    for i in range(count):
        path = root / ("BLA", "LYT", "NGS")[i % 3] / f"{i:03d}.{'jpg' if i % 2 else 'png'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        side = 40 + i % 4
        pixels = rng.integers(0, 256, (side, 45, 3), dtype=np.uint8)
        Image.fromarray(pixels[..., 0] if i == 4 else pixels).save(path)
    names = sorted(str(p.relative_to(root)) for p in root.rglob("*.*"))
    folds = ["train" if i % 3 else "validation" for i in range(count)]
    return build_cell_images(
        names, [n[:3] for n in names], root=root, source="image_folder", taxonomy=MLL, folds=folds
    )


def files(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.glob("*.arrow"))


@pytest.mark.parametrize("kind", KINDS)
def test_every_row_is_the_decoded_file_and_the_files_are_not_needed(images: CellImages, kind: str) -> None:
    wanted = [read_rgb(images.root / path) for path in images.column("path")]
    packed = pack_images(images, kind)
    shutil.rmtree(images.root)
    pictures = pictures_of(packed)
    for row, pixels in enumerate(wanted):
        np.testing.assert_array_equal(pictures.read(row), pixels)
    # Folds, other orders and narrower sets keep to their own rows.
    paths = images.column("path")
    for some in (packed.fold("train"), packed.select([5, 2, 9]), packed.fold("validation").narrowed()):
        pictures = pictures_of(some)
        for row, path in enumerate(some.column("path")):
            np.testing.assert_array_equal(pictures.read(row), wanted[paths.index(path)])


@pytest.mark.parametrize("kind", ["none", *KINDS])
@pytest.mark.parametrize(("batch", "workers"), [(1, 0), (4, 0), (7, 2), (23, 2)])
def test_evaluation_sees_the_pixels_of_the_image_processor_however_it_reads(
    images: CellImages, kind: str, batch: int, workers: int
) -> None:
    processor = build_processor(DataSection(image_size_px=64, hide_center_px=3, center_crop_px=42))
    paths = images.column("path")
    wanted = torch.cat(
        [processor(load_image(str(images.root / p)), return_tensors="pt")["pixel_values"] for p in paths]
    )
    used = images if kind == "none" else pack_images(images, kind)
    loader = DataLoader(CellDataset(used, processor), batch, num_workers=workers, collate_fn=collate)
    got = torch.cat([processor.normalize_batch(b["pixel_values"]) for b in loader])
    torch.testing.assert_close(got, wanted, atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_training_sees_the_same_variations(images: CellImages, kind: str) -> None:
    processor = build_processor(DataSection(image_size_px=64))
    augmentation = build_augmentation("published", image_size_px=64, center_crop_px=None)
    keys = [(row, 1, row) for row in range(23)]
    plain, packed = (
        CellDataset(i, processor, augmentation).__getitems__(keys)["pixel_values"]
        for i in (images, pack_images(images, kind))
    )
    assert torch.equal(plain, packed)


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_made_once_and_says_its_size_first(
    images: CellImages,
    kind: str,
    kept: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        first = pack_images(images, kind)
    assert f"23 images take about 0.0 GB as {kind}" in caplog.text
    monkeypatch.setattr(cache, "_make", lambda *args: pytest.fail("made again"))
    assert pack_images(images.select(list(range(23))[::-1]), kind).pack == first.pack
    assert len(files(kept)) == 1
    assert not list(kept.glob("*.partial"))


def test_a_file_that_changes_makes_another_one(images: CellImages, kept: Path) -> None:
    old = pack_images(images, "pixels")
    path = images.root / images.column("path")[3]
    Image.fromarray(
        np.full((30, 30, 3), (9, 99, 199), np.uint8) ^ np.arange(30, dtype=np.uint8)[:, None]
    ).save(path)
    new = pack_images(images, "pixels")
    assert len(files(kept)) == 2
    assert pictures_of(new).read(3).shape == (30, 30, 3)
    assert pictures_of(old).read(3).shape != (30, 30, 3)
    os.utime(path, (1, 1))
    pack_images(images, "pixels")
    assert len(files(kept)) == 3
    pack_images(images.select(range(20)), "pixels")
    assert len(files(kept)) == 4


def test_half_made_files_of_killed_runs_are_removed_after_a_day(
    images: CellImages, kept: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept.mkdir(parents=True)
    for name, hours in (("pixels-old", 25), ("bytes-young", 23)):
        (kept / f"{name}.partial").write_bytes(b"half")
        os.utime(kept / f"{name}.partial", (time.time() - hours * 3600,) * 2)
    with caplog.at_level(logging.WARNING):
        pack_images(images, "pixels")
    assert [path.name for path in kept.glob("*.partial")] == ["bytes-young.partial"]
    assert f"rm -r {kept}" in caplog.text


def test_another_decoder_makes_another_one(
    images: CellImages, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack_images(images, "pixels")
    scan_version = ScanCache(images.root, 1).version
    monkeypatch.setattr("simplejpeg.__version__", "0.0")
    pack_images(images, "pixels")
    assert len(files(kept)) == 2
    assert ScanCache(images.root, 1).version != scan_version


@pytest.mark.parametrize("content", [b"", b"no pictures" * 500])
def test_a_damaged_file_is_named_with_the_remedy(images: CellImages, kept: Path, content: bytes) -> None:
    packed = pack_images(images, "pixels")
    (kept / files(kept)[0]).write_bytes(content)
    with pytest.raises(DataError, match=r"\.arrow: the kept pictures cannot be read .* remove the file"):
        pictures_of(packed).read(0)


def test_sets_in_two_folders_are_two_files(tmp_path: Path, kept: Path) -> None:
    """The same names, sizes and times do not make the same pictures."""
    for number, folder in enumerate(("one", "two")):
        images = draw(tmp_path / folder, 6)
        for path in images.column("path"):
            os.utime(images.root / path, (1, 1))
        pack_images(images, "bytes")
        assert len(files(kept)) == number + 1


def test_an_unreadable_file_stops_with_its_name_and_leaves_nothing(images: CellImages, kept: Path) -> None:
    path = images.root / images.column("path")[7]
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(DataError, match=path.name):
        pack_images(images, "pixels")
    assert files(kept) == []
    assert not list(kept.glob("*.partial"))
    path.unlink()
    with pytest.raises(DataError, match=path.name):
        pack_images(images, "bytes")


def test_a_disk_without_room_is_refused_before_the_work(
    images: CellImages, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(
        DataError, match=r"are needed for data.cache 'pixels'.* free; make room, set CYTODINO_CACHE"
    ):
        pack_images(images, "pixels")
    assert files(kept) == []


def test_a_cache_that_cannot_be_written_is_named(
    images: CellImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CYTODINO_CACHE", str(tmp_path / "file"))
    with pytest.raises(DataError, match=r"cannot be written .* set CYTODINO_CACHE to a folder"):
        pack_images(images, "bytes")


def make_and_die(images: CellImages) -> None:
    read, seen = cache._read_decoded, []

    def die_at_the_tenth(file: str) -> np.ndarray:
        seen.append(file)
        if len(seen) == 10:
            os.kill(os.getpid(), signal.SIGKILL)
        return read(file)

    cache._read_decoded, cache._BATCH_ROWS = die_at_the_tenth, 2
    pack_images(images, "pixels")


def test_a_half_made_file_is_never_read_and_the_next_start_makes_it(images: CellImages, kept: Path) -> None:
    """A process is killed in the middle of the work; the lock it held and its half file stop nobody."""
    start = multiprocessing.get_context("fork").Process(target=make_and_die, args=(images,))
    start.start()
    start.join(60)
    assert start.exitcode == -signal.SIGKILL
    assert files(kept) == []
    assert len(list(kept.glob("*.partial"))) == 1
    pictures = pictures_of(pack_images(images, "pixels"))
    for row, path in enumerate(images.column("path")):
        np.testing.assert_array_equal(pictures.read(row), read_rgb(images.root / path))
    assert len(files(kept)) == 1
    assert not list(kept.glob("*.partial"))


def make_slowly(images: CellImages, log: Path) -> None:
    read = cache._read_decoded

    def slow(file: str) -> np.ndarray:
        time.sleep(0.02)
        with open(log, "a") as lines:
            lines.write(f"{os.getpid()}\n")
        return read(file)

    cache._read_decoded = slow
    pack_images(images, "pixels")


def test_of_two_starts_at_once_one_makes_it_and_the_other_waits(
    images: CellImages, kept: Path, tmp_path: Path
) -> None:
    fork = multiprocessing.get_context("fork")
    starts = [fork.Process(target=make_slowly, args=(images, tmp_path / "log")) for _ in range(2)]
    for start in starts:
        start.start()
    for start in starts:
        start.join(60)
        assert start.exitcode == 0
    assert len(files(kept)) == 1
    makers = (tmp_path / "log").read_text().split()
    assert len(makers) == 23
    assert len(set(makers)) == 1


def test_many_images_are_read_by_processes_in_windows(
    tmp_path: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = draw(tmp_path / "many", 600)
    monkeypatch.setattr(cache, "_WINDOW_BYTES", 1_500_000)  # 300 pictures at once
    pictures = pictures_of(pack_images(images, "pixels", workers=2))
    for row, path in enumerate(images.column("path")):
        np.testing.assert_array_equal(pictures.read(row), read_rgb(images.root / path))


def test_a_worker_gets_the_name_of_the_file_only(images: CellImages) -> None:
    packed = pack_images(images, "pixels")
    before = pictures_of(packed).read(0)
    assert len(pickle.dumps(packed.pack)) < 400
    again = pickle.loads(pickle.dumps(pictures_of(packed)))
    np.testing.assert_array_equal(again.read(0), before)


def test_kept_pixels_are_read_without_a_copy_and_cannot_be_changed(images: CellImages) -> None:
    packed = pack_images(images, "pixels")
    pictures = pictures_of(packed)
    assert np.shares_memory(pictures.read(2), pictures.read(2))
    with pytest.raises(ValueError, match="read-only"):
        pictures.read(2)[0, 0] = 0
    original = CellDataset(packed, build_processor(DataSection(image_size_px=32))).original(2)
    original[:] = 0  # the caller's own
    assert pictures.read(2).any()


def test_a_row_the_file_lacks_is_named(images: CellImages) -> None:
    from dataclasses import replace

    packed = pack_images(images.select(range(10)), "pixels")
    with pytest.raises(DataError, match=images.column("path")[10]):
        pictures_of(replace(images, pack=packed.pack))
