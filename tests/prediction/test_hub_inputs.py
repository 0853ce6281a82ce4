"""`cytodino predict` on a data set of the Hub: every split at one commit, from the cache without a request."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hub_server import hub_server

from cytodino_hf.evaluation.predictions import Predictions
from cytodino_hf.prediction.command import PredictOptions, predict_images


def as_parquet(files: list[Path], **columns: list[Any]) -> bytes:
    """A table as the Hub keeps data sets of images."""
    from datasets import ClassLabel, Dataset, Features, Image, Value

    kinds: dict[str, Any] = {"group": Value("string"), "label": ClassLabel(names=["LYT", "ART", "BLA"])}
    features = Features({"image": Image(), **{name: kinds[name] for name in columns}})
    images = [{"bytes": file.read_bytes(), "path": file.name} for file in files]
    content = io.BytesIO()
    Dataset.from_dict({"image": images, **columns}, features=features).to_parquet(content)
    return content.getvalue()


def test_all_splits_of_one_commit_are_scored_and_offline_nothing_is_asked(
    run: Path, cells: Path, tmp_path: Path
) -> None:
    train, test = sorted((cells / "BLA").iterdir())[:6], sorted((cells / "LYT").iterdir())[:4]
    parts = {
        "data/train-00000-of-00001.parquet": as_parquet(train, group=["p1", "p2"] * 3, label=[2] * 6),
        "data/test-00000-of-00001.parquet": as_parquet(test, group=["p3"] * 4, label=[0, 0, 0, 1]),
    }
    out = tmp_path / "out.parquet"
    command = [
        *(sys.executable, "-m", "cytodino_hf", "predict", str(run), "hf://datasets/lab/cells"),
        *("--output", str(out), "--precision", "float32", "--group-kind", "patient"),
    ]
    with hub_server() as hub:
        commit = hub.commit("lab/cells", parts, kind="dataset")
        for offline in (False, True):
            environment = os.environ | hub.environment(tmp_path / "home", token=None, offline=offline)
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            asked, hub.requests[:] = list(hub.requests), []
            assert bool(asked) is not offline, asked
        assert "nothing to do" in done.stdout
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


def test_mistakes_are_named(tmp_path: Path, run: Path) -> None:
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "text.parquet")
    program = """
import sys
from cytodino_hf.errors import DataError
from cytodino_hf.prediction.inputs import find_inputs
for name in sys.argv[1:]:
    try:
        find_inputs(["hf://datasets/" + name])
    except DataError as error:
        print(error)
"""
    names = ["lab/text", "lab/absent", "lab/gated", "lab/text@" + "f" * 40, "a/b/c"]
    with hub_server() as hub:
        hub.commit("lab/text", {"train.parquet": (tmp_path / "text.parquet").read_bytes()}, kind="dataset")
        hub.commit("lab/gated", {"a.txt": b"a"}, kind="dataset", gated=True)
        done = subprocess.run(
            [sys.executable, "-c", program, *names],
            env=os.environ | hub.environment(tmp_path / "home", token=None),
            capture_output=True,
            text=True,
        )
    said = done.stdout.splitlines()
    assert len(said) == len(names), done.stderr
    assert "not one column of images (found: text)" in said[0]
    assert "lab/absent" in said[1]
    assert "HF_TOKEN" in said[1]
    assert "https://huggingface.co/datasets/lab/gated" in said[2]
    assert "f" * 40 in said[3]
    assert "it is OWNER/NAME" in said[4]
