"""The scan: what it notes by independent values, what it keeps, and that it takes what training can read."""

from __future__ import annotations

import hashlib
import logging
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hostile
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cytodino_hf.data.images import read_rgb
from cytodino_hf.data.inspection import scan as scan_module
from cytodino_hf.data.inspection.scan import Scan, look_at, scan_images
from cytodino_hf.data.samples import CellImages, build_cell_images
from cytodino_hf.data.stain import MAY_GRUNWALD_GIEMSA
from cytodino_hf.errors import DataError
from cytodino_hf.taxonomy import MLL


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own for each test."""
    monkeypatch.setenv("CYTODINO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "scans"


@pytest.fixture
def root(tmp_path: Path, make_images: Callable[..., Path]) -> Path:
    return make_images(tmp_path / "images", classes=("BLA", "LYT"), per_class=5)


def images(root: Path) -> CellImages:
    paths = [str(path.relative_to(root)) for path in root.rglob("*.*") if path.is_file()]
    return build_cell_images(paths, [path[:3] for path in paths], root=root, source="test", taxonomy=MLL)


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are opened; in this process, as the sets here are small."""
    names = []

    def look(file: str) -> dict[str, Any]:
        names.append(Path(file).name)
        return look_at(file)

    monkeypatch.setattr(scan_module, "look_at", look)
    return names


def without_pictures(scan: Scan) -> list[dict[str, Any]]:
    return scan.table.to_pylist()


def test_what_is_noted_about_a_file(tmp_path: Path) -> None:
    picture = hostile.cell(3, 120).resize((120, 90))
    content = hostile.encoded(picture, "JPEG", quality=92, exif=hostile.exif(6))
    (tmp_path / "cell.jpg").write_bytes(content)
    found = look_at(str(tmp_path / "cell.jpg"))
    pixels = read_rgb(tmp_path / "cell.jpg")
    assert (found["width"], found["height"]) == (90, 120)  # turned by its EXIF
    assert found["file_sha256"] == hashlib.sha256(content).digest()
    assert found["brightness"] == pytest.approx(pixels.mean(), abs=1e-4)
    # All pixels and logarithms of base ten, where the scan takes a sixteenth and a table.
    density = -np.log10((pixels.astype(np.float64) + 1) / 256).reshape(-1, 3).mean(0)
    amounts = np.linalg.solve(MAY_GRUNWALD_GIEMSA.T, density)
    assert [found["blue"], found["purple"], found["residual"]] == pytest.approx(amounts.tolist(), abs=0.02)
    assert found["reason"] is None
    assert found["notes"] is None


def test_equal_pixels_in_other_files_and_other_shapes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (24, 48, 3)).astype(np.uint8)
    for name, array in {"a.png": pixels, "b.bmp": pixels, "c.png": pixels.reshape(48, 24, 3)}.items():
        Image.fromarray(array).save(tmp_path / name)
    a, b, c = (look_at(str(tmp_path / name)) for name in ("a.png", "b.bmp", "c.png"))
    assert a["file_sha256"] != b["file_sha256"]
    assert a["pixel_sha256"] == b["pixel_sha256"] != c["pixel_sha256"]


def test_the_scan_takes_exactly_what_training_can_read(tmp_path: Path) -> None:
    for number, case in enumerate(hostile.files()):
        if case.answer == hostile.IGNORED:
            continue
        path = tmp_path / f"{number}.jpg"
        path.write_bytes(case.content)
        found = look_at(str(path))
        if found["reason"] is None:
            assert (found["height"], found["width"]) == read_rgb(path).shape[:2], case.kind
        else:
            with pytest.raises(DataError) as refused:
                read_rgb(path)
            assert f"{path}: {found['reason']}" == str(refused.value), case.kind
        assert bool(found.get("notes")) == (case.answer == hostile.NOTED), case.kind


def test_a_second_scan_opens_no_file(root: Path, looks: list[str]) -> None:
    first = scan_images(images(root))
    assert len(looks) == len(first) == 10
    assert without_pictures(scan_images(images(root))) == without_pictures(first)
    assert len(looks) == 10
    # Another order, and part of the set.
    part = scan_images(images(root).select([7, 0, 3]))
    assert without_pictures(part) == without_pictures(first.select([7, 0, 3]))
    assert len(looks) == 10


def test_a_file_that_changed_is_looked_at_again(root: Path, looks: list[str]) -> None:
    scan_images(images(root))
    looks.clear()
    same_size = root / "BLA/BLA_00002.png"
    os.utime(same_size, ns=(0, 1))
    Image.new("RGB", (40, 40), "red").save(root / "LYT/LYT_00003.png")
    Image.open(same_size).save(root / "LYT/LYT_00099.png")
    found = scan_images(images(root))
    assert sorted(looks) == ["BLA_00002.png", "LYT_00003.png", "LYT_00099.png"]
    assert [row for row, path in enumerate(found.column("path")) if path == "LYT/LYT_00003.png"] == list(
        found.rejected()
    )


