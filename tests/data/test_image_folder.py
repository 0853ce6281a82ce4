"""A user's own images: class folders and tables, and every mistake named."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from cytodino_hf.data.samples import CellImages
from cytodino_hf.data.sources import image_folder
from cytodino_hf.errors import DataError
from cytodino_hf.taxonomy import MLL, CellClass, Taxonomy


def touch(root: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    return root


def load(root: Path | None, taxonomy: Taxonomy = MLL, **options: object) -> CellImages:
    return image_folder.load(root, taxonomy, image_folder.Options(**options))


def table(root: Path, text: str, name: str = "cells.csv") -> str:
    root.mkdir(exist_ok=True)
    (root / name).write_text(text, encoding="utf-8")
    return name


def test_class_folders_with_patients_inside(tmp_path: Path) -> None:
    touch(tmp_path, "BLA/p1/1.png", "BLA/p2/1.png", "LYT/p1/deep/1.png", "LYT/p3/1.png")
    images = load(tmp_path, group_pattern=r"^[^/]+/([^/]+)/", group_kind="patient")
    assert images.column("path") == ["BLA/p1/1.png", "BLA/p2/1.png", "LYT/p1/deep/1.png", "LYT/p3/1.png"]
    assert images.groups == ["p1", "p2", "p1", "p3"]
    assert images.group_kind == "patient"


def test_folder_names_are_mapped_to_codes(tmp_path: Path) -> None:
    touch(tmp_path, "myeloblast/1.png", "lymphocyte/1.png", "LYT/2.png")
    images = load(tmp_path, label_map={"myeloblast": "BLA", "lymphocyte": "LYT"})
    assert images.counts() == {"BLA": 1, "LYT": 2}
    with pytest.raises(DataError, match="classes unknown to taxonomy 'mll': lymphocyte, myeloblast"):
        load(tmp_path)
    with pytest.raises(DataError, match="label_map names classes unknown to taxonomy 'mll': BLAST"):
        load(tmp_path, label_map={"myeloblast": "BLAST"})
    with pytest.raises(DataError, match="do not occur: monocyte"):
        load(tmp_path, label_map={"myeloblast": "BLA", "lymphocyte": "LYT", "monocyte": "MON"})


def test_the_taxonomy_of_the_user_decides(tmp_path: Path) -> None:
    own = Taxonomy("own", (CellClass("blast", "blast", "x"), CellClass("other", "other", "x")))
    touch(tmp_path, "other/1.png", "blast/1.png")
    assert load(tmp_path, own).taxonomy.codes == ("blast", "other")


def test_no_root_is_refused() -> None:
    with pytest.raises(DataError, match=r"set data\.root"):
        load(None)


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_table_gives_label_group_fold_and_id(tmp_path: Path, suffix: str) -> None:
    touch(tmp_path, "a/1.png", "a/ 2.png", "b.tif")
    columns = {
        "path": ["a/1.png", "a/ 2.png", "b.tif"],
        "label": ["BLA", "LYT", "LYT"],
        "group": ["p1", None, "p1"],
        "fold": ["train", "test", None],
        "id": ["007", "NA", "9"],
        "remark": ["any", None, "text"],
    }
    if suffix == "parquet":
        pq.write_table(pa.table(columns), tmp_path / "cells.parquet")
    else:
        rows = zip(*([cell or "" for cell in column] for column in columns.values()), strict=True)
        table(tmp_path, "\n".join(map(",".join, [list(columns), *rows])))
    images = load(tmp_path, table=f"cells.{suffix}", group_kind="slide")
    assert images.column("path") == ["a/ 2.png", "a/1.png", "b.tif"]
    assert images.column("id") == ["NA", "007", "9"]
    assert images.column("group") == [None, "p1", "p1"]
    assert images.groups == ["image:NA", "p1", "p1"]
    assert images.folds == ["test", "train", None]
    assert images.labels == [1, 0, 1]
    assert images.group_kind == "slide"


def test_a_group_column_without_a_kind_promises_little(tmp_path: Path) -> None:
    touch(tmp_path, "1.png")
    name = table(tmp_path, "Path,Label,Group\n1.png,BLA,x\n")
    assert load(tmp_path, table=name).group_kind == "group"


def test_a_table_written_by_a_spreadsheet_is_read(tmp_path: Path) -> None:
    touch(tmp_path, "a,b.png", "new\nline.png")
    text = '\ufeffpath,label\r\n"a,b.png", BLA \r\n"new\nline.png",LYT\r\n'
    (tmp_path / "cells.csv").write_bytes(text.encode())
    assert load(tmp_path, table="cells.csv").column("path") == ["a,b.png", "new\nline.png"]


def test_all_mistakes_in_the_rows_are_named_at_once(tmp_path: Path) -> None:
    touch(tmp_path, "1.png", "2.png")
    rows = ["1.png,,train", "2.png,BLA,trian", ",BLA,test", "../x.png,BLA,test", "/etc/x.png,BLA,test"]
    rows += [f"gone/{number}.png,BLA,test" for number in range(7)]
    name = table(tmp_path, "path,label,fold\n" + "\n".join(rows))
    with pytest.raises(DataError) as caught:
        load(tmp_path, table=name)
    text = str(caught.value)
    assert "1 rows without path: line 4" in text
    assert "1 rows without label: line 2" in text
    assert "1 unknown folds (allowed: train, validation, calibration, test, or empty): trian" in text
    assert f"2 paths not relative to {tmp_path}: ../x.png, /etc/x.png" in text
    assert "7 files not found" in text
    assert "gone/0.png, gone/1.png, gone/2.png, gone/3.png, gone/4.png, ..." in text
    assert "gone/5.png" not in text


TABLES = {
    "no label column": ("path,class\n1.png,BLA", "columns missing: label"),
    "semicolons": ("path;label\n1.png;BLA", "columns missing: path, label.*commas"),
    "nearly a column": (
        "path,label,groups\n1.png,BLA,x",
        "column 'groups' is not known; rename it to 'group'",
    ),
    "a column twice": ("path,label,Label\n1.png,BLA,BLA", "columns occur twice: label"),
    "a short row": ("path,label\n1.png", r"do not have 2 columns: line 2 \(1\)"),
    "an open quote": ('path,label\n"1.png,BLA', "no valid CSV"),
    "nothing": ("", "has no rows"),
    "only a header": ("path,label\n", "has no rows"),
    "an image twice": ("path,label\n1.png,BLA\n1.png,LYT", "image paths must be unique.*1.png"),
    "an id twice": ("path,label,id\n1.png,BLA,a\n2.png,LYT,a", "image ids must be unique.*such as a"),
    "an unknown label": ("path,label\n1.png,NEU", "classes unknown to taxonomy 'mll': NEU"),
}


@pytest.mark.parametrize(("text", "message"), TABLES.values(), ids=TABLES)
def test_a_table_that_cannot_be_used_says_why(tmp_path: Path, text: str, message: str) -> None:
    touch(tmp_path, "1.png", "2.png")
    with pytest.raises(DataError, match=message):
        load(tmp_path, table=table(tmp_path, text))


def test_unreadable_tables_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cells\.csv: no such file"):
        load(tmp_path, table="cells.csv")
    (tmp_path / "latin.csv").write_bytes(b"path,label\n\xff.png,BLA\n")
    with pytest.raises(DataError, match=r"latin\.csv: cannot be read as UTF-8"):
        load(tmp_path, table="latin.csv")
    (tmp_path / "no.parquet").write_bytes(b"path,label\n")
    with pytest.raises(DataError, match=r"no\.parquet: cannot be read as Parquet"):
        load(tmp_path, table="no.parquet")


def test_groups_are_asked_for_but_not_given(tmp_path: Path) -> None:
    touch(tmp_path, "BLA/1.png", "LYT/p_2.png")
    with pytest.raises(DataError, match="nothing gives groups"):
        load(tmp_path, group_kind="patient")
    with pytest.raises(DataError, match=r"finds no group in 1 of 2 paths: BLA/1\.png"):
        load(tmp_path, group_pattern=r"(p)_")
    name = table(tmp_path, "path,label,group\nBLA/1.png,BLA,a\n")
    with pytest.raises(DataError, match="leave one out"):
        load(tmp_path, table=name, group_pattern="(.)")


def test_without_labels_every_image_below_the_root_counts(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "top.PNG",
        "a/1.png",
        "a/deep/er/2.jpg",
        "b/notes.txt",
        "b/3.gif",
        ".hidden/4.png",
        "BLA/5.png",
    )
    (tmp_path / "again").symlink_to(tmp_path / "a")
    images = load(tmp_path, labels="none")
    assert images.column("path") == ["BLA/5.png", "a/1.png", "a/deep/er/2.jpg", "top.PNG"]
    assert images.counts() == {"unlabelled": 4}
    assert {image.path: image.reason for image in images.rejected} == {
        "again": "a link to a folder of the same set, not followed",
        "b/3.gif": ".gif files are not read; export the image as PNG or JPEG",
    }
    with pytest.raises(DataError, match="no images found"):
        load(tmp_path / "b", labels="none")
    with pytest.raises(DataError, match="label_map is set: leave one out"):
        load(tmp_path, labels="none", label_map={"a": "BLA"})
    with pytest.raises(DataError, match="nowhere: cannot be listed"):
        load(tmp_path / "nowhere", labels="none")


def test_without_labels_a_table_still_gives_groups_and_folds(tmp_path: Path) -> None:
    touch(tmp_path, "1.png", "2.png", "3.png")
    name = table(tmp_path, "path,group,fold\n1.png,p1,train\n2.png,p2,test\n")
    images = load(tmp_path, table=name, labels="none", group_kind="patient")
    assert (images.groups, images.folds) == (["p1", "p2"], ["train", "test"])
    assert images.counts() == {"unlabelled": 2}
    name = table(tmp_path, "path,label\n1.png,whatever\n")
    assert load(tmp_path, table=name, labels="none").counts() == {"unlabelled": 1}


@pytest.mark.parametrize("pattern", ["(", "no group"])
def test_a_pattern_without_a_group_is_refused_with_the_options(pattern: str) -> None:
    with pytest.raises(ValidationError):
        image_folder.Options(group_pattern=pattern)


@pytest.mark.real_data
def test_a_real_set_of_another_laboratory(real_data: Path) -> None:
    root = real_data / "wbc_tecom"
    with pytest.raises(DataError, match="NEU"):
        load(root)
    own = Taxonomy("wbc", tuple(CellClass(c, c, "blood") for c in ("NEU", "LYT", "MON", "EOS", "BAS")))
    assert load(root, own).counts() == {"NEU": 22, "LYT": 22, "MON": 22, "EOS": 22, "BAS": 1}
