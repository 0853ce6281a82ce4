"""Which images a probe trains on, and that none of the held-out folds is among them."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cytodino_hf.data.inspection.check import data_section
from cytodino_hf.errors import DataError
from cytodino_hf.probing.images import load_probe_images


def _section(root: Path, *overrides: str) -> tuple:
    return data_section(str(root), "image_folder", "mll", overrides)


def test_folds_and_their_rows(drawn_cells: Path) -> None:
    images = load_probe_images(*_section(drawn_cells))
    folds = {name: images.rows(name) for name in ("train", "validation", "test")}
    assert images.more is None
    assert len(images.own.sha256) == len(images.labels) == sum(map(len, folds.values()))
    for name, rows in folds.items():
        paths = images.own.images.column("path")
        assert [paths[row] for row in rows] == images.own.images.fold(name).column("path")
        assert len(rows) == sum(images.record()["images"][name].values()) > 0


def test_more_images_join_the_training_fold_without_what_is_held_out(
    drawn_cells: Path, other_cells: Path, tmp_path: Path
) -> None:
    alone = load_probe_images(*_section(drawn_cells))
    more = tmp_path / "more"
    for code in ("BLA", "KSC", "LYT"):  # the set has no KSC
        shutil.copytree(other_cells / code, more / code)
    test = alone.own.images.fold("test")
    copied, turned, train = test.column("path")[0], test.column("path")[1], alone.own.images.fold("train")
    shutil.copy(drawn_cells / copied, more / "LYT" / "copied.jpg")
    Image.open(drawn_cells / turned).rotate(90).save(more / "LYT" / "turned.png")
    shutil.copy(drawn_cells / train.column("path")[0], more / "LYT" / "of_train.jpg")
    images = load_probe_images(*_section(drawn_cells), more)
    assert images.more is not None
    added = images.more.images
    assert added.taxonomy == images.taxonomy
    assert {path.split("/")[0] for path in added.column("path")} == {"BLA", "LYT"}
    assert "LYT/of_train.jpg" in added.column("path")
    assert not {"LYT/copied.jpg", "LYT/turned.png"} & set(added.column("path"))
    codes = images.taxonomy.codes
    assert [codes[label] for label in added.labels] == [p.split("/")[0] for p in added.column("path")]
    own = len(images.own.sha256)
    assert set(range(own, own + 41)) <= set(images.rows("train").tolist())
    for fold in ("validation", "test"):
        np.testing.assert_array_equal(images.rows(fold), alone.rows(fold))
    assert images.labels[own:].tolist() == added.labels
    notes = " ".join(images.notes)
    assert "20 images of other classes were left out" in notes
    assert "2 images that show a picture of a held-out fold were left out" in notes
    assert images.record()["more"]["images"] == {**dict.fromkeys(codes, 0), "BLA": 20, "LYT": 21}


def test_more_images_of_other_classes_alone_are_refused(
    drawn_cells: Path, other_cells: Path, tmp_path: Path
) -> None:
    shutil.copytree(other_cells / "KSC", tmp_path / "more" / "KSC")
    with pytest.raises(DataError, match="no image of it can be added"):
        load_probe_images(*_section(drawn_cells), tmp_path / "more")


def test_without_a_test_fold_there_is_no_probe(drawn_cells: Path, tmp_path: Path) -> None:
    files = sorted(drawn_cells.glob("*/*/*.jpg"))
    lines = [
        f"{f.relative_to(drawn_cells).as_posix()},{f.parts[-3]},{'validation' if i % 5 == 0 else 'train'}"
        for i, f in enumerate(files)
    ]
    split = tmp_path / "split.csv"
    split.write_text("\n".join(["path,label,fold", *lines]))
    with pytest.raises(DataError, match="no image to test on"):
        load_probe_images(*_section(drawn_cells, "--data.split", str(split)))
