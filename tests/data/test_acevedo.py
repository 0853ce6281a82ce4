"""Acevedo: the prefix of the file is the class, not the folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import set_layouts

from cytodino_hf.data.samples import CellImages
from cytodino_hf.data.sources import acevedo
from cytodino_hf.errors import DataError
from cytodino_hf.other_sets import OTHER_TAXONOMIES
from cytodino_hf.taxonomy import MLL, Taxonomy

OWN = OTHER_TAXONOMIES["acevedo"]


def load(root: Path | None, taxonomy: Taxonomy = OWN) -> CellImages:
    return acevedo.load(root, taxonomy, acevedo.Options())


def test_sub_types_come_from_the_file_name(tmp_path: Path) -> None:
    images = load(set_layouts.acevedo(tmp_path))
    two_each = ("BNE", "IG", "LY", "MMY", "MY", "NEUTROPHIL", "PLATELET", "PMY", "SNE")
    assert images.counts() == dict.fromkeys(two_each, 2)
    assert not images.rejected
    assert "CC BY 4.0" in images.attribution
    for path, label in zip(images.column("path"), images.labels, strict=True):
        assert path.split("/")[1].split("_")[0] == images.taxonomy.codes[label]


def test_translated_it_loses_what_nobody_else_has(tmp_path: Path) -> None:
    images = load(set_layouts.acevedo(tmp_path), MLL)
    assert images.counts() == dict.fromkeys(("LYT", "MMZ", "MYB", "NGB", "NGS", "PMO"), 2)
    assert [i.path for i in images.rejected] == ["IG", "NEUTROPHIL", "PLATELET"]
    assert all(i.on_purpose for i in images.rejected)


def test_a_prefix_in_the_wrong_folder_is_rejected(tmp_path: Path) -> None:
    root = set_layouts.acevedo(tmp_path)
    set_layouts.save(root / "PBC_dataset_normal_DIB" / "lymphocyte" / "MO_0001.jpg", 1)
    rejected = load(root).rejected
    assert [(i.path, i.on_purpose) for i in rejected] == [("lymphocyte/MO_0001.jpg", False)]
    assert rejected[0].reason == "a file of 'lymphocyte' begins with LY, not 'MO'"


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Mendeley"):
        load(None)
    root = set_layouts.acevedo(tmp_path)
    set_layouts.save(root / "PBC_dataset_normal_DIB" / "blasts" / "BL_0001.jpg", 1)
    with pytest.raises(DataError, match="blasts"):
        load(root)
