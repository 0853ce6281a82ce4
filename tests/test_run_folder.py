"""Which runs may go on in a RUN: images and lists may lie elsewhere, what they hold may not change."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cytodino_hf.data.loading import load_split
from cytodino_hf.errors import RunFolderError
from cytodino_hf.finetune import _begin
from cytodino_hf.recipe import Recipe, parse_recipe
from cytodino_hf.run_folder import RunFolder

Documents = Callable[..., dict[str, Any]]


class Values:
    """A recipe of one key."""

    def __init__(self, name: str, value: Any) -> None:
        self.document: dict[str, Any] = {}
        *sections, key = name.split(".")
        inner = self.document
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[key] = value

    def to_dict(self) -> dict[str, Any]:
        return self.document


class Data:
    """Images with a fingerprint, and how often they were asked for."""

    def __init__(self, fingerprint: str) -> None:
        self.print, self.looks = fingerprint, 0

    def fingerprint(self) -> str:
        return self.print

    def write_lists(self, folder: Path) -> None:
        pass

    def load(self) -> Data:
        self.looks += 1
        return self


@pytest.mark.parametrize(
    ("name", "then", "now"),
    [
        ("data.root", "a", "b"),
        ("data.split", "a/split.csv", "b/other.csv"),
        ("data.image_folder.table", "a.csv", "/b/a.csv"),
        ("data.hold_out", ["a.csv"], ["b.csv"]),
        ("data.sources.x.root", "a", "b"),
        ("data.sources.x.split", "a.csv", "b.csv"),
        ("data.sources.x.image_folder.table", "a.csv", "b.csv"),
        ("probe.root", "a", "b"),
        ("probe.split", "a.csv", "b.csv"),
    ],
)
def test_a_place_may_change_as_long_as_the_data_do_not(
    tmp_path: Path, name: str, then: Any, now: Any
) -> None:
    run, same, other = RunFolder(tmp_path / "run"), Data("same"), Data("other")
    run.begin(Values(name, then), same)
    assert not run.is_finished_with(Values(name, now), other.load)
    run.begin(Values(name, now), same)
    with pytest.raises(RunFolderError, match="other data"):
        run.check(Values(name, now), "other")
    run.finish()
    assert run.is_finished_with(Values(name, now), other.load)
    assert run.is_finished_with(Values(name, then), same.load)
    assert (same.looks, other.looks) == (1, 0)
    with pytest.raises(RunFolderError, match="other data"):
        run.is_finished_with(Values(name, then), other.load)


@pytest.mark.parametrize(
    ("name", "then", "now"),
    [
        ("data.split", "stratified", "a.csv"),
        ("data.split", "a.csv", "source"),
        ("data.sources.x.split", None, "a.csv"),
        ("probe.split", "stratified", "source"),
        ("data.image_folder.table", None, "a.csv"),
        ("data.taxonomy", "a.json", "b.json"),
        ("model.split", "a.csv", "b.csv"),
    ],
)
def test_another_way_is_another_run(tmp_path: Path, name: str, then: Any, now: Any) -> None:
    run = RunFolder(tmp_path / "run")
    run.begin(Values(name, then), Data("same"))
    with pytest.raises(RunFolderError, match="another recipe"):
        run.check(Values(name, now), "same")


def test_a_fine_tuning_goes_on_where_images_and_split_were_moved(
    make_images: Callable[..., Path], tiny_recipe: Documents, tmp_path: Path
) -> None:
    root = make_images(tmp_path / "first" / "images", per_class=10)
    document = tiny_recipe(root, tmp_path / "run")
    load_split(recipe(document)).to_csv(tmp_path / "first" / "split.csv")
    document["data"]["split"] = str(tmp_path / "first" / "split.csv")
    with RunFolder(tmp_path / "run") as run:
        begun = _begin(recipe(document), run)
    assert begun is not None
    shutil.move(tmp_path / "first", tmp_path / "second")
    document["data"] |= {
        "root": str(tmp_path / "second" / "images"),
        "split": str(tmp_path / "second" / "split.csv"),
    }
    with RunFolder(tmp_path / "run") as run:
        moved = _begin(recipe(document), run)
        assert moved is not None
        assert moved.fingerprint() == begun.fingerprint()
        run.finish()
        assert _begin(recipe(document), run) is None
    kept = json.loads((tmp_path / "run" / "recipe.json").read_text())
    assert kept["data"]["split"] == document["data"]["split"]
    # Another list under another name: neither this run nor a finished one.
    lines = (tmp_path / "second" / "split.csv").read_text().splitlines(keepends=True)
    row = next(number for number, line in enumerate(lines) if ",train," in line)
    lines[row] = lines[row].replace(",train,", ",test,")
    (tmp_path / "other.csv").write_text("".join(lines))
    document["data"]["split"] = str(tmp_path / "other.csv")
    with RunFolder(tmp_path / "run") as run, pytest.raises(RunFolderError, match="other data"):
        _begin(recipe(document), run)


def recipe(document: dict[str, Any]) -> Recipe:
    return parse_recipe(document, source="test")
