"""The scan before a push: every seeded leak is found and its place named; clean files raise no alarm."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.numpy import save_file

from cytodino_hf.errors import LeakError
from cytodino_hf.publishing.leaks import find_leaks, refuse_leaks

PACKAGE = Path(__file__).parent.parent.parent / "cytodino_hf"
# Put together here, so that no scanner takes this file for a leak.
TOKEN = "hf_" + "aBcDeFgHiJkLmNoPqRsT"
SEEDS = {
    "hub token": (f'{{"hub_token": "{TOKEN}"}}', "secret"),
    "github token": ("see ghp_" + "a1B2" * 9, "secret"),
    "cloud key": ("AKIA" + "ABCDEFGHIJKLMNOP", "secret"),
    "private key": ("-----BEGIN RSA " + "PRIVATE KEY-----", "secret"),
    "password": ('password = "correct1horse2battery"', "secret"),
    "address with password": ("https://ada:s3cret@example.org/x", "secret"),
    "unix path": ('{"root": "/data/ada/cells"}', "absolute path"),
    "home": ("--data.root=/home", "absolute path"),
    "windows path": ('{"root": "C:\\\\Users\\\\ada"}', "absolute path"),
    "share": (r"read from \\fileserver\cells", "absolute path"),
    "file address": ("file:///x", "absolute path"),
    "host": ("trained on gpu07.klinik.local", "host name"),
    "address": ("node 192.168.4.17", "host name"),
    "mail": ("ask ada.lovelace@klinik.example", "person"),
    "patient number": ("Patient-ID: 0048213", "patient"),
    "patient file": ("smears/patient_07/cell.png", "patient"),
    "record number": ("MRN 8841207", "patient"),
    "patient name": ("Patient: Schmidt", "patient"),
    "dicom name": ("SCHMIDT^ERIKA", "patient"),
    "birth": ("geb. 03.04.1961", "patient"),
}


@pytest.mark.parametrize("name", SEEDS)
def test_each_seeded_leak_is_found_where_it_is(tmp_path: Path, name: str) -> None:
    text, kind = SEEDS[name]
    file = tmp_path / "notes.json"
    file.write_text(f"clean\n{text}\nclean\n")
    found = find_leaks({"notes.json": file})
    assert kind in {leak.kind for leak in found}, found
    assert {(leak.file, leak.place) for leak in found} == {("notes.json", "line 2")}


def test_a_secret_is_not_repeated_in_the_message(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(f'{{"a": "{TOKEN}"}}')
    with pytest.raises(
        LeakError, match=r"(?s)nothing was sent.*config\.json, line 1: secret 'hf_aBc\.\.\.'"
    ) as refused:
        refuse_leaks({"config.json": tmp_path / "config.json"})
    assert TOKEN not in str(refused.value)


def test_names_of_files_are_looked_at(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("")
    assert [leak.place for leak in find_leaks({"patient_0042/x": tmp_path / "x"})] == ["its name"]


def test_this_machine_and_its_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "gpu-node-17")
    monkeypatch.setenv("LAB_API_KEY", "plainwordsonly")
    file = tmp_path / "a.txt"
    file.write_text("by GPU-node-17\nwith plainwordsonly\nfree of both: gpu-node-171\n")
    assert [(leak.place, leak.kind) for leak in find_leaks({"a.txt": file})] == [
        ("line 1", "host name"),
        ("line 2", "secret"),
    ]
    monkeypatch.setattr(socket, "gethostname", lambda: "demo")
    file.write_text("the demo of a demo\nssh://demo\n")
    assert [(leak.place, leak.kind) for leak in find_leaks({"a.txt": file})] == [("line 2", "host name")]


def test_what_cameras_and_programs_write_into_pictures(tmp_path: Path) -> None:
    image = Image.fromarray(np.zeros((8, 8, 3), np.uint8))
    exif = Image.Exif()
    exif[0x013B] = "Erika Schmidt"  # Artist
    image.save(tmp_path / "a.jpg", exif=exif)
    info = PngInfo()
    info.add_text("Patient", "Erika Schmidt")
    image.save(tmp_path / "b.png", pnginfo=info)
    image.save(tmp_path / "c.png", exif=exif)
    image.save(tmp_path / "clean.png", dpi=(96, 96))
    found = find_leaks({p.name: p for p in sorted(tmp_path.iterdir())})
    assert [(leak.file, leak.place, leak.text) for leak in found] == [
        ("a.jpg", "EXIF Artist", "Erika Schmidt"),
        ("b.png", "text Patient", "Erika Schmidt"),
        ("c.png", "EXIF Artist", "Erika Schmidt"),
    ]


def test_the_header_of_weights(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file({"head.weight": np.zeros(3, np.float32)}, file, metadata={"from": "/scratch/ada/run"})
    assert [leak.place for leak in find_leaks({"model.safetensors": file})] == ["metadata of its header"] * 2


def test_files_of_the_project_raise_no_alarm() -> None:
    embedded = {p.name: p for p in (PACKAGE / "embedded").iterdir()}
    code = {p.name: p for p in (PACKAGE / "model").glob("*.py")}
    recipes = {p.name: p for p in (PACKAGE.parent / "recipes").glob("*.json")}
    assert find_leaks(embedded | code | recipes) == []


def test_harmless_text_raises_no_alarm(tmp_path: Path) -> None:
    file = tmp_path / "README.md"
    harmless = [
        "by patient: no patient is in two folds; 80 patients", "https://doi.org/10.7937/TCIA.AXH3-T579",
        "TRIPOD+AI/CLAIM, and/or, 3/4, a / b, mean/std", "opencv 5.0.0.93, torch 2.13.0+cpu",
        "BLA/0001-1000/BLA_00002, sha256 " + "a1" * 32, '"bos_token_id": null, "token": null',
        "</b> <br/> ![matrix](confusion_matrix.png)", json.dumps({"patients": 800}), "runs/demo, recipes/demo.json",
    ]  # fmt: skip
    file.write_text("\n".join(harmless))
    assert find_leaks({"README.md": file}) == []
