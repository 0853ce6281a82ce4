"""The table of images: columns, order, identity."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from cytodino_hf.data.samples import CellImages, build_cell_images
from cytodino_hf.errors import DataError
from cytodino_hf.taxonomy import MLL, MLL_IMAGE_COUNTS

PATHS = ["LYT/b.jpg", "BLA/a.b/c", "LYT/ä.tar.png", "BLA/z.jpg"]
LABELS = ["LYT", "BLA", "LYT", "BLA"]


def build(**changes: object) -> CellImages:
    arguments: dict = {"root": Path("/data"), "source": "test", "taxonomy": MLL, **changes}
    return build_cell_images(arguments.pop("paths", PATHS), arguments.pop("labels", LABELS), **arguments)


def test_rows_are_sorted_by_path_with_their_own_values() -> None:
    images = build(
        groups=["g1", None, "g3", "g4"], group_kind="patient", folds=["train", "test", None, "train"]
    )
    assert images.column("path") == ["BLA/a.b/c", "BLA/z.jpg", "LYT/b.jpg", "LYT/ä.tar.png"]
    # Only a suffix goes: the dot in a folder's name stays, and of two suffixes the last.
    assert images.column("id") == ["BLA/a.b/c", "BLA/z", "LYT/b", "LYT/ä.tar"]
    assert images.column("group") == [None, "g4", "g1", "g3"]
    assert images.groups == ["image:BLA/a.b/c", "g4", "g1", "g3"]
    assert images.folds == ["test", "train", "train", None]
    assert images.labels == [0, 0, 1, 1]
    assert images.taxonomy.codes == ("BLA", "LYT")
    assert images.dataset[0]["image"] == {"path": "/data/BLA/a.b/c", "bytes": None}
    assert images.counts() == {"BLA": 2, "LYT": 2}


def test_without_groups_there_are_none() -> None:
    assert build().groups is None
    assert build().column("group") == [None] * 4


def test_a_fold_keeps_labels_and_order() -> None:
    images = build().with_folds(["test", "train", "train", "test"])
    train = images.fold("train")
    assert train.column("path") == ["BLA/z.jpg", "LYT/b.jpg"]
    assert train.labels == [0, 1]
    assert images.fold("calibration").labels == []
    assert images.fold("test").fold("test").column("id") == ["BLA/a.b/c", "LYT/ä.tar"]
    with pytest.raises(DataError, match="unknown folds val"):
        images.with_folds(["val"] * 4)


def test_narrowing_drops_classes_without_images_and_counts_labels_anew() -> None:
    images = build(paths=["a", "b", "c"], labels=["BLA", "EOS", "LYT"])
    assert images.narrowed() is images
    narrow = images.select([2, 1]).narrowed()
    assert narrow.taxonomy.codes == ("EOS", "LYT")
    assert narrow.labels == [1, 0]
    assert narrow.dataset.features["label"].names == ["EOS", "LYT"]
    assert images.select([2, 1]).taxonomy.codes == ("BLA", "EOS", "LYT")


def test_the_fingerprint_sees_every_column_and_no_order() -> None:
    reference = build(folds=["train"] * 4, groups=["g", "g", "h", "h"], group_kind="patient")
    shuffled = build(
        paths=PATHS[::-1],
        labels=LABELS[::-1],
        folds=["train"] * 4,
        groups=["h", "h", "g", "g"],
        group_kind="patient",
    )
    assert reference.fingerprint() == shuffled.fingerprint()
    assert reference.select([3, 1, 0, 2]).fingerprint() == reference.fingerprint()
    others = [
        build(folds=["train"] * 3 + ["test"], groups=["g", "g", "h", "h"], group_kind="patient"),
        build(folds=["train"] * 4, groups=["g", "g", "g", "h"], group_kind="patient"),
        build(folds=["train"] * 4, groups=["g", "g", "h", None], group_kind="patient"),
        build(
            folds=["train"] * 4,
            groups=["g", "g", "h", "h"],
            group_kind="patient",
            labels=["LYT"] * 3 + ["BLA"],
        ),
        build(folds=["train"] * 4, groups=["g", "g", "h", "h"], group_kind="patient", ids=list("abcd")),
        reference.fold("train").select([0, 1, 2]),
    ]
    assert len({images.fingerprint() for images in [reference, *others]}) == len(others) + 1


def test_mistakes_are_named() -> None:
    with pytest.raises(DataError, match="no images found in /data by source 'test'"):
        build(paths=[], labels=[])
    with pytest.raises(DataError, match="unknown to taxonomy 'mll': ABC, XYZ"):
        build(labels=["XYZ", "BLA", "ABC", "BLA"])
    with pytest.raises(DataError, match="image ids must be unique, 1 occur more than once, such as x"):
        build(ids=["x", "x", "y", "z"])
    with pytest.raises(DataError, match=r"image paths must be unique.*such as a\.jpg"):
        build(paths=["a.jpg", "a.jpg", "b", "c"])
    with pytest.raises(DataError, match="image ids must be unique"):
        build(paths=["a.jpg", "a.png", "b", "c"])


def test_the_whole_published_set_takes_about_a_second() -> None:
    paths = [f"{code}/{code}_{n:05d}.jpg" for code, count in MLL_IMAGE_COUNTS.items() for n in range(count)]
    random.Random(0).shuffle(paths)
    labels = [path[:3] for path in paths]
    build()  # imports are not counted
    start = time.process_time()
    images = build(paths=paths, labels=labels)
    images.fingerprint()
    assert images.counts() == {code: MLL_IMAGE_COUNTS[code] for code in MLL.codes}
    seconds = time.process_time() - start
    assert seconds < 3, f"{seconds:.1f} s of CPU time; 0.7 s were usual"
