"""Every notebook runs from its first cell to its last, and is saved without outputs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))


def load(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return document


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.name)
def test_it_is_a_notebook_without_outputs(path: Path) -> None:
    notebook = load(path)
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    names = [cell["id"] for cell in notebook["cells"]]
    assert len(names) == len(set(names)), "cells are told apart by their id"
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None), cell["id"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.name)
def test_it_runs(path: Path, tmp_path: Path, cells: Path, run: Path) -> None:
    """Cell by cell in one process, as a kernel does; a figure is drawn and not shown."""
    from cytodino_hf.evaluation.predictions import Predictions

    shutil.copytree(run, tmp_path / "runs" / "demo")
    mine = shutil.copytree(cells, tmp_path / "my_cells")
    (mine / "BLA" / "BLA_00001.png").write_text("no picture")
    sources = ["".join(cell["source"]) for cell in load(path)["cells"] if cell["cell_type"] == "code"]
    shutil.copy(path, tmp_path)
    program = "import json, sys\nkernel = {}\nfor source in json.load(sys.stdin):\n    exec(source, kernel)\n"
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=json.dumps(sources),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=os.environ | {"MPLBACKEND": "agg", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert "BLA_00001.png was left out: not an image" in done.stdout
    assert "29 images, 29 of them new, 1 could not be read" in done.stdout
    assert len(Predictions.from_parquet(tmp_path / "cells.parquet")) == 29


def test_there_is_one() -> None:
    assert [path.name for path in NOTEBOOKS] == ["quickstart.ipynb"]
