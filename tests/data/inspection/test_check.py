"""`cytodino data check`: every kind of folder gets a clear answer, the page is whole and safe."""

from __future__ import annotations

import html
import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import hostile
import numpy as np
import pytest
from PIL import Image

from cytodino_hf.cli import main
from cytodino_hf.data.inspection.check import SetCheck, check_image_set, data_section, write_check
from cytodino_hf.data.inspection.check_page import render_check
from cytodino_hf.errors import DataError, RecipeError

SCRIPT = "<script>alert(1)<script>.jpg"


def checked(root: Path, *overrides: str, source: str = "image_folder") -> SetCheck:
    section, options = data_section(str(root), source, "mll", overrides)
    return check_image_set(section, options)


def cells(root: Path, counts: dict[str, int]) -> Path:
    """Drawn cells, all different."""
    number = 0
    for code, count in counts.items():
        (root / code).mkdir(parents=True)
        for i in range(count):
            hostile.cell(number := number + 1, 64).save(root / code / f"{code}_{i:05d}.png")
    return root


@pytest.fixture(scope="module")
def dirty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve good cells, what is wrong with nine other files, and awkward names."""
    root = cells(tmp_path_factory.mktemp("dirty") / "set", {"BLA": 6, "LYT": 6})
    shutil.copy(root / "BLA/BLA_00000.png", root / "LYT/a&b<c>.png")
    shutil.copy(root / "BLA/BLA_00001.png", root / "BLA/=1+1.png")
    Image.open(root / "LYT/LYT_00002.png").save(root / "LYT/again.jpg", quality=80)
    (root / "BLA" / SCRIPT).write_bytes(b"no picture")
    (root / "LYT/empty.png").write_bytes(b"")
    hostile.cell(40, 64).resize((200, 40)).save(root / "LYT/flat.png")
    (root / "LYT/notes.txt").write_text("notes")
    (root / ".hidden.jpg").write_bytes(b"x")
    (root / "beside.png").write_bytes((root / "BLA/BLA_00003.png").read_bytes())
    return root


def test_a_good_set_is_usable(tmp_path: Path) -> None:
    report = checked(cells(tmp_path / "set", {"BLA": 8, "LYT": 6})).report
    assert report["usable"]
    assert report["problems"] == []
    assert report["images"] == 14
    assert [(row["code"], row["images"], row["readable"], row["rejected"]) for row in report["classes"]] == [
        ("BLA", 8, 8, 0), ("LYT", 6, 6, 0),
    ]  # fmt: skip
    assert report["duplicates"]["clusters"] == []
    assert report["sizes"] == {"counts": [{"width": 64, "height": 64, "images": 14}], "odd": []}


def test_everything_that_is_wrong_is_named(dirty: Path) -> None:
    report = checked(dirty).report
    assert {entry["path"] for entry in report["rejected"]} == {f"BLA/{SCRIPT}", "LYT/empty.png", "beside.png"}
    assert [(row["code"], row["images"], row["readable"], row["rejected"]) for row in report["classes"]] == [
        ("BLA", 8, 7, 1), ("LYT", 10, 9, 1),
    ]  # fmt: skip
    found = report["duplicates"]
    assert [(entry["labels"], entry["kinds"]) for entry in found["clusters"]] == [
        (["BLA", "LYT"], ["file"]), (["BLA"], ["file"]), (["LYT"], ["near"]),
    ]  # fmt: skip
    assert found["clusters_across_classes"] == 1
    assert found["clusters_in_one_class"] == 2
    assert found["pairs"] == {"file": 2, "near": 1}
    assert {image["path"] for image in found["clusters"][0]["images"]} == {
        "BLA/BLA_00000.png",
        "LYT/a&b<c>.png",
    }
    assert report["sizes"]["odd"] == [{"path": "LYT/flat.png", "width": 200, "height": 40}]
    assert report["ignored"] == {".txt": 1, "hidden": 1}
    # 3 of 19 files with an image's name.
    assert not report["usable"]
    assert "3 of 19" in report["problems"][0]
    assert checked(dirty, "--data.max_rejected_share", "0.2").report["usable"]


def test_stain_and_outliers_by_numpy(tmp_path: Path) -> None:
    """Grey pictures: all stains and the brightness follow from the grey value; two of 42 are far off."""
    rng = np.random.default_rng(0)
    means = {}
    for code, level in {"BLA": 150, "LYT": 100}.items():
        (tmp_path / "set" / code).mkdir(parents=True)
        for i in range(21):
            base = level + rng.normal(0, 3) + (90 if i == 20 else 0)
            picture = np.clip(rng.normal(base, 12, (32, 32, 1)).repeat(3, 2), 0, 255).astype(np.uint8)
            Image.fromarray(picture).save(tmp_path / "set" / code / f"{i:02d}.png")
            means[f"{code}/{i:02d}.png"] = picture.mean()
    report = checked(tmp_path / "set").report
    for row in report["classes"]:
        values = [value for path, value in means.items() if path.startswith(row["code"])]
        expected = np.percentile(values, [5, 50, 95])
        assert [row["brightness"][key] for key in ("p5", "median", "p95")] == pytest.approx(
            expected, rel=1e-5
        )
    assert {entry["path"] for entry in report["outliers"]} == {"BLA/20.png", "LYT/20.png"}
    for entry in report["outliers"]:
        if entry["measure"] == "brightness":
            values = np.array([v for path, v in means.items() if path.startswith(entry["label"])])
            distance = np.abs(values - np.median(values))
            expected = distance[20] / (1.4826 * np.median(distance))
            assert entry["deviations"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda root: root.mkdir(), "no images found"),
        (lambda root: None, "No such file"),
        (lambda root: hostile.good_tree(root, ("BLA",)), "one class"),
        (lambda root: hostile.put(root, "XYZ/a.jpg", "BLA/b.jpg"), "XYZ"),
        (lambda root: hostile.put(root, "BLA/a.jpg", "LYT/b.jpg", content=b""), "none of 2"),
        (lambda root: hostile.good_tree(root / "a" / "b"), "set data.root to"),
    ],
    ids=["empty", "missing", "one class", "unknown class", "all bad", "further down"],
)
def test_any_folder_gets_a_clear_answer(
    tmp_path: Path, make: Callable[[Path], Any], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path / "set")
    with pytest.raises(SystemExit) as ended:
        main(["data", "check", str(tmp_path / "set"), "--out", str(tmp_path / "out")])
    assert ended.value.code == 1
    report = json.loads((tmp_path / "out/data_report.json").read_text())
    assert not report["usable"]
    assert problem in report["problems"][0]
    assert problem in capsys.readouterr().err
    assert html.escape(problem) in (tmp_path / "out/data_report.html").read_text()


class Page(HTMLParser):
    """Every address and every tag of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.addresses += [
            value or "" for name, value in attrs if name in ("src", "href", "srcset", "action")
        ]
        assert not any(name.startswith("on") for name, _ in attrs)


