"""The images of a study: more in the training fold, or fewer of some classes, and no other fold touched."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from benchmarks.quality.images import load_images, natural_counts
from cytodino_hf.errors import CytoDinoError, DataError
from cytodino_hf.recipe import parse_recipe


def test_natural_ratios_are_those_of_the_full_set() -> None:
    """120 images of each of seven classes; the ratios by hand from the published counts."""
    published = {
        "BLA": 11973,
        "EOS": 5883,
        "LYT": 26242,
        "MON": 4040,
        "NGS": 29424,
        "NIF": 3538,
        "PMO": 11994,
    }
    found = natural_counts(dict.fromkeys(published, 120))
    assert found == {"BLA": 49, "EOS": 24, "LYT": 107, "MON": 16, "NGS": 120, "NIF": 14, "PMO": 49}
    # A class that is rarer than ten keeps ten; one that has fewer keeps all.
    assert natural_counts({"NGS": 300, "BAS": 50, "ABE": 20, "FGC": 4}) == {
        "NGS": 300, "BAS": 10, "ABE": 10, "FGC": 4,
    }  # fmt: skip
    with pytest.raises(CytoDinoError, match="XYZ"):
        natural_counts({"NGS": 3, "XYZ": 3})


def test_a_thinned_study_thins_the_training_fold_alone(images: Path, more: Path, tmp_path: Path) -> None:
    counts = {"BLA": 300, "LYT": 100, "NGS": 600}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("benchmarks.quality.images.FEWEST_OF_A_CLASS", 1)
        patch.setattr("benchmarks.quality.images.MLL_IMAGE_COUNTS", counts)
        plain = load_images(images, images / "split.csv", (), tmp_path / "a")
        found = load_images(images, images / "split.csv", (more,), tmp_path / "b", natural_ratios=True)
        again = load_images(images, images / "split.csv", (more,), tmp_path / "c", natural_ratios=True)
    # 6 of a class for training and 4 more: 6 of NGS leave 3 and 1, 10 leave 5 and 2 (1.67).
    assert found.train_classes() == {"BLA": 3, "LYT": 1, "NGS": 6}
    larger = found.of(with_more=True).images
    assert larger.fold("train").counts() == {"BLA": 5, "LYT": 2, "NGS": 10}
    for fold in ("validation", "calibration", "test"):
        assert found.counts()[fold] == plain.counts()[fold]
    smaller = set(found.plain.images.fold("train").column("id"))
    assert smaller < set(larger.fold("train").column("id"))
    assert smaller < set(plain.plain.images.fold("train").column("id"))
    # More images come in only where the set's own are used up.
    assert sum(name.startswith("more") for name in larger.fold("train").column("id")) == 4
    assert again.plain.images.fingerprint() == found.plain.images.fingerprint()
    assert plain.plain.images.fingerprint() != found.plain.images.fingerprint()


def test_more_images_join_the_training_fold_and_no_other(images: Path, more: Path, tmp_path: Path) -> None:
    from cytodino_hf.data.loading import load_split

    plain = load_images(images, images / "split.csv", (), tmp_path)
    found = load_images(images, images / "split.csv", (more,), tmp_path)
    assert (found.counts()["more"], found.train_of(True), found.train_of(False)) == (12, 30, 18)
    document = {
        "data": dict(found.of(with_more=True).section),
        "model": {"backbone": "a/b"},
        "training": {"output_dir": "x"},
    }
    split = load_split(parse_recipe(document, source="test"))
    ids, folds, paths = (split.images.column(name) for name in ("id", "fold", "path"))
    by_id = dict(zip(ids, folds, strict=True))
    assert {by_id[name] for name in ids if name.startswith("more")} == {"train"}
    assert sum(name.startswith("more") for name in ids) == 12
    assert all((split.images.root / path).is_file() for path in paths)
    assert split.images.fingerprint() == found.of(with_more=True).images.fingerprint()
    # Every image of the set itself has the id and the fold it has without more images.
    own = dict(zip(plain.plain.images.column("id"), plain.plain.images.folds, strict=True))
    assert {name: fold for name, fold in by_id.items() if not name.startswith("more")} == own


def test_more_images_that_show_a_test_image_are_refused(images: Path, more: Path, tmp_path: Path) -> None:
    leak = tmp_path / "leak"
    shutil.copytree(more, leak)
    shutil.copy(images / "LYT" / "LYT_00003.png", leak / "LYT" / "LYT_00099.png")
    with pytest.raises(DataError, match="LYT_00003"):
        load_images(images, images / "split.csv", (leak,), tmp_path)
    with pytest.raises(CytoDinoError, match="lies in the set that is tested"):
        load_images(images, images / "split.csv", (images,), tmp_path)
    with pytest.raises(CytoDinoError, match="--more"):
        load_images(images, images / "split.csv", (), tmp_path).of(with_more=True)
