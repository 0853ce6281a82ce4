"""`cytodino predict` on a data set of the Hub: every split at one commit, from the cache without a request."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub_server import WRONG_BYTES, Hub, hub_server
from kaggle_server import zipped

from cytodino_hf.cli import main
from cytodino_hf.errors import DataError
from cytodino_hf.evaluation.predictions import Predictions
from cytodino_hf.prediction.command import PredictOptions, predict_images
from cytodino_hf.prediction.inputs import find_inputs
from cytodino_hf.prediction.pictures import read_picture


def as_parquet(files: list[Path], **columns: list[Any]) -> bytes:
    """A table as the Hub keeps data sets of images."""
    from datasets import ClassLabel, Dataset, Features, Image, Value

    kinds: dict[str, Any] = {"group": Value("string"), "label": ClassLabel(names=["LYT", "ART", "BLA"])}
    features = Features({"image": Image(), **{name: kinds[name] for name in columns}})
    images = [{"bytes": file.read_bytes(), "path": file.name} for file in files]
    content = io.BytesIO()
    Dataset.from_dict({"image": images, **columns}, features=features).to_parquet(content)
    return content.getvalue()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub that the client of this process asks."""
    with hub_server() as server:
        server.asked_from_here(monkeypatch, tmp_path, token=None)
        yield server


def test_all_splits_of_one_commit_are_scored_and_offline_nothing_is_asked(
    hub: Hub,
    run: Path,
    cells: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    train, test = sorted((cells / "BLA").iterdir())[:6], sorted((cells / "LYT").iterdir())[:4]
    parts = {
        "data/train-00000-of-00001.parquet": as_parquet(train, group=["p1", "p2"] * 3, label=[2] * 6),
        "data/test-00000-of-00001.parquet": as_parquet(test, group=["p3"] * 4, label=[0, 0, 0, 1]),
    }
    out = tmp_path / "out.parquet"
    words = ["predict", str(run), "hf://datasets/lab/cells", "--output", str(out), "--precision", "float32"]
    commit = hub.commit("lab/cells", parts, kind="dataset")
    for offline in (False, True):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
        with pytest.raises(SystemExit) as ended:
            main([*words, "--group-kind", "patient"])
        assert not ended.value.code
        asked, hub.requests[:] = list(hub.requests), []
        assert bool(asked) is not offline, asked
    assert "nothing to do" in capsys.readouterr().out
    found = Predictions.from_parquet(out)
    assert set(found.sources) == {f"lab/cells@{commit}"}
    assert found.paths == [file.name for file in (*train, *test)]
    assert found.ids == [*(f"train/{file.name}" for file in train), *(f"test/{file.name}" for file in test)]
    assert found.groups == ["p1", "p2"] * 3 + ["p3"] * 4
    assert found.group_kind == "patient"
    blast, lymphocyte = found.classes.index("BLA"), found.classes.index("LYT")
    assert found.labels.tolist() == [blast] * 6 + [lymphocyte] * 3 + [-1]
    predict_images(str(run), [str(cells)], tmp_path / "files.parquet", PredictOptions(precision="float32"))
    files = Predictions.from_parquet(tmp_path / "files.parquet")
    rows = [files.ids.index(f"{file.parent.name}/{file.name}") for file in (*train, *test)]
    np.testing.assert_allclose(found.logits, files.select(rows).logits, atol=1e-5)


def test_mistakes_are_named(hub: Hub, tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "text.parquet")
    hub.commit("lab/text", {"train.parquet": (tmp_path / "text.parquet").read_bytes()}, kind="dataset")
    hub.commit("lab/gated", {"a.txt": b"a"}, kind="dataset", gated=True)
    for name, words in {
        "lab/text": r"not one column of images \(found: text\)",
        "lab/absent": "data set lab/absent does not exist on the Hub.* HF_TOKEN",
        "lab/gated": "accept its terms on https://huggingface.co/datasets/lab/gated",
        "lab/text@" + "f" * 40: "has no revision " + "f" * 40,
        "a/b/c": "hf://datasets/a/b/c: 'a/b/c' is no name of a data set; it is OWNER/NAME",
    }.items():
        with pytest.raises(DataError, match=words):
            find_inputs([f"hf://datasets/{name}"])


def test_files_of_a_data_set_are_called_as_there_and_wrong_bytes_are_refused(
    hub: Hub, cells: Path, tmp_path: Path
) -> None:
    files = {f"train/{name}.png": (cells / "BLA" / f"BLA_0000{name}.png").read_bytes() for name in (1, 2)}
    packed = zipped({f"cells/{name}.png": files[f"train/{name}.png"] for name in (1, 2)})
    hub.commit("lab/files", files, kind="dataset", revision="v1")
    hub.commit("lab/packed", {"train.zip": packed}, kind="dataset")
    hub.fail("train/1.png", WRONG_BYTES)
    with pytest.raises(DataError, match=r"train/1\.png arrived with other bytes"):
        find_inputs(["hf://datasets/lab/files@v1"])
    for name, wanted in (
        ("lab/files@v1", "train/train/1.png"),
        ("lab/packed", "train/train.zip/cells/1.png"),
    ):
        found = find_inputs([f"hf://datasets/{name}"])
        assert found.ids == [wanted, wanted.replace("1.png", "2.png")]
        assert read_picture(found.pictures[0], "1").shape == (32, 32, 3)


def test_a_row_or_a_card_that_names_another_file_of_this_machine_is_refused(
    hub: Hub, cells: Path, tmp_path: Path
) -> None:
    secret = cells / "BLA" / "BLA_00001.png"
    row = pa.table({"image": [{"bytes": None, "path": str(secret)}]})
    pq.write_table(row, tmp_path / "row.parquet")
    card = f"---\nconfigs:\n- config_name: a\n  data_files: {secret}\n---\n"
    parquet = (tmp_path / "row.parquet").read_bytes()
    hub.commit("lab/row", {"train.parquet": parquet}, kind="dataset")
    hub.commit("lab/card", {"README.md": card.encode(), "a.parquet": parquet}, kind="dataset")
    for name in ("lab/row", "lab/card"):
        with pytest.raises(DataError, match="outside the data set"):
            find_inputs([f"hf://datasets/{name}"])
