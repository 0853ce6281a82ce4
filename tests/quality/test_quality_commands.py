"""The commands of the studies."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.quality.settings import (
    PretrainingTimeSettings,
    QualitySettings,
    checked_settings,
    command_line,
)
from cytodino_hf import cli_benchmark
from cytodino_hf.cli import main

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize(
    ("command", "model"),
    [(cli_benchmark.quality, QualitySettings), (cli_benchmark.pretraining, PretrainingTimeSettings)],
    ids=["quality", "pretraining"],
)
def test_the_command_has_the_defaults_of_the_settings(
    command: Callable[..., None], model: type[QualitySettings]
) -> None:
    options = {name: p.default for name, p in inspect.signature(command).parameters.items()}
    assert set(options) - {"json", "results", "figure"} == set(model.model_fields)
    for name, field in model.model_fields.items():
        if field.is_required():
            assert options[name] in (inspect.Parameter.empty, "embedded"), name
        else:
            wanted = field.default
            texts = (",".join(map(str, wanted)), None) if isinstance(wanted, tuple) else (wanted,)
            assert options[name] in texts, name


def test_mistakes_of_the_command_are_told_before_anything_runs(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def told(*words: str) -> str:
        with pytest.raises(SystemExit) as stop:
            main(["benchmark", "quality", "--images", str(images), "--output", str(tmp_path / "x"), *words])
        assert stop.value.code
        return capsys.readouterr().err

    assert "no such arm" in told("--only", "ours,hers", "--backbone", "b")
    assert "whole numbers" in told("--seeds", "0,a")
    assert "different numbers" in told("--seeds", "1,1")
    assert "name a CSV" in told("--split", str(tmp_path / "none.csv"))
    assert not (tmp_path / "x").exists()
    values = {
        "images": images,
        "output": tmp_path,
        "backbone": "lab/vit",
        "epochs": 4.0,
        "more": (tmp_path / "m",),
    }
    command = command_line("quality", checked_settings("QualitySettings", values))
    assert (
        command
        == "cytodino benchmark quality --images ROOT --output DIR --epochs 4.0 --more m --backbone lab/vit"
    )


@pytest.mark.slow
def test_the_command_itself(images: Path, backbone: Path, tmp_path: Path) -> None:
    """Real processes, two at a time, from the command line to the tables."""
    words = [
        "benchmark", "quality", "--images", str(images), "--output", str(tmp_path / "study"), "--backbone",
        str(backbone), "--seeds", "0", "--only", "ours,published", "--image-size-px", "16", "--max-steps", "1",
        "--jobs", "2", "--json", str(tmp_path / "study.json"),
    ]  # fmt: skip
    subprocess.run([sys.executable, "-m", "cytodino_hf", *words], check=True, cwd=ROOT)
    document = json.loads((tmp_path / "study.json").read_text())
    assert [arm["seeds"] for arm in document["arms"]] == [[0], [0]]
    assert all(arm["cpu_s"] > 0 for arm in document["arms"])
    environments = {
        arm: json.loads((tmp_path / f"study/runs/{arm}/seed0/environment.json").read_text())["precision"]
        for arm in ("ours", "published")
    }
    assert environments["published"] == "no"
