"""`cytodino data get` with the real clients, against servers on loopback."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hub_server import hub_server
from kaggle_server import TOKEN, kaggle_server, zipped

from cytodino_hf.cli import main

MLL = "andrewmvd/bone-marrow-cell-classification"


@pytest.fixture
def get(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """What `cytodino data get` says: exit code, last line of stdout, stderr."""

    def run(*words: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(["data", "get", *words])
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out.strip().rpartition("\n")[2], said.err

    return run


def test_mll_is_brought_with_credentials_and_then_without_anybody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, get: Callable[..., tuple[int, str, str]]
) -> None:
    def as_user(token: str | None) -> None:
        for name, value in kaggle.environment(tmp_path, token).items():
            monkeypatch.setenv(name, value)

    with kaggle_server() as kaggle:
        kaggle.needs_token = True
        kaggle.add(MLL, 1, zipped({"bone_marrow_cell_dataset/BLA/BLA_00001.jpg": b"cell"}))
        as_user(None)
        code, _, said = get("mll")
        assert code == 1
        assert "error: Kaggle refuses" in said
        assert "set KAGGLE_API_TOKEN" in said
        assert "Traceback" not in said
        as_user(TOKEN)
        code, line, said = get("mll")
        assert code == 0, said
        folder = Path(line.partition(": ")[0])
        assert (folder / "bone_marrow_cell_dataset/BLA/BLA_00001.jpg").read_bytes() == b"cell"
        kaggle.requests.clear()
        as_user(None)
        assert get("mll")[:2] == (0, line)
        assert kaggle.requests == []


def test_a_set_of_the_hub_is_brought_and_offline_nobody_is_asked(
    tmp_path: Path, cells: Path, monkeypatch: pytest.MonkeyPatch, get: Callable[..., tuple[int, str, str]]
) -> None:
    root = shutil.copytree(cells, tmp_path / "images" / "train").parent
    with hub_server() as hub:
        revision = hub.commit("me/cells", root, kind="dataset")
        words = ["hub_dataset", "--data.hub_dataset.id", "me/cells", "--data.hub_dataset.revision", revision]
        monkeypatch.setenv("CYTODINO_CACHE", str(tmp_path / "cache"))
        hub.asked_from_here(monkeypatch, tmp_path)
        code, line, said = get(*words)
        assert code == 0, said
        assert len(list(Path(line.partition(": ")[0]).rglob("*.png"))) == 30
        hub.requests.clear()
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        assert get(*words)[:2] == (0, line)
        code, _, said = get("hub_dataset")
        assert code == 1
        assert "HF_HUB_OFFLINE is set; `hf download ekim15/bone_marrow_cell_dataset" in said
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
