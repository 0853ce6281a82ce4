"""MLL23: folders of .TIF or one zip file for each class give one and the same table."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
import set_layouts

from cytodino_hf.data.images import read_rgb
from cytodino_hf.data.samples import CellImages
from cytodino_hf.data.sources import mll23
from cytodino_hf.errors import DataError
from cytodino_hf.other_sets import OTHER_TAXONOMIES
from cytodino_hf.taxonomy import MLL, Taxonomy

OWN = OTHER_TAXONOMIES["mll23"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CYTODINO_CACHE", str(tmp_path / "cache"))


def load(root: Path | None, taxonomy: Taxonomy = OWN) -> CellImages:
    return mll23.load(root, taxonomy, mll23.Options())


def zipped(folders: Path, target: Path) -> Path:
    target.mkdir()
    for folder in folders.iterdir():
        with zipfile.ZipFile(target / f"{folder.name}.zip", "w") as archive:
            for file in folder.iterdir():
                archive.write(file, f"{folder.name}/{file.name}")
    return target


def test_zip_files_give_what_folders_give(tmp_path: Path) -> None:
    folders = set_layouts.mll23(tmp_path / "folders")
    from_folders, from_zips = load(folders), load(root := zipped(folders, tmp_path / "zips"))
    assert from_folders.column("path") == from_zips.column("path")
    assert from_folders.column("path")[0] == "myeloblast/myeloblast_1.TIF"
    assert from_folders.fingerprint() == from_zips.fingerprint()
    np.testing.assert_array_equal(
        read_rgb(from_zips.root / "normoblast" / "normoblast_2.TIF"), set_layouts.picture(2)
    )
    # Unpacked once: a file put beside the others is still there, and no trace of the unpacking is.
    mark = from_zips.root / "normoblast" / "mark.txt"
    mark.touch()
    assert load(root).root == from_zips.root
    assert mark.is_file()
    assert sorted(entry.name for entry in from_zips.root.iterdir()) == sorted(from_zips.taxonomy.codes)


def test_labels_and_translation(tmp_path: Path) -> None:
    root = set_layouts.mll23(tmp_path / "set")
    assert load(root).counts() == {"myeloblast": 2, "normoblast": 2, "promyelocyte_atypical": 2}
    images = load(root, MLL)
    assert images.counts() == {"BLA": 2, "EBO": 2}
    assert [i.path for i in images.rejected] == ["promyelocyte_atypical"]


def test_mistakes_are_named(tmp_path: Path) -> None:
    folders = set_layouts.mll23(tmp_path / "folders")
    zips = zipped(folders, tmp_path / "zips")
    (zips / "normoblast.zip").write_bytes(b"no archive")
    with pytest.raises(DataError, match=r"normoblast\.zip"):
        load(zips)
    (zips / "normoblast.zip").rename(zips / "giants.zip")
    with pytest.raises(DataError, match=r"giants\.zip"):
        load(zips)
    (folders / "monocyte.zip").touch()
    with pytest.raises(DataError, match=r"monocyte\.zip.*unpack"):
        load(folders)
    with pytest.raises(DataError, match="Zenodo"):
        load(None)