def test_rejected_files_are_looked_at_each_time(root: Path, looks: list[str]) -> None:
    (root / "BLA/bad.jpg").write_bytes(b"no picture")
    (root / "BLA/gone.jpg").write_bytes(b"")
    cells = images(root)
    (root / "BLA/gone.jpg").unlink()
    for _ in range(2):
        found = scan_images(cells)
        reasons = {found.column("path")[row]: reason for row, reason in found.rejected().items()}
        assert sorted(reasons) == ["BLA/bad.jpg", "BLA/gone.jpg"]
        assert reasons["BLA/gone.jpg"] == "no such file"
        assert "not an image" in reasons["BLA/bad.jpg"]
    assert looks.count("bad.jpg") == looks.count("gone.jpg") == 2
    assert len(looks) == 14


def test_parts_of_a_folder_share_what_is_kept(root: Path, looks: list[str], cache: Path) -> None:
    cells = images(root)
    scan_images(cells.select(range(6)))
    scan_images(cells.select(range(4, 10)))
    assert len(looks) == 10
    scan_images(cells)
    assert len(looks) == 10
    (root / "BLA/BLA_00001.png").unlink()
    Image.new("RGB", (9, 9)).save(root / "LYT/LYT_new.png")
    Image.fromarray(np.arange(300, dtype=np.uint8).reshape(10, 10, 3)).save(root / "LYT/LYT_new.png")
    scan_images(images(root))
    kept = pq.read_table(next(cache.glob("*.parquet")))["path"].to_pylist()
    assert sorted(kept) == images(root).column("path")  # what is gone is forgotten


@pytest.mark.parametrize("damage", ["cut", "flipped", "text", "other version"])
def test_a_damaged_or_old_cache_is_made_anew(
    root: Path,
    looks: list[str],
    cache: Path,
    damage: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    first = scan_images(images(root))
    file = next(cache.glob("*.parquet"))
    content = bytearray(file.read_bytes())
    if damage == "cut":
        file.write_bytes(content[:-100])
    elif damage == "flipped":
        content[len(content) // 3] ^= 0x10
        file.write_bytes(content)
    elif damage == "text":
        file.write_text("what is this")
    else:
        monkeypatch.setattr(scan_module, "SCANNER_VERSION", scan_module.SCANNER_VERSION + 1)
    looks.clear()
    with caplog.at_level(logging.WARNING):
        assert without_pictures(scan_images(images(root))) == without_pictures(first)
    assert len(looks) == 10
    assert ("scanned again" in caplog.text) == (damage != "other version")
    looks.clear()
    scan_images(images(root))
    assert looks == []


def test_a_cache_that_cannot_be_written_costs_a_warning(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CYTODINO_CACHE", str(tmp_path / "file"))
    assert len(scan_images(images(root))) == 10
    assert "CYTODINO_CACHE" in caplog.text


def test_a_scan_that_was_stopped_goes_on_where_it_was(
    root: Path, looks: list[str], monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    monkeypatch.setattr(scan_module, "_SECONDS_BETWEEN_SAVES", -1.0)
    look = scan_module.look_at

    def stop_at_the_seventh(file: str) -> dict[str, Any]:
        if len(looks) == 6:
            raise KeyboardInterrupt
        return look(file)

    with monkeypatch.context() as patch:
        patch.setattr(scan_module, "look_at", stop_at_the_seventh)
        with pytest.raises(KeyboardInterrupt):
            scan_images(images(root))
    leftover = cache / f".{next(cache.glob('*.parquet')).name}.1.partial"
    leftover.write_bytes(b"half")
    os.utime(leftover, (0, 0))
    scan_images(images(root))
    assert len(looks) == 10
    assert not leftover.exists()


def _die_of_one_file(file: str) -> dict[str, Any]:
    if file.endswith("BLA_00123.png"):
        os.kill(os.getpid(), signal.SIGKILL)
    return look_at(file)


def test_a_file_that_kills_its_reader_is_named(
    tmp_path: Path,
    make_images: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    cells = images(make_images(tmp_path / "many", classes=("BLA", "LYT"), per_class=150, side=12))
    monkeypatch.setattr(scan_module, "look_at", _die_of_one_file)
    found = scan_images(cells, workers=2)
    assert [found.column("path")[row] for row in found.rejected()] == ["BLA/BLA_00123.png"]
    assert "killed" in next(iter(found.rejected().values()))
    assert "BLA_00123.png" in caplog.text
    # In processes or not, the same is found.
    monkeypatch.setattr(scan_module, "look_at", look_at)
    monkeypatch.setenv("CYTODINO_CACHE", str(tmp_path / "other"))
    alone = scan_images(cells, workers=1)
    kept = [row for row in range(len(found)) if row not in found.rejected()]
    assert without_pictures(alone.select(kept)) == without_pictures(found.select(kept))
