"""Files are whole or absent."""

from __future__ import annotations

from pathlib import Path

import pytest

from cytodino_hf.files import whole_file, without_places, write_json


def test_a_file_appears_whole_and_a_failed_one_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.bin"
    with whole_file(path) as file:
        file.write(b"first")
        assert not path.exists()
    assert path.read_bytes() == b"first"

    def fail() -> None:
        with whole_file(path) as file:
            file.write(b"half")
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        fail()
    assert path.read_bytes() == b"first"
    assert [p.name for p in path.parent.iterdir()] == ["file.bin"]


def test_json_that_cannot_be_written_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"name": "Übung", "values": [1, None]})
    assert path.read_text(encoding="utf-8").endswith("]\n}\n")
    assert "Übung" in path.read_text(encoding="utf-8")
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"value": float("nan")})
    assert "Übung" in path.read_text(encoding="utf-8")


def test_what_goes_out_names_no_place_of_this_machine() -> None:
    document = {
        "root": "/data/ada/cells",
        "split": "stratified",
        "hold_out": ["C:\\Users\\ada\\held.csv", "lists/held.csv"],
        "command": [
            "pretrain",
            "--data.root=/data/ada/cells",
            "--data.root",
            "/data/ada/cells/",
            "/",
            "5 / 7",
        ],
        "steps": 3,
        "none": None,
    }
    assert without_places(document) == {
        "root": "cells",
        "split": "stratified",
        "hold_out": ["held.csv", "lists/held.csv"],
        "command": ["pretrain", "--data.root=cells", "--data.root", "cells", "/", "5 / 7"],
        "steps": 3,
        "none": None,
    }
