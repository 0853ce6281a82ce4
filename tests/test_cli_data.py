"""`cytodino data get` with the real clients, against servers on loopback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import hub_server
from kaggle_server import TOKEN, kaggle_server, zipped

from cytodino_hf.cli import main

MLL = "andrewmvd/bone-marrow-cell-classification"


def get(environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cytodino_hf", "data", "get", *words]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)


def test_mll_is_brought_with_credentials_and_then_without_anybody(tmp_path: Path) -> None:
    with kaggle_server() as kaggle:
        kaggle.needs_token = True
        kaggle.add(MLL, 1, zipped({"bone_marrow_cell_dataset/BLA/BLA_00001.jpg": b"cell"}))
        refused = get(kaggle.environment(tmp_path), "mll")
        assert refused.returncode == 1
        assert "error: Kaggle refuses" in refused.stderr
        assert "set KAGGLE_API_TOKEN" in refused.stderr
        assert "Traceback" not in refused.stderr
        done = get(kaggle.environment(tmp_path, TOKEN), "mll")
        assert done.returncode == 0, done.stderr
        folder = Path(done.stdout.strip().splitlines()[-1].partition(": ")[0])
        assert (folder / "bone_marrow_cell_dataset/BLA/BLA_00001.jpg").read_bytes() == b"cell"
        kaggle.requests.clear()
        again = get(kaggle.environment(tmp_path), "mll")
        assert again.stdout.strip().splitlines()[-1] == done.stdout.strip().splitlines()[-1]
        assert kaggle.requests == []


def test_a_set_of_the_hub_is_brought_and_offline_nobody_is_asked(tmp_path: Path, make_images: object) -> None:
    root = make_images(tmp_path / "images" / "train", per_class=2)  # type: ignore[operator]
    with hub_server() as hub:
        revision = hub.commit("me/cells", root.parent, kind="dataset")
        words = ["hub_dataset", "--data.hub_dataset.id", "me/cells", "--data.hub_dataset.revision", revision]
        cache = {"CYTODINO_CACHE": str(tmp_path / "cache")}
        done = get(hub.environment(tmp_path / "home") | cache, *words)
        assert done.returncode == 0, done.stderr
        folder = Path(done.stdout.strip().partition(": ")[0])
        assert len(list(folder.rglob("*.png"))) == 6
        hub.requests.clear()
        again = get(hub.environment(tmp_path / "home", offline=True) | cache, *words)
        assert (again.returncode, again.stdout) == (0, done.stdout)
        missing = get(hub.environment(tmp_path / "home", offline=True) | cache, "hub_dataset")
        assert missing.returncode == 1
        assert "HF_HUB_OFFLINE is set; `hf download ekim15/bone_marrow_cell_dataset" in missing.stderr
        assert hub.requests == []


def test_a_source_that_downloads_nothing_names_those_that_do(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["data", "get", "image_folder"])
    assert stop.value.code == 1
    assert "sources that do: mll, hub_dataset" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        main(["data", "get", "kaggle"])
    assert stop.value.code == 2
    assert "unknown; sources are" in capsys.readouterr().err
