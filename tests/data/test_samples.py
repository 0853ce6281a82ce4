"""The table of images: columns, order, identity."""

from __future__ import annotations

import random
import time
from dataclasses import replace
from pathlib import Path

import pytest

from cytodino_hf.data.samples import FOLDS, CellImages, build_cell_images
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


def test_two_suffixes_of_one_name_stay_in_the_ids() -> None:
    images = build(paths=["a.jpg", "a.png", "b.jpg", "c/a.jpg"])
    assert images.column("id") == ["a.jpg", "a.png", "b", "c/a"]


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
    with pytest.raises(DataError, match=r"image ids must be unique.*such as a\.jpg"):
        build(paths=["a.jpg", "a.png", "a.jpg.tif", "c"])
    with pytest.raises(DataError, match="2 folds for 4 images"):
        build().with_folds(["train", "test"])
    with pytest.raises(DataError, match=r"unknown .*: Bla, XYZ.*Only the case differs: Bla for BLA\."):
        build(labels=["XYZ", "Bla", "BLA", "BLA"])


def test_a_selection_is_a_table_of_its_own_unless_it_holds_the_images() -> None:
    """A list of rows beside the whole table makes every later reading slow; copying 7 GB of images is worse."""
    from datasets import Image

    images = build(folds=["train", "train", "test", None])
    chosen = images.select([3, 0])
    assert chosen.column("path") == ["LYT/ä.tar.png", "BLA/a.b/c"]
    assert chosen.dataset[0]["image"] == {"path": "/data/LYT/ä.tar.png", "bytes": None}
    assert chosen.dataset.features == images.dataset.features
    assert chosen.dataset._indices is None
    content = [{"path": path, "bytes": path.encode()} for path in images.column("path")]
    full = images.dataset.remove_columns("image").add_column("image", content, feature=Image(decode=False))
    for set_ in (images, replace(images, dataset=full)):
        part = set_.select([3, 0]).with_folds(["test", None])
        assert part.folds == ["test", None]
        assert part.column("path") == ["LYT/ä.tar.png", "BLA/a.b/c"]
        assert part.narrowed().select([1]).narrowed().taxonomy.codes == ("BLA",)
        expected = None if set_ is images else b"BLA/a.b/c"
        assert part.dataset[1]["image"]["bytes"] == expected
    assert images.select([]).labels == []


def whole_set() -> tuple[list[str], list[str]]:
    paths = [f"{code}/{code}_{n:05d}.jpg" for code, count in MLL_IMAGE_COUNTS.items() for n in range(count)]
    random.Random(0).shuffle(paths)
    return paths, [path[:3] for path in paths]


def test_the_whole_published_set_takes_a_fraction_of_a_second() -> None:
    paths, labels = whole_set()
    build()  # imports are not counted
    start = time.process_time()
    images = build(paths=paths, labels=labels)
    images.fingerprint()
    assert images.counts() == {code: MLL_IMAGE_COUNTS[code] for code in MLL.codes}
    seconds = time.process_time() - start
    assert seconds < 3, f"{seconds:.1f} s of CPU time; 0.5 s were usual"


def test_dividing_the_whole_published_set_takes_a_fraction_of_a_second() -> None:
    images = build(**dict(zip(("paths", "labels"), whole_set(), strict=True)))
    build().select([0]).with_folds(["train"])
    start = time.process_time()
    kept = images.select([row for row in range(len(images.dataset)) if row % 1000])
    divided = kept.with_folds([FOLDS[row % 4] for row in range(len(kept.dataset))])
    parts = [divided.fold(name) for name in FOLDS]
    fingerprints = {part.fingerprint() for part in parts}
    seconds = time.process_time() - start
    assert len(fingerprints) == 4
    assert sum(len(part.labels) for part in parts) == len(kept.dataset) == 171_374 - 172
    assert seconds < 2, f"{seconds:.1f} s of CPU time; 0.4 s were usual"