def test_the_page_asks_for_nothing_and_runs_nothing(dirty: Path, tmp_path: Path) -> None:
    check = checked(dirty)
    page = write_check(check, tmp_path / "new" / "out")
    text = page.read_text()
    parser = Page()
    parser.feed(text)
    assert "script" not in parser.tags
    assert all(address.startswith(("data:image/jpeg;base64,", "#")) for address in parser.addresses)
    assert "default-src 'none'" in text
    assert "a&amp;b&lt;c&gt;.png" in text
    assert "a&b<c>" not in text
    # The pictures of a cluster, of the classes and of the rejected: all classes and clusters are shown.
    assert sum(address.startswith("data:") for address in parser.addresses) >= 7 + 9 + 6
    targets = {address[1:] for address in parser.addresses if address.startswith("#")}
    assert targets <= set(re.findall(r'id="([^"]+)"', text))
    written = json.loads((tmp_path / "new/out/data_report.json").read_text())
    assert written == check.report
    assert render_check(checked(dirty)) == text  # the same folder gives the same page


def test_a_cluster_of_many_shows_each_label(tmp_path: Path) -> None:
    root = cells(tmp_path / "set", {"BLA": 4, "LYT": 4})
    for i in range(9):
        shutil.copy(root / "BLA/BLA_00000.png", root / f"BLA/copy{i}.png")
    shutil.copy(root / "BLA/BLA_00000.png", root / "LYT/last.png")
    check = checked(root)
    assert check.report["duplicates"]["images"] == 11
    assert 'title="LYT/last.png"' in render_check(check).split('id="duplicates"')[1].split('id="rejected"')[0]


def test_options_of_the_source_are_those_of_a_recipe(tmp_path: Path) -> None:
    hostile.put(tmp_path / "set", "blasts/a.jpg", "blasts/b.jpg", "lymph/c.jpg", "lymph/d.jpg", "lymph/e.jpg")
    mapped = ("--data.image_folder.label_map", '{"blasts": "BLA", "lymph": "LYT"}')
    report = checked(
        tmp_path / "set", *mapped, "--data.fractions", '{"train": 0.5, "validation": 0.5}'
    ).report
    assert [row["code"] for row in report["classes"]] == ["BLA", "LYT"]
    table = "path,label,fold\nblasts/a.jpg,BLA,train\nlymph/c.jpg,LYT,train\nlymph/d.jpg,LYT,validation\n"
    (tmp_path / "set/cells.csv").write_text(table)
    shutil.copy(tmp_path / "set/lymph/c.jpg", tmp_path / "set/lymph/d.jpg")
    report = checked(
        tmp_path / "set", "--data.image_folder.table", "cells.csv", "--data.split", "source"
    ).report
    assert "divides 1 clusters" in report["problems"][0]
    assert report["ignored"] == {".csv": 1, "images that no table names, or in a folder that is skipped": 2}


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--data.splitt", "source"], "did you mean 'split'"),
        (["--source", "mml"], "unknown; sources are"),
        (["--training.seed", "3"], "only keys of `data`"),
        (["--data.max_rejected_share", "7"], "max_rejected_share"),
    ],
)
def test_mistakes_on_the_command_line_are_named(
    tmp_path: Path, arguments: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["data", "check", str(tmp_path), "--out", str(tmp_path / "out"), *arguments])
    assert ended.value.code == RecipeError.exit_code
    assert problem in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="--out"):
        write_check(checked(tmp_path), tmp_path / "file")


@pytest.mark.real_data
@pytest.mark.parametrize("name", ["mll7", "mll7_more"])
def test_real_sets_are_usable(real_data: Path, name: str) -> None:
    report = checked(real_data / name, source="mll").report
    assert report["usable"]
    assert report["duplicates"]["clusters"] == []
    assert report["rejected"] == []
    assert len(report["classes"]) == 7
