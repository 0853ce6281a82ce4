"""From a recipe to images with folds: bad files leave, copies stay together, and a training notices neither."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hostile
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from cytodino_hf.cli import main
from cytodino_hf.data.images import read_rgb
from cytodino_hf.data.loading import load_split, refuse_too_many_rejected
from cytodino_hf.data.pictures import pictures_of
from cytodino_hf.errors import DataError
from cytodino_hf.evaluation.predictions import Predictions
from cytodino_hf.finetune import finetune
from cytodino_hf.recipe import parse_recipe

Recipes = Callable[..., dict[str, Any]]


def loaded(document: dict[str, Any]) -> Any:
    return load_split(parse_recipe(document, source="test"))


def add_hostile_files(root: Path) -> list[str]:
    """All files that must be rejected or ignored, in both class folders; returns the rejected ones."""
    rejected = []
    for number, case in enumerate(hostile.files()):
        if case.answer not in (hostile.REJECTED, hostile.IGNORED) or not isinstance(case.name, str):
            continue
        folder = ("BLA", "LYT")[number % 2]
        (root / folder / case.name).write_bytes(case.content)
        if case.answer == hostile.REJECTED:
            rejected.append(f"{folder}/{case.name}")
    return sorted(rejected)


@pytest.fixture
def clean(tmp_path: Path, make_images: Callable[..., Path]) -> Path:
    return make_images(tmp_path / "clean", classes=("BLA", "LYT"), per_class=12)


@pytest.fixture
def dirty(clean: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(clean, tmp_path / "dirty"))


def test_a_training_on_a_tree_with_bad_files_equals_that_on_the_clean_part(
    clean: Path, dirty: Path, tiny_recipe: Recipes, tmp_path: Path
) -> None:
    """Same split, same weights bit for bit, same predictions; and the run says what it left out."""
    rejected = add_hostile_files(dirty)
    assert len(rejected) > 20
    runs = {}
    for root in (clean, dirty):
        document = tiny_recipe(root, tmp_path / f"run_{root.name}", data={"max_rejected_share": 0.9})
        runs[root.name] = finetune(parse_recipe(document, source="test")).path
    assert (runs["clean"] / "split.csv").read_bytes() == (runs["dirty"] / "split.csv").read_bytes()
    files = sorted(path.relative_to(runs["clean"]) for path in runs["clean"].rglob("*.safetensors"))
    assert len(files) > 2  # the final weights and the checkpoints
    for name in files:
        one, other = load_file(runs["clean"] / name), load_file(runs["dirty"] / name)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one), name
    one, other = (Predictions.from_parquet(run / "predictions/test.parquet") for run in runs.values())
    assert one.ids == other.ids
    assert np.array_equal(one.logits, other.logits)
    with open(runs["dirty"] / "rejected.csv", encoding="utf-8", newline="") as file:
        listed = list(csv.DictReader(file))
    assert sorted(row["path"] for row in listed) == rejected
    assert all(row["reason"] for row in listed)
    report = json.loads((runs["dirty"] / "report" / "report.json").read_text())
    assert sorted(entry["path"] for entry in report["data"]["rejected"]) == rejected
    assert (runs["clean"] / "rejected.csv").read_text() == "path,reason\n"


def test_too_many_bad_files_stop_the_run_before_it_begins(
    clean: Path, tiny_recipe: Recipes, tmp_path: Path
) -> None:
    (clean / "BLA/a.jpg").write_bytes(b"")
    (clean / "LYT/b.jpg").write_bytes(b"<html>")
    document = tiny_recipe(clean, tmp_path / "run")
    with pytest.raises(DataError) as stopped:
        finetune(parse_recipe(document, source="test"))
    message = str(stopped.value)
    # 2 of 26 files.
    for part in (
        "2 of 26",
        "data.max_rejected_share 0.01",
        "BLA/a.jpg",
        "LYT/b.jpg",
        "allow a share of 0.077",
    ):
        assert part in message
    assert not (tmp_path / "run" / "recipe.json").exists()
    allowed = tiny_recipe(clean, tmp_path / "run", data={"max_rejected_share": 2 / 26})
    assert [image.path for image in loaded(allowed).images.rejected] == ["BLA/a.jpg", "LYT/b.jpg"]


def test_the_key_of_a_share_is_the_callers(clean: Path, tiny_recipe: Recipes, tmp_path: Path) -> None:
    (clean / "BLA/a.jpg").write_bytes(b"")
    images = loaded(tiny_recipe(clean, tmp_path / "run", data={"max_rejected_share": 1.0})).images
    with pytest.raises(DataError, match=r"more than data\.sources\.cells\.max_rejected_share 0\.01 allows"):
        refuse_too_many_rejected(images, 0.01, "data.sources.cells.max_rejected_share")


def test_files_left_out_on_purpose_do_not_count(clean: Path, tiny_recipe: Recipes, tmp_path: Path) -> None:
    excluded = [f"BLA_{number:05d}" for number in range(1, 7)]
    document = tiny_recipe(clean, tmp_path, data={"source": "mll", "mll": {"exclude": excluded}})
    split = loaded(document)
    assert len(split.images.rejected) == 6
    assert sum(split.counts()[fold]["BLA"] for fold in split.counts()) == 6


def test_a_class_without_a_usable_image_is_left_out_with_a_note(
    clean: Path, tiny_recipe: Recipes, tmp_path: Path
) -> None:
    (clean / "MON").mkdir()
    (clean / "MON/MON_1.jpg").write_bytes(b"")
    split = loaded(tiny_recipe(clean, tmp_path, data={"max_rejected_share": 0.1}))
    assert split.images.taxonomy.codes == ("BLA", "LYT")
    assert "classes of which no image can be used were left out: MON" in split.notes


def test_a_set_of_bad_files_only_and_one_of_one_class(tiny_recipe: Recipes, tmp_path: Path) -> None:
    for code in ("BLA", "LYT"):
        (tmp_path / "bad" / code).mkdir(parents=True)
        (tmp_path / "bad" / code / "a.png").write_bytes(b"")
        (tmp_path / "bad" / code / "b.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"none of 4 images can be used: BLA/a\.png"):
        loaded(tiny_recipe(tmp_path / "bad", tmp_path, data={"max_rejected_share": 1.0}))
    hostile.good_tree(tmp_path / "one", ("BLA",))
    with pytest.raises(DataError, match=r"one class \(BLA\)"):
        loaded(tiny_recipe(tmp_path / "one", tmp_path))


@pytest.fixture
def copies(clean: Path) -> dict[str, str]:
    """Three copies in other files: the same bytes, the same pixels, a JPEG under the other label."""
    pairs = {"BLA/BLA_00001.png": "BLA/copy.png", "BLA/BLA_00002.png": "BLA/pixels.bmp"}
    shutil.copy(clean / "BLA/BLA_00001.png", clean / "BLA/copy.png")
    Image.open(clean / "BLA/BLA_00002.png").save(clean / "BLA/pixels.bmp")
    Image.open(clean / "LYT/LYT_00003.png").save(clean / "BLA/mixed.jpg", quality=90)
    return {**pairs, "LYT/LYT_00003.png": "BLA/mixed.jpg"}


def test_copies_share_a_fold_by_default(
    clean: Path, copies: dict[str, str], tiny_recipe: Recipes, tmp_path: Path
) -> None:
    for seed in range(6):
        split = loaded(tiny_recipe(clean, tmp_path, data={"split_seed": seed}))
        folds = dict(zip(split.images.column("path"), split.images.folds, strict=True))
        assert all(folds[one] == folds[other] for one, other in copies.items())
    assert "near-duplicates share a fold" in split.promise
    assert any("BLA/mixed.jpg (BLA) = LYT/LYT_00003.png (LYT)" in note for note in split.notes)
    assert len(split.duplicates) == 3


def test_copies_are_not_looked_for_where_the_recipe_says_so(
    clean: Path, copies: dict[str, str], tiny_recipe: Recipes, tmp_path: Path
) -> None:
    ignored = {"near_duplicates": "ignore"}
    apart = 0
    for seed in range(6):
        split = loaded(tiny_recipe(clean, tmp_path, data={**ignored, "split_seed": seed}))
        folds = dict(zip(split.images.column("path"), split.images.folds, strict=True))
        apart += sum(folds[one] != folds[other] for one, other in copies.items())
    assert apart
    assert "near-duplicates" not in split.promise
    assert any("nobody looked for near-duplicates" in note for note in split.notes)


def test_a_given_split_that_divides_copies_stops_unless_told_otherwise(
    clean: Path, copies: dict[str, str], tiny_recipe: Recipes, tmp_path: Path
) -> None:
    free = loaded(tiny_recipe(clean, tmp_path, data={"near_duplicates": "ignore"}))
    paths, folds = free.images.column("path"), list(free.images.folds)
    folds[paths.index("BLA/BLA_00001.png")], folds[paths.index("BLA/copy.png")] = "train", "test"
    rows = "\n".join(f"{path},{fold}" for path, fold in zip(paths, folds, strict=True))
    (tmp_path / "split.csv").write_text(f"path,fold\n{rows}\n")
    given = {"split": str(tmp_path / "split.csv")}
    with pytest.raises(DataError, match=r"BLA/BLA_00001\.png \(train\) and BLA/copy\.png \(test\)"):
        loaded(tiny_recipe(clean, tmp_path, data=given))
    assert (
        loaded(tiny_recipe(clean, tmp_path, data={**given, "near_duplicates": "ignore"})).images.folds
        == folds
    )


def test_a_dry_run_shows_what_was_left_out_and_what_is_there_twice(
    clean: Path,
    copies: dict[str, str],
    tiny_recipe: Recipes,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (clean / "BLA/cut.png").write_bytes((clean / "BLA/BLA_00004.png").read_bytes()[:300])
    document = tiny_recipe(clean, tmp_path / "run", data={"max_rejected_share": 0.1})
    (tmp_path / "recipe.json").write_text(json.dumps(document))
    with pytest.raises(SystemExit) as ended:
        main(["finetune", str(tmp_path / "recipe.json"), "--dry-run"])
    assert not ended.value.code
    shown = capsys.readouterr().out
    assert "BLA/cut.png: " in shown
    assert "6 images show the same picture as another one (3 clusters)" in shown
    assert "the same picture under two labels (1)" in shown
    assert not (tmp_path / "run").exists()


def test_the_second_start_looks_at_nothing_twice(
    clean: Path, tiny_recipe: Recipes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = loaded(tiny_recipe(clean, tmp_path))

    def never(file: str) -> dict[str, Any]:
        raise AssertionError(f"{file} was opened")

    monkeypatch.setattr("cytodino_hf.data.inspection.scan.look_at", never)
    again = loaded(tiny_recipe(clean, tmp_path))
    assert again.images.fingerprint() == first.images.fingerprint()


def test_files_that_are_read_in_part_are_noted(clean: Path, tiny_recipe: Recipes, tmp_path: Path) -> None:
    first, second = (hostile.cell(number, 64) for number in (1, 2))
    first.save(clean / "BLA/pages.tiff", save_all=True, append_images=[second])
    notes = loaded(tiny_recipe(clean, tmp_path)).notes
    assert any(
        note.startswith("1 image files: holds more than one") and "BLA/pages.tiff" in note for note in notes
    )


@pytest.mark.parametrize("kind", ["bytes", "pixels"])
def test_all_splits_of_a_set_read_one_kept_file(
    clean: Path, tiny_recipe: Recipes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Also those that leave images out; a row gets its own picture all the same."""
    monkeypatch.setenv("CYTODINO_CACHE", str(tmp_path / "kept"))
    names = sorted(str(path.relative_to(clean)) for path in clean.rglob("*.*"))
    rows = [f"{name},{name[:3]},{'test' if i % 4 == 0 else 'train'}" for i, name in enumerate(names) if i % 3]
    (tmp_path / "part.csv").write_text("\n".join(["path,label,fold", *rows]))
    changes: list[dict[str, Any]] = [{}, {"split_seed": 1}, {"split": str(tmp_path / "part.csv")}]
    for change in changes:
        recipe = tiny_recipe(clean, tmp_path / "out", data={"cache": kind, **change})
        recipe["training"] |= {"eval_strategy": "no", "save_strategy": "no"}
        images = loaded(recipe).images
        pictures = pictures_of(images)
        for row, path in enumerate(images.column("path")):
            np.testing.assert_array_equal(pictures.read(row), read_rgb(clean / path))
    assert len(images.labels) == len(rows) < len(names)
    assert len(list((tmp_path / "kept" / "pictures").glob("*.arrow"))) == 1
