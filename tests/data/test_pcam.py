"""PCam: patches out of HDF5 files, one at a time, in workers that were forked or spawned."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import set_layouts
import torch
from torch.utils.data import DataLoader

from cytodino_hf.data import hdf5_pictures
from cytodino_hf.data.cache import pack_images
from cytodino_hf.data.dataset import CellDataset, collate
from cytodino_hf.data.images import read_rgb
from cytodino_hf.data.inspection.scan import scan_images
from cytodino_hf.data.samples import CellImages
from cytodino_hf.data.sources import pcam
from cytodino_hf.errors import DataError
from cytodino_hf.model.image_processing_cytodino import CytoDinoImageProcessor
from cytodino_hf.other_sets import OTHER_TAXONOMIES
from cytodino_hf.taxonomy import MLL, Taxonomy

OWN = OTHER_TAXONOMIES["pcam"]
TRAIN_X = "camelyonpatch_level_2_split_train_x.h5"
TRAIN_Y = "camelyonpatch_level_2_split_train_y.h5"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CYTODINO_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return set_layouts.pcam(tmp_path / "pcam")


def load(root: Path | None, taxonomy: Taxonomy = OWN) -> CellImages:
    return pcam.load(root, taxonomy, pcam.Options())


def rewrite(path: Path, name: str, values: np.ndarray) -> None:
    path.unlink()
    with h5py.File(path, "w") as file:
        file[name] = values


def test_labels_folds_and_names(root: Path) -> None:
    images = load(root)
    assert images.counts() == {"normal": 9, "tumour": 9}
    row = images.column("id").index("valid-000003")
    assert images.column("path")[row] == "camelyonpatch_level_2_split_valid_x.h5/000003"
    assert images.folds[row] == "validation"
    assert images.taxonomy.codes[images.labels[row]] == "tumour"
    assert sorted(set(images.folds)) == ["test", "train", "validation"]
    assert images.groups is None
    assert load(root.parent).root == root


def test_a_patch_is_read_when_it_is_asked_for(root: Path) -> None:
    """Indexing opens the arrays but reads none of their pictures; a picture is the array's own, bit for bit."""
    images = load(root)
    (root / TRAIN_X).write_bytes(b"")
    np.testing.assert_array_equal(
        read_rgb(images.root / "camelyonpatch_level_2_split_test_x.h5/000002"), set_layouts.picture(202, 96)
    )
    with pytest.raises(DataError, match=f"{TRAIN_X}: cannot be read as HDF5"):
        read_rgb(images.root / TRAIN_X / "000000")
    with pytest.raises(DataError, match="no such file"):
        read_rgb(images.root / TRAIN_Y / "no_number")
    with pytest.raises(DataError, match="no picture can be read there"):
        read_rgb(images.root / "camelyonpatch_level_2_split_test_x.h5/000099")


def test_the_scan_sees_patches_as_files(root: Path) -> None:
    scan = scan_images(load(root))
    assert scan.rejected() == {}
    assert set(scan.column("width")) == {96}
    assert len(set(scan.column("pixel_sha256"))) == 18


@pytest.mark.skipif(sys.platform != "linux", reason="forks on Linux only")
def test_forked_workers_read_the_same_patches(root: Path) -> None:
    """After this process has the files open, as in a training: each worker opens them for itself."""
    dataset = CellDataset(load(root), CytoDinoImageProcessor(size={"height": 96, "width": 96}))
    wanted = [dataset.pixels(row) for row in range(len(dataset))]
    assert {pid for pid, *_ in hdf5_pictures._OPEN} == {os.getpid()}
    loader = DataLoader(dataset, 3, num_workers=2, collate_fn=collate, multiprocessing_context="fork")
    found = torch.cat([batch["pixel_values"] for batch in loader]).permute(0, 2, 3, 1).numpy()
    np.testing.assert_array_equal(found, np.stack(wanted))


def test_what_goes_to_a_spawned_worker_holds_no_file(root: Path) -> None:
    """A handle cannot be pickled; a fresh process opens the file for itself."""
    dataset = CellDataset(load(root), CytoDinoImageProcessor(size={"height": 96, "width": 96}))
    wanted = dataset.pixels(4)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(dataset)).pixels(4), wanted)
    file, row = (
        str(root / "camelyonpatch_level_2_split_test_x.h5"),
        4,
    )  # the paths are sorted: test comes first
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        np.testing.assert_array_equal(pool.apply(hdf5_pictures.read_picture, (file, row)), wanted)


def test_no_second_copy_is_made(root: Path) -> None:
    with pytest.raises(DataError, match=r"data\.cache to 'none'"):
        pack_images(load(root), "pixels")


def test_mistakes_are_named(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"data\.taxonomy to 'pcam'"):
        load(root, MLL)
    with pytest.raises(DataError, match="pcam"):
        load(None)
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed" / f"{TRAIN_X}.gz").touch()
    with pytest.raises(DataError, match="gunzip"):
        load(tmp_path / "packed")
    rewrite(root / TRAIN_Y, "y", np.zeros((5, 1, 1, 1), np.uint8))
    with pytest.raises(DataError, match=f"6 patches, but 5 labels in {TRAIN_Y}"):
        load(root)
    rewrite(root / TRAIN_Y, "y", np.full((6, 1, 1, 1), 7, np.uint8))
    with pytest.raises(DataError, match=r"0 and 1, found \[7\]"):
        load(root)
    rewrite(root / TRAIN_Y, "labels", np.zeros(6))
    with pytest.raises(DataError, match="holds no 'y'"):
        load(root)
    (root / TRAIN_Y).unlink()
    with pytest.raises(DataError, match="missing beside"):
        load(root)
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(DataError, match=r"pip install 'cytodino-hf\[pcam\]'"):
        hdf5_pictures.open_hdf5(root / TRAIN_X)
