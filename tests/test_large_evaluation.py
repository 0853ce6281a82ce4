"""The whole report of a RUN with as many test images as the full set has: under a minute of CPU and 2 GB."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cytodino_hf.evaluation.baselines import BASELINES
from cytodino_hf.evaluation.predictions import Predictions, write_embeddings
from cytodino_hf.taxonomy import MLL

#: The command, and its own peak of memory: what `wait4` says begins with that of the process that started it.
MEASURED = """
import sys
from cytodino_hf.cli import main
try:
    main(sys.argv[1:])
except SystemExit as stop:
    assert not stop.code
with open("/proc/self/status") as lines:
    print("peak KiB", next(line.split()[1] for line in lines if line.startswith("VmHWM")), flush=True)
"""
#: Images by fold; the test fold is a fifth of the published set of about 171,000 cells.
IMAGES = {"validation": 3_400, "calibration": 3_400, "test": 34_000}
#: Of the embeddings of the largest backbone that is trained here.
WIDTH = 1024
SECONDS, GIBIBYTES = 60, 2
REVISION = "cafe"


def large_fold(fold: str, seed: int) -> tuple[Predictions, np.ndarray]:
    """Unbalanced classes as in the MLL set, about 85 % right, with embeddings around class centres."""
    rng = np.random.default_rng(seed)
    n, shares = IMAGES[fold], np.geomspace(1, 0.002, len(MLL))
    labels = rng.choice(len(MLL), n, p=shares / shares.sum())
    logits = rng.normal(0, 1, (n, len(MLL))) + 4.2 * np.eye(len(MLL))[labels]
    centres = np.random.default_rng(0).normal(0, 1, (len(MLL), WIDTH)).astype(np.float32)
    embeddings = centres[labels] + rng.standard_normal((n, WIDTH), dtype=np.float32)
    ids = [f"{fold}{row}" for row in range(n)]
    predictions = Predictions(
        ids,
        ids,
        ["drawn"] * n,
        [None] * n,
        [fold] * n,
        labels,
        logits.astype(np.float32),
        MLL.codes,
        REVISION,
    )
    return predictions, embeddings


def large_run(folder: Path) -> Path:
    """What `cytodino evaluate` reads of a finished RUN: predictions, embeddings and the baselines kept beside."""
    folds = {fold: large_fold(fold, seed) for seed, fold in enumerate(IMAGES)}
    for fold, (predictions, _) in folds.items():
        predictions.to_parquet(folder / "predictions" / f"{fold}.parquet")
    ids = [name for predictions, _ in folds.values() for name in predictions.ids]
    embeddings = np.concatenate([embeddings for _, embeddings in folds.values()])
    write_embeddings(folder / "predictions" / "embeddings.parquet", ids, embeddings, model_revision=REVISION)
    test = folds["test"][0]
    for seed, name in enumerate(BASELINES):
        noise = np.random.default_rng(seed).normal(0, 1.5, test.logits.shape).astype(np.float32)
        worse = replace(test, logits=test.logits + noise, model_revision=f"baseline {name}")
        worse.to_parquet(folder / "predictions" / "baselines" / f"{name}.parquet")
    recipe = {
        "model": {"backbone": "embedded"},
        "training": {"seed": 0},
        "evaluation": {"interval_draws": 1000, "seed": 0},
    }
    (folder / "recipe.json").write_text(json.dumps(recipe))
    (folder / "config.json").write_text(json.dumps({"taxonomy": MLL.to_dict()}))
    rows = [f"train{label},train,{code}" for label, code in enumerate(MLL.codes)]
    rows += [
        f"{name},{fold},{MLL.codes[label]}"
        for fold, (predictions, _) in folds.items()
        for name, label in zip(predictions.ids, predictions.labels.tolist(), strict=True)
    ]
    (folder / "split.csv").write_text("\n".join(["path,fold,label", *rows, ""]))
    return folder


@pytest.mark.slow
def test_a_large_evaluation_stays_under_a_minute_of_cpu_and_2_gb(tmp_path: Path) -> None:
    run = large_run(tmp_path / "run")
    command = [sys.executable, "-c", MEASURED, "evaluate", str(run)]
    with (tmp_path / "said").open("wb") as said:
        started = subprocess.Popen(command, stdout=said, stderr=said)
        _, status, used = os.wait4(started.pid, 0)  # CPU time of this process alone
    started.returncode = os.waitstatus_to_exitcode(status)
    assert started.returncode == 0, (tmp_path / "said").read_text()
    report = json.loads((run / "report" / "report.json").read_text())
    assert report["test"]["images"] == IMAGES["test"]
    assert report["intervals"]["draws"] == 1000
    missing = {name for name, part in report["parts"].items() if "missing" in part}
    assert not missing
    assert len(report["parts"]["baselines"]["systems"]) == len(BASELINES) + 1
    assert used.ru_utime + used.ru_stime < SECONDS
    peak_kib = int((tmp_path / "said").read_text().rpartition("peak KiB ")[2])
    assert peak_kib / 2**20 < GIBIBYTES
