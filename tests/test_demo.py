"""The main job as a user starts it, on drawn and on real cells. Whole runs are slow: minutes of training each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def launch(out: Path, home: Path, *options: str) -> tuple[dict, float]:
    """The literal command; the report and the wall time in seconds."""
    command = [
        str(Path(sys.executable).with_name("accelerate")), "launch", "run_finetune.py", "recipes/demo.json",
        "--training.output_dir", str(out), *options,
    ]  # fmt: skip
    environment = os.environ | {"HF_HOME": str(home / "hf"), "XDG_CACHE_HOME": str(home / "cache")}
    for name in ("OMP_NUM_THREADS", "ACCELERATE_MIXED_PRECISION"):
        environment.pop(name, None)
    started = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    seconds = time.monotonic() - started
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return json.loads((out / "report" / "report.json").read_text()), seconds


def test_the_first_steps(tmp_path: Path) -> None:
    """The model and the data of the demo itself, from the literal command to the report, but two steps only."""
    report, _ = launch(
        tmp_path / "run", tmp_path, "--data.synthetic.cells", "420", "--training.max_steps", "2",
        "--training.eval_steps", "2", "--training.save_steps", "2",
    )  # fmt: skip
    assert report["is_drawn"]
    assert report["training"]["steps"] == 2
    assert report["data"]["rejected"] == []


@pytest.mark.slow
def test_drawn_cells_are_told_apart(tmp_path: Path) -> None:
    report, seconds = launch(tmp_path / "run", tmp_path)
    assert report["is_drawn"]
    assert report["split_promise"].startswith("by patient")
    assert len(report["test"]["per_class"]) == 21
    assert report["test"]["metrics"]["macro_f1"]["value"] >= 0.85
    # The limit of `make demo` is 6 minutes on 2 cores; setting up the environment takes up to 2 of them.
    assert seconds < 6 * 60


@pytest.mark.slow
def test_real_cells_by_the_same_recipe(tmp_path: Path, real_data: Path) -> None:
    mll7 = real_data / "mll7"
    report, seconds = launch(
        tmp_path / "run",
        tmp_path,
        "--data.source",
        "mll",
        "--data.root",
        str(mll7),
        "--data.split",
        str(mll7 / "split.csv"),
    )
    assert report["test"]["metrics"]["balanced_accuracy"]["n"] == 280
    assert report["test"]["metrics"]["balanced_accuracy"]["value"] >= 0.68
    assert seconds < 5 * 60
