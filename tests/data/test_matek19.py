"""Matek19: its own labels and their traps, RGBA pixels, folders of varied copies."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import set_layouts

from cytodino_hf.data.images import read_rgb
from cytodino_hf.data.samples import CellImages
from cytodino_hf.data.sources import matek19
from cytodino_hf.errors import DataError
from cytodino_hf.other_sets import OTHER_TAXONOMIES
from cytodino_hf.taxonomy import MLL, Taxonomy

OWN = OTHER_TAXONOMIES["matek19"]


def load(root: Path | None, taxonomy: Taxonomy = OWN) -> CellImages:
    return matek19.load(root, taxonomy, matek19.Options())


def test_only_originals_are_taken(tmp_path: Path) -> None:
    images = load(set_layouts.matek19(tmp_path))
    assert images.root == tmp_path / "data" / "data"
    assert images.column("path")[:2] == ["LYT/LYT_0001.tiff", "LYT/LYT_0002.tiff"]
    assert images.counts() == {"LYT": 3, "MYB": 3, "MYO": 3}
    assert [(i.path, i.on_purpose) for i in images.rejected] == [("augmented", True)]
    assert images.group_kind is None
    assert "10.7937/tcia.2019.36f5o9ld" in images.attribution


def test_myb_is_a_myelocyte_and_myo_a_blast(tmp_path: Path) -> None:
    images = load(set_layouts.matek19(tmp_path), MLL)
    code_of = {path.split("/")[0]: MLL.subset(images.taxonomy.codes).codes[label] for path, label in zip(
        images.column("path"), images.labels, strict=True
    )}  # fmt: skip
    assert code_of == {"LYT": "LYT", "MYB": "MYB", "MYO": "BLA"}
    assert MLL.classes[MLL.index("MYB")].name == "myelocyte"


def test_a_class_without_counterpart_is_left_out_and_named(tmp_path: Path) -> None:
    root = set_layouts.matek19(tmp_path)
    set_layouts.save(root / "data" / "data" / "MOB" / "MOB_0001.tiff", 1, channels=4)
    assert "MOB" in load(root).taxonomy.codes
    images = load(root, MLL)
    left_out = {i.path: i for i in images.rejected}["MOB"]
    assert left_out.on_purpose
    assert left_out.reason == "1 images of a class without counterpart in 'mll'"


def test_the_fourth_channel_is_dropped(tmp_path: Path) -> None:
    path = set_layouts.save(tmp_path / "a.tiff", 3, channels=4)
    np.testing.assert_array_equal(read_rgb(path), set_layouts.picture(3, channels=4)[..., :3])


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"set data\.root"):
        load(None)
    root = set_layouts.matek19(tmp_path)
    with pytest.raises(DataError, match="varied copies"):
        load(root / "data" / "augmented")
    (tmp_path / "empty" / "folder").mkdir(parents=True)
    with pytest.raises(DataError, match="no class folder of matek19"):
        load(tmp_path / "empty")
    set_layouts.save(root / "data" / "data" / "XYZ" / "XYZ_0001.tiff", 1)
    for taxonomy in (OWN, MLL):
        with pytest.raises(DataError, match="XYZ"):
            load(root, taxonomy)
