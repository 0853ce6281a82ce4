"""The MLL set: layouts, damaged files, the download. No test of this file touches the network."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import SimpleNamespace

import kagglehub
import pytest
import requests
from kagglehub.exceptions import DataCorruptionError, KaggleApiHTTPError

from cytodino_hf.data.samples import CellImages
from cytodino_hf.data.sources import kaggle, mll
from cytodino_hf.errors import DataError
from cytodino_hf.taxonomy import MLL, MLL_IMAGE_COUNTS


def touch(root: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    return root


def load(root: Path | None, **options: object) -> CellImages:
    return mll.load(root, MLL, mll.Options(**options))


LAYOUTS = {
    "kaggle": "bone_marrow_cell_dataset/",
    "tcia": "BM_cytomorphology_data/",
    "class folders": "",
    "wrapped twice": "download/archive/bone_marrow_cell_dataset/",
}


@pytest.mark.parametrize("prefix", LAYOUTS.values(), ids=LAYOUTS)
def test_every_layout_gives_the_same_paths(tmp_path: Path, prefix: str) -> None:
    touch(tmp_path, f"{prefix}BLA/0001-1000/BLA_00001.jpg", f"{prefix}ABE/ABE_00001.jpg")
    beside = "abbreviations.csv", "MANIFEST.csv", "split.csv", f"{prefix}notes.txt", "LICENSE"
    touch(tmp_path, *beside)
    images = load(tmp_path)
    assert images.column("path") == ["ABE/ABE_00001.jpg", "BLA/0001-1000/BLA_00001.jpg"]
    assert images.root == tmp_path / prefix
    assert images.group_kind is None
    assert "CC BY 4.0" in images.attribution
    assert not images.rejected


def test_files_that_are_no_images_do_not_count(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "BLA/a.JPG", "BLA/b.tiff", "BLA/c.webp", "BLA/d.bmp", "BLA/e.jpeg", "BLA/f.png", "BLA/two.dots.tif",
        "BLA/._a.jpg", "BLA/.hidden.jpg", "BLA/Thumbs.db", "BLA/a.jpg.part", "BLA/g.gif", "BLA/no_suffix",
        "__MACOSX/BLA/a.jpg", "@eaDir/a.jpg", ".git/a.jpg", "BLA/.ipynb_checkpoints/a.jpg", "docs/readme.txt",
    )  # fmt: skip
    images = load(tmp_path)
    assert images.column("path") == [
        f"BLA/{name}" for name in ("a.JPG", "b.tiff", "c.webp", "d.bmp", "e.jpeg", "f.png", "two.dots.tif")
    ]
    # An image all the same, only of a kind that is not read.
    assert [image.path for image in images.rejected] == ["BLA/g.gif"]


def test_damaged_files_are_left_out_by_name_and_reported(tmp_path: Path) -> None:
    touch(tmp_path, "NGS/4001-5000/NGS_04035.jpg", "NGS/NGS_18642.JPG", "NGS/NGS_00001.jpg")
    images = load(tmp_path)
    assert images.column("path") == ["NGS/NGS_00001.jpg"]
    assert [image.path for image in images.rejected] == ["NGS/4001-5000/NGS_04035.jpg", "NGS/NGS_18642.JPG"]
    assert all(image.on_purpose for image in images.rejected)
    assert len(mll.DAMAGED) == 10


def test_more_names_can_be_left_out_in_any_form(tmp_path: Path) -> None:
    touch(tmp_path, *(f"BLA/x/BLA_{number:05d}.jpg" for number in range(4)))
    images = load(tmp_path, exclude=["BLA/x/BLA_00000.jpg", "BLA_00001.jpg", "BLA_00002"])
    assert images.column("path") == ["BLA/x/BLA_00003.jpg"]
    assert [image.on_purpose for image in images.rejected] == [True] * 3
    with pytest.raises(DataError, match=r"1 names in data\.mll\.exclude fit no image: BLA_7"):
        load(tmp_path, exclude=["BLA_7"])


def test_unknown_and_empty_class_folders_stop_with_their_names(tmp_path: Path) -> None:
    touch(tmp_path, "BLA/a.jpg", "NEU/b.jpg", "bla/c.jpg")
    with pytest.raises(DataError, match="NEU, bla"):
        load(tmp_path)
    other = touch(tmp_path / "other", "BLA/a.jpg", "MON/notes.txt")
    with pytest.raises(DataError, match="without a usable image: MON"):
        load(other)


def test_a_root_without_class_folders_names_what_is_there(tmp_path: Path) -> None:
    touch(tmp_path, "first/a.jpg", "second/b.jpg")
    with pytest.raises(DataError, match="Folders found: first, second"):
        load(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be listed"):
        load(tmp_path / "file")


def test_links_are_followed_where_no_image_can_come_twice(tmp_path: Path) -> None:
    far = touch(tmp_path / "far", "BLA_00001.jpg")
    root = touch(tmp_path / "root", "LYT/LYT_00001.jpg")
    (root / "BLA").symlink_to(far)
    (root / "LYT/loop").symlink_to("..")
    (root / "LYT/gone.jpg").symlink_to("nothing.jpg")
    os.mkfifo(root / "LYT/pipe.jpg")
    touch(root, "in_no_class.jpg")
    images = load(root)
    assert images.column("path") == ["BLA/BLA_00001.jpg", "LYT/LYT_00001.jpg"]
    left_out = {image.path for image in images.rejected}
    assert left_out == {"LYT/loop", "LYT/gone.jpg", "LYT/pipe.jpg", "in_no_class.jpg"}


def test_a_name_that_is_not_utf8_is_reported(tmp_path: Path) -> None:
    touch(tmp_path, "BLA/new\nline.jpg", "BLA/ünï 细胞.jpg")
    try:
        open(os.fsencode(tmp_path) + b"/BLA/bad_\xff.jpg", "wb").close()
    except OSError:
        pytest.skip("this file system refuses names that are not UTF-8")
    images = load(tmp_path)
    assert len(images.dataset) == 2
    assert images.rejected[0].path == "BLA/bad_\\xff.jpg"


def test_the_same_file_name_in_two_buckets_is_two_images(tmp_path: Path) -> None:
    touch(tmp_path, "BLA/0001-1000/BLA_00001.jpg", "BLA/1001-2000/BLA_00001.jpg")
    assert load(tmp_path).column("id") == ["BLA/0001-1000/BLA_00001", "BLA/1001-2000/BLA_00001"]


def download_gives(monkeypatch: pytest.MonkeyPatch, result: Path | Exception) -> list[str]:
    handles: list[str] = []

    def dataset_download(handle: str) -> str:
        handles.append(handle)
        if isinstance(result, Exception):
            raise result
        return str(result)

    monkeypatch.setattr(kagglehub, "dataset_download", dataset_download)
    return handles


def test_without_a_root_the_pinned_version_is_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "abbreviations.csv", "bone_marrow_cell_dataset/BLA/BLA_00001.jpg")
    monkeypatch.setattr(mll, "MLL_IMAGE_COUNTS", {"BLA": 1})
    handles = download_gives(monkeypatch, tmp_path)
    assert load(None, version=3).column("path") == ["BLA/BLA_00001.jpg"]
    assert handles == ["andrewmvd/bone-marrow-cell-classification/versions/3"]


def test_an_incomplete_download_is_refused_but_may_be_used_as_a_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "BLA/BLA_00001.jpg")
    download_gives(monkeypatch, tmp_path)
    with pytest.raises(DataError, match=rf"NGS 0 of 29424.*set data\.root to {tmp_path}"):
        load(None)
    assert len(load(tmp_path).dataset) == 1


def test_a_download_that_says_it_was_drawn_is_called_drawn_and_needs_no_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "BLA/BLA_00001.jpg", "drawn.json")
    download_gives(monkeypatch, tmp_path)
    images = load(None)
    assert images.is_drawn
    assert "no real patient" in images.attribution
    assert "Matek" not in images.attribution


def http_error(status: int) -> KaggleApiHTTPError:
    return KaggleApiHTTPError("refused", response=SimpleNamespace(status_code=status))


FAILURES = {
    "offline": (requests.exceptions.ConnectionError(), r"not in the cache and Kaggle cannot be reached"),
    "no credentials": (http_error(401), r"KAGGLE_API_TOKEN"),
    "forbidden": (http_error(403), r"HTTP 403.*KAGGLE_API_TOKEN"),
    "no such version": (http_error(404), r"no version 1 .*data.mll.version"),
    "server down": (http_error(503), r"HTTP 503.*later"),
    "damaged": (DataCorruptionError("md5"), r"arrived damaged"),
    "disk full": (OSError(28, "No space left on device"), r"No space left.*KAGGLEHUB_CACHE"),
    "no archive": (ValueError("Unsupported archive type."), r"cannot be unpacked"),
}


@pytest.mark.parametrize(("error", "message"), FAILURES.values(), ids=FAILURES)
def test_a_failed_download_says_what_to_do(
    error: Exception, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    download_gives(monkeypatch, error)
    monkeypatch.setattr(kaggle.time, "sleep", lambda _: None)
    with pytest.raises(DataError, match=message) as caught:
        load(None)
    assert "set data.root" in str(caught.value)


@pytest.mark.real_data
def test_the_real_subset_has_seven_classes(real_data: Path) -> None:
    images = load(real_data / "mll7")
    assert images.counts() == dict.fromkeys(("BLA", "EOS", "LYT", "MON", "NGS", "NIF", "PMO"), 200)
    assert not images.rejected


@pytest.mark.real_data
def test_the_real_damaged_files_are_all_left_out(real_data: Path, tmp_path: Path) -> None:
    for file in sorted((real_data / "mll_damaged").glob("*.jpg")):
        folder = tmp_path / file.name[:3]
        folder.mkdir(exist_ok=True)
        (folder / file.name).symlink_to(file)
        (folder / "good.jpg").touch()
    images = load(tmp_path)
    assert len(images.rejected) == 8
    assert set(images.column("id")) == {f"{code}/good" for code in images.taxonomy.codes}


@pytest.mark.slow
def test_the_full_set_is_indexed_within_a_second(tmp_path: Path) -> None:
    for code, count in MLL_IMAGE_COUNTS.items():
        for first in range(1, count + 1, 1000):
            bucket = tmp_path / "full" / code / f"{first:04d}-{first + 999}"
            bucket.mkdir(parents=True)
            for number in range(first, min(first + 1000, count + 1)):
                os.close(os.open(bucket / f"{code}_{number:05d}.jpg", os.O_CREAT))
    load(touch(tmp_path / "small", "BLA/a.jpg"))  # imports are not counted
    seconds, walks = [], []
    for _ in range(3):
        start = time.process_time()
        images = load(tmp_path / "full")
        seconds.append(time.process_time() - start)
        start = time.process_time()
        files = sum(len(names) for _, _, names in os.walk(tmp_path / "full"))
        walks.append(time.process_time() - start)
    assert files == len(images.dataset) + len(mll.DAMAGED) == 171_374
    assert images.dataset[0]["image"]["path"] == str(tmp_path / "full/ABE/0001-1000/ABE_00001.jpg")
    best = min(seconds)
    assert best < 1, f"{best:.2f} s of CPU time, {best / min(walks):.1f} x os.walk; 0.45 s and 5 x were usual"
