"""The whole report of as many predictions as the full set has: under a minute of CPU and 2 GB."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cytodino_hf.evaluation.predictions import Predictions, write_embeddings
from cytodino_hf.taxonomy import MLL

PROGRAM = """
import json, resource, sys
from cytodino_hf.cli import main
try:
    main(["evaluate", sys.argv[1], "--output", sys.argv[2], "--draws", "1000"])
except SystemExit as stop:
    assert not stop.code
used = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps([used.ru_utime + used.ru_stime, used.ru_maxrss / 2**20]))
"""


def large_predictions(n: int = 34_000, width: int = 192, seed: int = 0) -> tuple[Predictions, np.ndarray]:
    """Unbalanced classes as in the MLL set, about 85 % right, with folds and embeddings around class centres."""
    rng = np.random.default_rng(seed)
    shares = np.geomspace(1, 0.002, len(MLL))
    labels = rng.choice(len(MLL), n, p=shares / shares.sum())
    logits = rng.normal(0, 1, (n, len(MLL))) + 4.2 * np.eye(len(MLL))[labels]
    embeddings = rng.normal(0, 1, (len(MLL), width))[labels] + rng.normal(0, 1, (n, width))
    ids = [f"image{row}" for row in range(n)]
    folds = rng.choice(["test", "calibration", "validation"], n, p=[0.8, 0.1, 0.1]).tolist()
    predictions = Predictions(
        ids, ids, ["drawn"] * n, [None] * n, folds, labels, logits.astype(np.float32), MLL.codes, "cafe"
    )
    return predictions, embeddings.astype(np.float32)


@pytest.mark.slow
def test_a_large_evaluation_stays_under_a_minute_of_cpu_and_2_gb(tmp_path: Path) -> None:
    predictions, embeddings = large_predictions()
    predictions.to_parquet(tmp_path / "all.parquet")
    write_embeddings(tmp_path / "embeddings.parquet", predictions.ids, embeddings)
    arguments = [sys.executable, "-c", PROGRAM, str(tmp_path / "all.parquet"), str(tmp_path / "report")]
    done = subprocess.run(arguments, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    seconds, gibibytes = json.loads(done.stdout.splitlines()[-1])
    assert (tmp_path / "report" / "report.html").is_file()
    assert seconds < 60
    assert gibibytes < 2
