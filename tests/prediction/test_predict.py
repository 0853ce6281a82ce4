"""`cytodino predict`: the schema, every kind of input, killed and started again, refusals."""

from __future__ import annotations

import csv
import io
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cytodino_hf.cli import main
from cytodino_hf.errors import BadNumbersError, DataError
from cytodino_hf.evaluation.predictions import Predictions
from cytodino_hf.evaluation.scoring import BFLOAT16_SHARE
from cytodino_hf.prediction import command as command_module
from cytodino_hf.prediction.command import PredictOptions, predict_images
from cytodino_hf.prediction.inputs import find_inputs
from cytodino_hf.prediction.output import PredictionOutput

EXACT = PredictOptions(precision="float32", batch_size=4)


def predicted(run: Path, inputs: list[Path | str], out: Path, options: PredictOptions = EXACT) -> Any:
    return predict_images(str(run), [str(i) for i in inputs], out, options)


def stamps(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_it_writes_what_the_run_saved_in_the_one_schema(run: Path, cells: Path, tmp_path: Path) -> None:
    done = predicted(run, [cells], tmp_path / "out.parquet")
    found = Predictions.from_parquet(tmp_path / "out.parquet")
    saved = Predictions.from_parquet(run / "predictions" / "test.parquet")
    assert (
        pq.read_schema(tmp_path / "out.parquet").names
        == pq.read_schema(run / "predictions" / "test.parquet").names
    )
    rows = [found.paths.index(path) for path in saved.paths]
    np.testing.assert_allclose(found.select(rows).logits, saved.logits, atol=1e-5)
    assert (found.classes, found.model_revision) == (saved.classes, saved.model_revision)
    assert found.ids == sorted(f"{p.parent.name}/{p.name}" for p in cells.rglob("*.png"))
    assert (done.images, done.scored, done.problems) == (30, 30, {})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.parquet"]


@pytest.mark.parametrize("name", ["out.parquet", "out.csv"])
def test_the_same_call_again_does_nothing(
    run: Path, cells: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    predicted(run, [cells / "BLA"], tmp_path / name)
    before = stamps(tmp_path)
    monkeypatch.setattr(
        command_module, "load_model", lambda *a: pytest.fail("the model was loaded for nothing")
    )
    done = predicted(run, [cells / "BLA"], tmp_path / name, PredictOptions())
    assert (done.images, done.scored) == (10, 0)
    assert stamps(tmp_path) == before


@pytest.mark.parametrize("name", ["out.parquet", "out.csv"])
def test_what_has_come_since_is_added_in_the_order_of_the_inputs(
    run: Path, cells: Path, tmp_path: Path, name: str
) -> None:
    folder = tmp_path / "growing"
    shutil.copytree(cells / "LYT", folder / "b")
    predicted(run, [folder], tmp_path / name)
    shutil.copytree(cells / "BLA", folder / "a")
    done = predicted(run, [folder], tmp_path / name)
    assert (done.images, done.scored) == (20, 10)
    predicted(run, [folder], tmp_path / f"whole_{name}")
    if name.endswith(".csv"):
        assert ids_of_csv(tmp_path / name) == ids_of_csv(tmp_path / f"whole_{name}")
    else:
        one, other = (Predictions.from_parquet(tmp_path / n) for n in (name, f"whole_{name}"))
        assert one.ids == other.ids
        np.testing.assert_allclose(one.logits, other.logits, atol=1e-5)


def ids_of_csv(path: Path) -> list[str]:
    return [row["id"] for row in csv.DictReader(io.StringIO(path.read_text()))]


def test_a_call_that_stopped_goes_on_with_what_is_missing(
    run: Path, cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped at every batch in turn; the whole file then equals one written at once."""
    out = tmp_path / "out.parquet"
    options = PredictOptions(precision="float32", batch_size=4, seconds_a_part=0)
    add = PredictionOutput.add
    calls, scored = 0, 0

    def add_one_and_stop(self: PredictionOutput, part: Predictions, *args: Any) -> None:
        nonlocal scored
        add(self, part, *args)
        scored += len(part)
        raise KeyboardInterrupt

    monkeypatch.setattr(PredictionOutput, "add", add_one_and_stop)
    while not out.exists():
        calls += 1
        try:
            predicted(run, [cells], out, options)
        except KeyboardInterrupt:
            assert not out.exists()
    assert calls == 9, "30 images in batches of 4, and the call that finds nothing left to score"
    assert scored == 30
    monkeypatch.setattr(PredictionOutput, "add", add)
    predicted(run, [cells], tmp_path / "at_once.parquet")
    one, other = (Predictions.from_parquet(tmp_path / n) for n in ("out.parquet", "at_once.parquet"))
    assert one.ids == other.ids
    np.testing.assert_allclose(one.logits, other.logits, atol=1e-5)
    assert not (tmp_path / "out.parquet.parts").exists()


def test_a_stop_between_the_last_two_steps_gives_no_image_twice(
    run: Path, cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(path: Path) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "out.parquet"
    with monkeypatch.context() as patch:
        patch.setattr("cytodino_hf.prediction.output.shutil.rmtree", stop)
        with pytest.raises(KeyboardInterrupt):
            predicted(run, [cells], out)
    assert out.exists()
    assert (tmp_path / "out.parquet.parts").exists()
    assert predicted(run, [cells], out).scored == 0
    ids = Predictions.from_parquet(out).ids
    assert len(ids) == len(set(ids)) == 30
    assert [p.name for p in tmp_path.iterdir()] == ["out.parquet"]


@pytest.mark.slow
def test_killed_and_started_again_it_has_every_id_once(run: Path, cells: Path, tmp_path: Path) -> None:
    """SIGKILL at several moments of a real process, then the same command to its end."""
    many = tmp_path / "many"
    for copy in range(12):
        shutil.copytree(cells, many / str(copy))
    out = tmp_path / "out.parquet"
    program = (
        "import sys; from pathlib import Path; from cytodino_hf.prediction.command import *; "
        "predict_images(sys.argv[1], [sys.argv[2]], Path(sys.argv[3]), "
        "PredictOptions(precision='float32', batch_size=2, seconds_a_part=0))"
    )
    start = [sys.executable, "-c", program, str(run), str(many), str(out)]
    kills = 0
    for parts in (1, 30, 60, 100, 140):
        process = subprocess.Popen(start, stderr=subprocess.DEVNULL)
        while process.poll() is None and len(list(tmp_path.glob("*.parts/*.parquet"))) < parts:
            time.sleep(0.002)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.wait()
    assert kills >= 3
    subprocess.run(start, check=True, stderr=subprocess.DEVNULL)
    ids = Predictions.from_parquet(out).ids
    assert ids == sorted(p.relative_to(many).as_posix() for p in many.rglob("*.png"))


def test_other_weights_into_the_same_output_are_refused(run: Path, cells: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.parquet"
    predicted(run, [cells / "BLA"], out)
    about = Predictions.from_parquet(out)
    table = pq.read_table(out)
    other = {
        **table.schema.metadata,
        b"cytodino_predict": b'{"model_revision": "ffff", "precision": "float32"}',
    }
    pq.write_table(table.replace_schema_metadata(other), out)
    with pytest.raises(DataError, match=f"ffff there, {about.model_revision} in .*another --output"):
        predicted(run, [cells], out)
    pq.write_table(table, out)
    with pytest.raises(DataError, match="computed in float32, not bfloat16"):
        predicted(run, [cells / "BLA"], out, PredictOptions(precision="bfloat16"))
    assert Predictions.from_parquet(out).ids == about.ids


def test_other_images_and_other_files_are_refused(run: Path, cells: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.parquet"
    predicted(run, [cells], out)
    with pytest.raises(DataError, match="holds 30 images that are not among the inputs"):
        predicted(run, [cells / "BLA"], out)
    shutil.copy(run / "predictions" / "test.parquet", tmp_path / "other.parquet")
    with pytest.raises(DataError, match="was not written by this command"):
        predicted(run, [cells], tmp_path / "other.parquet")
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="was not written by this command"):
        predicted(run, [cells], tmp_path / "other.csv")
    with pytest.raises(DataError, match=r"ends in \.parquet or \.csv"):
        predicted(run, [cells], tmp_path / "out.json")


def test_bfloat16_keeps_the_classes_and_the_stated_bound(run: Path, cells: Path, tmp_path: Path) -> None:
    for precision in ("float32", "bfloat16"):
        predicted(run, [cells], tmp_path / f"{precision}.parquet", PredictOptions(precision=precision))
    exact, quick = (Predictions.from_parquet(tmp_path / f"{p}.parquet") for p in ("float32", "bfloat16"))
    assert (exact.predicted == quick.predicted).mean() >= 0.995
    away = np.abs(exact.logits - quick.logits).max()
    assert 0 < away <= BFLOAT16_SHARE * np.abs(exact.logits).max()


def test_two_processes_do_not_write_one_output(run: Path, cells: Path, tmp_path: Path) -> None:
    from cytodino_hf.prediction.output import Scorer

    target = PredictionOutput(tmp_path / "out.parquet")
    with target.held(Scorer("r", "float32")), pytest.raises(DataError, match="another process writes it"):
        predicted(run, [cells], tmp_path / "out.parquet")


def test_bad_images_are_listed_and_tried_again(
    run: Path, cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out = tmp_path / "in", tmp_path / "out.parquet"
    shutil.copytree(cells / "BLA", folder)
    whole = (folder / "BLA_00004.png").read_bytes()
    (folder / "BLA_00004.png").write_bytes(whole[:200])
    Image.new("RGB", (32, 32)).save(folder / "x.gif")
    done = predicted(run, [folder], out)
    assert (done.images, done.scored, sorted(done.problems)) == (9, 9, ["BLA_00004.png", "x.gif"])
    listed = list(csv.DictReader(io.StringIO((tmp_path / "out.parquet.problems.csv").read_text())))
    assert {row["path"]: row["reason"] for row in listed} == done.problems
    with monkeypatch.context() as patch:
        patch.setattr(
            command_module, "load_model", lambda *a: pytest.fail("the model was loaded for nothing")
        )
        again = predicted(run, [folder], out)
    assert (again.scored, again.problems) == (0, done.problems)
    (folder / "BLA_00004.png").write_bytes(whole)
    (folder / "x.gif").unlink()
    mended = predicted(run, [folder], out)
    assert (mended.images, mended.scored, mended.problems) == (10, 1, {})
    assert not (tmp_path / "out.parquet.problems.csv").exists()
    assert Predictions.from_parquet(out).ids == sorted(p.name for p in folder.iterdir())


def test_nothing_readable_is_an_error_each_time(run: Path, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("no picture")
    for _ in range(2):
        with pytest.raises(DataError, match=r"none of 1 images can be read: a\.png \(not an image"):
            predicted(run, [tmp_path / "a.png"], tmp_path / "out.parquet")


def test_answers_that_are_not_finite_stop_it_by_name(
    run: Path, cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = command_module.load_model

    def broken(*args: Any) -> Any:
        loaded = load(*args)
        next(loaded.model.head.parameters()).data.fill_(float("nan"))
        return loaded

    monkeypatch.setattr(command_module, "load_model", broken)
    with pytest.raises(BadNumbersError, match=r"BLA/BLA_00001\.png"):
        predicted(run, [cells], tmp_path / "out.parquet")
    assert not (tmp_path / "out.parquet").exists()


def test_a_table_of_paths_brings_ids_groups_and_labels(run: Path, cells: Path, tmp_path: Path) -> None:
    table = cells / "table.csv"
    table.write_text(
        "path,id,group,label\nBLA/BLA_00001.png,one,p1,BLA\nLYT/LYT_00001.png,two,p2,ART\nNGS/NGS_00001.png,three,p1,\n"
    )
    options = PredictOptions(precision="float32", group_kind="patient")
    try:
        predicted(run, [table], tmp_path / "out.parquet", options)
    finally:
        table.unlink()
    found = Predictions.from_parquet(tmp_path / "out.parquet")
    assert (found.ids, found.groups, found.group_kind) == (
        ["one", "two", "three"],
        ["p1", "p2", "p1"],
        "patient",
    )
    assert found.labels.tolist() == [found.classes.index("BLA"), -1, -1], "the model has no class ART"
    assert found.sources == ["table.csv"] * 3


@pytest.mark.parametrize("column", ["image", "bytes"])
def test_a_table_of_pictures_scores_as_the_files_do(
    run: Path, cells: Path, tmp_path: Path, column: str
) -> None:
    files = sorted((cells / "BLA").iterdir())
    content: list[Any] = [f.read_bytes() for f in files]
    if column == "image":
        content = [{"bytes": c, "path": f.name} for c, f in zip(content, files, strict=True)]
    table = tmp_path / "cells.parquet"
    pq.write_table(pa.table({column: content, "group": ["p1"] * 10}), table)
    predicted(run, [table], tmp_path / "out.parquet")
    predicted(run, [cells / "BLA"], tmp_path / "files.parquet")
    found, wanted = (Predictions.from_parquet(tmp_path / n) for n in ("out.parquet", "files.parquet"))
    np.testing.assert_allclose(found.logits, wanted.logits, atol=1e-5)
    assert found.groups == ["p1"] * 10
    assert found.ids == [f.name if column == "image" else f"cells.parquet#{i}" for i, f in enumerate(files)]


def test_ids_do_not_say_where_the_images_lie(cells: Path, tmp_path: Path) -> None:
    shutil.copytree(cells, tmp_path / "moved")
    here, there = (
        find_inputs([str(f / "BLA"), str(f / "LYT" / "LYT_00002.png")]) for f in (cells, tmp_path / "moved")
    )
    assert here.ids == there.ids
    assert here.ids[-1] == "LYT/LYT_00002.png"
    twice = find_inputs([str(cells), str(cells / "BLA"), str(cells / "BLA" / "BLA_00001.png")])
    assert len(twice) == 30, "an image named by several inputs is one image"


def test_mistakes_of_inputs_are_named(cells: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "no_path.csv").write_text("file\na.png\n")
    (tmp_path / "twice.csv").write_text("path,id\na.png,1\nb.png,1\n")
    (tmp_path / "gap.csv").write_text("path,id\na.png,1\nb.png,\n")
    for given, words in {
        "absent": "no such file or folder; a data set of the Hub is hf://datasets/",
        "empty": "no images in",
        "no_path.csv": "has no column `path`",
        "twice.csv": "1 ids occur more than once among the inputs: 1",
        "gap.csv": "1 rows without id: line 3",
    }.items():
        with pytest.raises(DataError, match=words):
            find_inputs([str(tmp_path / given)])


def test_nothing_in_the_csv_is_a_formula(run: Path, cells: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    shutil.copy(cells / "BLA" / "BLA_00001.png", tmp_path / "in" / "=cmd.png")
    shutil.copy(cells / "BLA" / "BLA_00002.png", tmp_path / "in" / "plain.png")
    out = tmp_path / "out.csv"
    assert predicted(run, [tmp_path / "in"], out).scored == 2
    assert predicted(run, [tmp_path / "in"], out).scored == 0
    rows = list(csv.DictReader(io.StringIO(out.read_text())))
    assert [row["id"] for row in rows] == ["./=cmd.png", "plain.png"]
    assert not any(cell.startswith(("=", "+", "-", "@")) for row in rows for cell in row.values())
    assert {row["name"] for row in rows} == {"blast"}
    assert {row["is_critical"] for row in rows} == {"true"}
    for row in rows:
        chances = {key[2:-1]: float(value) for key, value in row.items() if key.startswith("p(")}
        assert sum(chances.values()) == pytest.approx(1, abs=1e-5)
        assert float(row["probability"]) == chances[row["prediction"]] == max(chances.values())


def test_the_command_says_what_it_did(
    run: Path,
    cells: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    make_images: Callable[..., Path],
) -> None:
    (tmp_path / "bad.png").write_text("no picture")
    words = [
        "predict",
        str(run),
        str(cells / "BLA"),
        str(tmp_path / "bad.png"),
        "--output",
        str(tmp_path / "o.csv"),
    ]
    for wanted in ("10 images, 10 of them new", "holds all 10 images already; nothing to do"):
        with pytest.raises(SystemExit) as stop:
            main(words)
        assert not stop.value.code
        said = capsys.readouterr()
        assert wanted in said.out
        assert "bad.png: not an image of a kind that is read" in said.err
    with pytest.raises(SystemExit) as stop:
        main(["predict", str(tmp_path / "absent"), str(cells), "--output", str(tmp_path / "p.csv")])
    assert stop.value.code == 1
    assert "no such folder" in capsys.readouterr().err
