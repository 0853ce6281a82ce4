"""The command line: quick help, exit codes, no traceback, the dry run."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cytodino_hf.cli import COMMANDS, main, run_finetune

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("words", [(), *COMMANDS], ids=lambda w: " ".join(w) or "cytodino")
def test_help_is_quick_and_loads_nothing_heavy(words: tuple[str, ...]) -> None:
    program = """
import sys
from cytodino_hf.cli import main
try:
    main(sys.argv[1:])
except SystemExit as stop:
    assert not stop.code
heavy = {"torch", "transformers", "datasets", "albumentations"} & set(sys.modules)
assert not heavy, heavy
"""

    def seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        out = subprocess.run(
            [sys.executable, "-c", program, *words, "--help"], capture_output=True, text=True
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert out.returncode == 0, out.stderr
        assert "Usage" in out.stdout
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    # The first start may have to write bytecode, and on a crowded machine processor time is longer too.
    assert any(seconds() < 0.6 for _ in range(3))


def test_mistakes_end_in_exit_code_2_without_a_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        run_finetune(
            [str(ROOT / "recipes" / "demo.json"), "--training.learning_rate", "-5", "--loss.smothing", "0.2"]
        )
    assert stop.value.code == 2
    shown = capsys.readouterr().err
    assert "2 mistakes" in shown
    assert "training.learning_rate = -5" in shown
    assert "did you mean 'smoothing'" in shown
    assert "Traceback" not in shown


def test_missing_images_end_in_exit_code_1_with_the_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        run_finetune(
            [
                str(ROOT / "recipes" / "demo.json"),
                "--data.source",
                "mll",
                "--data.root",
                str(tmp_path),
                # Not the recipe's own, which may hold a finished demo.
                "--training.output_dir",
                str(tmp_path / "run"),
                "--dry-run",
            ]
        )
    assert stop.value.code == 1
    assert str(tmp_path) in capsys.readouterr().err


def test_the_script_is_the_command(tmp_path: Path) -> None:
    assert len((ROOT / "run_finetune.py").read_text().splitlines()) <= 25
    script = [sys.executable, str(ROOT / "run_finetune.py"), "missing.json"]
    out = subprocess.run(script, capture_output=True, text=True, cwd=tmp_path)
    assert out.returncode == 2
    assert "no such file" in out.stderr


def test_dry_run_tells_everything_and_writes_nothing(
    tmp_path: Path,
    make_images: Callable[..., Path],
    tiny_recipe: Callable[..., dict],
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = make_images(tmp_path / "images", per_class=20)
    recipe = tmp_path / "recipe.json"
    document = tiny_recipe(root, tmp_path / "run")
    document["training"] |= {"max_steps": -1, "num_train_epochs": 3}
    recipe.write_text(json.dumps(document))
    with pytest.raises(SystemExit) as stop:
        main(["finetune", str(recipe), "--dry-run", "--data.oversampling.multiplier", "2"])
    assert not stop.value.code
    shown = capsys.readouterr().out
    assert (
        json.loads(shown[shown.index("{") : shown.rindex("}") + 1])["data"]["oversampling"]["multiplier"] == 2
    )
    assert "not patient-safe" in shown
    assert [line.split() for line in shown.splitlines() if line.strip().startswith("NGS")] == [
        ["NGS", "13", "2", "1", "4"]
    ]
    for word in ("backbone", "LoRA", "head", "total", "trainable", "GiB", "nothing was trained"):
        assert word in shown
    # 39 training images, twice, in batches of 4: 20 steps an epoch.
    assert "60 optimizer steps, 78 images an epoch" in shown
    assert not (tmp_path / "run").exists()


def test_data_draw_draws_the_same_again(tmp_path: Path) -> None:
    for name in ("a", "b"):
        with pytest.raises(SystemExit) as stop:
            main(
                ["data", "draw", str(tmp_path / name), "--cells", "420", "--patients", "4", "--workers", "2"]
            )
        assert not stop.value.code
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*.jpg"))
    assert len(files) == 420
    for file in files[::50]:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_data_draw_says_how_few_cells_it_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["data", "draw", str(tmp_path / "few"), "--cells", "60"])
    assert stop.value.code == 1
    said = capsys.readouterr().err
    assert "synthetic.cells = 60: " in said
    assert "420" in said
    assert "pydantic" not in said


def test_data_draw_has_the_defaults_of_the_source() -> None:
    import inspect

    from cytodino_hf.data.sources.synthetic import Options

    command, _ = COMMANDS["data", "draw"]
    defaults = {name: p.default for name, p in inspect.signature(command).parameters.items()}
    assert {name: defaults[name] for name in Options.model_fields} == Options().model_dump()


def test_importing_the_package_does_nothing() -> None:
    program = """
import os, sys, random
before = dict(os.environ), random.getstate()
import cytodino_hf, cytodino_hf.cli, cytodino_hf.recipe, cytodino_hf.taxonomy, cytodino_hf.data.sources
assert (dict(os.environ), random.getstate()) == before
assert "torch" not in sys.modules and "transformers" not in sys.modules
"""
    out = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=dict(os.environ)
    )
    assert (out.returncode, out.stdout, out.stderr) == (0, "", "")
