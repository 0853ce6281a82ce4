"""Copies are found, other cells are not: on drawn cells always, on real ones where they are at hand."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest

from cytodino_hf.data.drawing import draw_cell, slide_look
from cytodino_hf.data.images import read_rgb
from cytodino_hf.data.inspection.near_duplicates import (
    LEAST_SIMILARITY,
    MOST_DIFFERENT_BITS,
    Duplicates,
    _candidates,
    cluster,
    find_duplicates,
)
from cytodino_hf.data.inspection.perceptual_hash import detail_strength, pack_signs, thumbnail, wave_signs
from cytodino_hf.data.inspection.scan import scan_images
from cytodino_hf.data.sources import SOURCES
from cytodino_hf.taxonomy import MLL


def jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    _, content = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return cv2.imdecode(content, cv2.IMREAD_COLOR)


def resized(image: np.ndarray) -> np.ndarray:
    """250 to 200 to 250 pixels."""
    small = cv2.resize(image, None, fx=0.8, fy=0.8, interpolation=cv2.INTER_AREA)
    return cv2.resize(small, image.shape[1::-1], interpolation=cv2.INTER_LINEAR)


def shifted(image: np.ndarray, right: int, down: int) -> np.ndarray:
    move = np.array([[1, 0, right], [0, 1, down]], np.float32)
    return cv2.warpAffine(image, move, image.shape[1::-1], borderMode=cv2.BORDER_REFLECT)


ALTERED: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "jpeg 60": lambda image: jpeg(image, 60),
    "jpeg 30": lambda image: jpeg(image, 30),
    "resized": resized,
    "smaller": lambda image: cv2.resize(image, None, fx=0.8, fy=0.8, interpolation=cv2.INTER_AREA),
    "brighter": lambda image: cv2.convertScaleAbs(image, alpha=1.05, beta=8),
    "shifted by 1": lambda image: shifted(image, 1, 1),
    "shifted by 2": lambda image: shifted(image, 2, -2),
    "all at once": lambda image: jpeg(cv2.convertScaleAbs(shifted(resized(image), 1, 1), alpha=1.05), 60),
    "mirrored": lambda image: jpeg(image[:, ::-1].copy(), 90),
    "turned by 90": lambda image: jpeg(np.rot90(image).copy(), 90),
    "turned by 180": lambda image: jpeg(np.rot90(image, 2).copy(), 90),
}
# Shares of copies found of 600 of 5,483 real images when the thresholds were set; all others were 1.
RECALL = {"shifted by 2": 0.97}


def find(pictures: Sequence[np.ndarray], files: Sequence[bytes] | None = None) -> Duplicates:
    small = np.stack([thumbnail(picture) for picture in pictures])
    pixels = [picture.tobytes() for picture in pictures]
    return find_duplicates(
        files or pixels,
        pixels,
        pack_signs(np.stack([wave_signs(picture) for picture in small])),
        small,
        np.array([detail_strength(picture) for picture in small]),
    )


def pairs(duplicates: Duplicates) -> list[tuple[int, int]]:
    return list(zip(duplicates.first.tolist(), duplicates.second.tolist(), strict=True))


@pytest.fixture(scope="module")
def cells() -> list[np.ndarray]:
    """Drawn cells of six classes; each slide holds several, so that backgrounds are alike."""
    codes = ("BLA", "LYT", "NGS", "EOS", "MON", "EBO")
    return [draw_cell(codes[i % 6], slide_look(0, i // 12, 1), np.random.default_rng(i)) for i in range(48)]


def test_drawn_cells_are_no_duplicates(cells: list[np.ndarray]) -> None:
    found = find(cells)
    assert pairs(found) == []
    assert set(found.cluster_of.tolist()) == {-1}


@pytest.mark.parametrize("change", ALTERED)
def test_an_altered_copy_is_found_and_nothing_else(cells: list[np.ndarray], change: str) -> None:
    copies = [ALTERED[change](cell) for cell in cells[:24]]
    found = find([*cells, *copies])
    expected = {(row, 48 + row) for row in range(24)}
    assert set(pairs(found)) <= expected
    assert len(found.first) >= RECALL.get(change, 1.0) * 24 - 1e-9
    assert set(found.kinds.tolist()) == {"near"}
    assert found.similarity.min() >= LEAST_SIMILARITY


def test_exact_copies_have_their_kind_and_form_one_cluster(cells: list[np.ndarray]) -> None:
    # Row 0 and 2 are one file; 4 has its pixels in another file; 5 is a near-duplicate; 1 and 3 have nothing to do
    # with them.
    pictures = [cells[0], cells[1], cells[0], cells[2], cells[0], jpeg(cells[0], 60)]
    found = find(pictures, files=[b"a", b"b", b"a", b"c", b"d", b"e"])
    assert pairs(found) == [(0, 2), (0, 4), (0, 5)]
    assert found.kinds.tolist() == ["file", "pixels", "near"]
    assert found.similarity[:2].tolist() == [1, 1]
    assert found.clusters() == [[0, 2, 4, 5]]
    assert found.cluster_of.tolist() == [0, -1, 0, -1, 0, 0]


def test_thousands_of_copies_of_one_file_cost_no_more_than_others(cells: list[np.ndarray]) -> None:
    started = time.process_time()
    small = thumbnail(cells[0])
    found = find_duplicates(
        [b"same"] * 5000,
        [b"same"] * 5000,
        np.repeat(pack_signs(wave_signs(small)), 5000),
        np.broadcast_to(small, (5000, 32, 32)),
        np.full(5000, 9.0),
    )
    assert len(found.first) == 4999
    assert time.process_time() - started < 2


@pytest.mark.slow
def test_thousands_of_frames_of_one_cell_are_one_cluster_without_every_pair(cells: list[np.ndarray]) -> None:
    """Frames of a film: no two have the same bytes, every two are alike."""
    frames = [
        np.clip(thumbnail(cells[0]).astype(int) + np.random.default_rng(i).integers(-1, 2, (32, 32)), 0, 255)
        for i in range(1500)
    ]
    small = np.stack(frames).astype(np.uint8)
    hashes = pack_signs(np.stack([wave_signs(frame) for frame in small]))
    names = [str(i).encode() for i in range(len(small))]
    found = find_duplicates(names, names, hashes, small, np.full(len(small), 9.0))
    assert found.clusters() == [list(range(1500))]
    assert len(found.first) < 1500 * 1499 / 4


def test_empty_fields_are_not_one_picture() -> None:
    rng = np.random.default_rng(0)
    grounds = np.clip(rng.normal(230, 2, (20, 250, 250, 3)), 0, 255).astype(np.uint8)
    vignettes = [cv2.GaussianBlur(ground, (0, 0), 20) for ground in grounds]
    assert pairs(find([*grounds, *vignettes])) == []


def test_the_index_misses_no_pair_within_its_promise() -> None:
    """Against all pairs one by one: random hashes, some of them neighbours of others by up to 14 bits."""
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**64, 2000, dtype=np.uint64)
    hashes[1000:] = hashes[:1000]
    for row in range(1000, 2000):
        for bit in rng.choice(64, row % 15, replace=False):
            hashes[row] ^= np.uint64(1) << np.uint64(bit)
    distance = np.bitwise_count(hashes[:, None] ^ hashes[None])
    rows, others = np.nonzero(np.triu(np.ones_like(distance, dtype=bool), 1))
    for changed_bits, certain in ((1, 7), (0, 3)):
        found = {
            pair
            for first, second in _candidates(hashes, hashes, changed_bits)
            for pair in zip(first.tolist(), second.tolist(), strict=True)
        }
        near = distance[rows, others] <= certain
        assert set(zip(rows[near].tolist(), others[near].tolist(), strict=True)) <= found
        assert all(distance[pair] <= MOST_DIFFERENT_BITS for pair in found)


def test_clusters_are_the_connected_parts() -> None:
    assert cluster(8, np.array([6, 1, 4]), np.array([7, 4, 2])).tolist() == [-1, 0, 0, -1, 0, -1, 1, 1]
    assert cluster(3, np.array([], dtype=int), np.array([], dtype=int)).tolist() == [-1, -1, -1]
    assert cluster(0, np.array([], dtype=int), np.array([], dtype=int)).tolist() == []


def test_sets_of_none_and_one_have_no_duplicates(cells: list[np.ndarray]) -> None:
    nothing = np.empty(0, np.uint64)
    assert pairs(find_duplicates([], [], nothing, np.empty((0, 32, 32), np.uint8), np.empty(0))) == []
    assert pairs(find(cells[:1])) == []


@pytest.mark.real_data
def test_real_cells_are_no_duplicates_and_their_copies_are_found(real_data: Path) -> None:
    """What the thresholds promise, on the set they were set on: no pair among all, every kind of copy of 60."""
    source = SOURCES["mll"]
    parts = [source.load(real_data / name, MLL, source.options()) for name in ("mll7", "mll7_more")]
    scans = [scan_images(part) for part in parts]
    columns = [np.concatenate([scan.numbers(name) for scan in scans]) for name in ("hash", "detail")]
    hashes, detail = columns
    small = np.concatenate([scan.thumbnails() for scan in scans])
    files = [name for scan in scans for name in scan.column("file_sha256")]
    pixels = [name for scan in scans for name in scan.column("pixel_sha256")]
    assert pairs(find_duplicates(files, pixels, hashes, small, detail)) == []
    rows = np.random.default_rng(0).choice(len(parts[0].labels), 60, replace=False).tolist()
    paths = parts[0].column("path")
    originals = [read_rgb(parts[0].root / paths[row]) for row in rows]
    for change, alter in ALTERED.items():
        copies = np.stack([thumbnail(alter(image)) for image in originals])
        names = [b"copy %d" % i for i in range(60)]
        found = find_duplicates(
            [*files, *names],
            [*pixels, *names],
            np.concatenate([hashes, pack_signs(np.stack([wave_signs(copy) for copy in copies]))]),
            np.concatenate([small, copies]),
            np.concatenate([detail, [detail_strength(copy) for copy in copies]]),
        )
        expected = {(row, len(files) + i) for i, row in enumerate(rows)}
        assert set(pairs(found)) <= expected, change
        assert len(found.first) >= RECALL.get(change, 1.0) * 60 - 1e-9, change
