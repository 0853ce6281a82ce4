"""Precision: who decides it, under the plain command, the launcher's options and the user's own file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from cytodino_hf import launch
from cytodino_hf.errors import CytoDinoError

ROOT = Path(__file__).parent.parent
YAML = ROOT / "accelerate_config.yaml"


@pytest.fixture
def as_if(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., str]:
    """Apply the shipped file as if this process had been started in some way."""

    def apply(arguments: list[str] | None, *, obstacle: str | None = None, config: Path = YAML) -> str:
        import accelerate.commands.config as accelerate_config

        started = launch._Launcher(arguments, {}) if arguments is not None else None
        monkeypatch.setattr(launch, "_launcher", lambda: started)
        monkeypatch.setattr(launch, "bf16_obstacle", lambda: obstacle)
        monkeypatch.setattr(accelerate_config, "default_config_file", str(tmp_path / "default_config.yaml"))
        return launch.apply_accelerate_config(config)

    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    return apply


def test_the_shipped_file_is_applied_by_itself(as_if: Callable[..., str]) -> None:
    assert "bf16, set by accelerate_config.yaml" in as_if(["launch", "run_finetune.py"])
    assert os.environ["ACCELERATE_MIXED_PRECISION"] == "bf16"


def test_a_device_without_bf16_gets_float32(as_if: Callable[..., str]) -> None:
    assert "no bf16 here" in as_if(["launch", "run_finetune.py"], obstacle="no bf16 here")
    assert os.environ["ACCELERATE_MIXED_PRECISION"] == "no"


@pytest.mark.parametrize("option", ["--mixed_precision", "--config_file", "--mixed_precision=fp16"])
def test_the_launchers_options_come_first(
    as_if: Callable[..., str], monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    assert "precision fp16, set by accelerate launch" in as_if(["launch", option, "fp16", "run_finetune.py"])
    assert os.environ["ACCELERATE_MIXED_PRECISION"] == "fp16"


def test_the_users_own_file_comes_before_the_shipped_one(
    as_if: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    (tmp_path / "default_config.yaml").write_text("mixed_precision: 'no'\n")
    assert "accelerate config" in as_if(["launch", "run_finetune.py"])
    assert os.environ["ACCELERATE_MIXED_PRECISION"] == "no"


def test_a_file_only_the_launcher_can_apply_is_refused(as_if: Callable[..., str], tmp_path: Path) -> None:
    edited = tmp_path / "accelerate_config.yaml"
    edited.write_text(YAML.read_text().replace("num_processes: 1", "num_processes: 4"))
    with pytest.raises(CytoDinoError, match="--config_file"):
        as_if(["launch", "run_finetune.py"], config=edited)


def test_a_wrong_precision_in_the_file_is_named(as_if: Callable[..., str], tmp_path: Path) -> None:
    edited = tmp_path / "accelerate_config.yaml"
    edited.write_text("mixed_precision: half\n")
    with pytest.raises(CytoDinoError, match="mixed_precision must be one of no, bf16, fp16"):
        as_if(None, config=edited)


def test_processes_that_do_not_know_of_each_other_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(CytoDinoError, match="train alone in the same folder"):
        launch.refuse_independent_trainings(1)
    launch.refuse_independent_trainings(2)


@pytest.mark.parametrize(
    ("arguments", "environment", "free_cores"),
    [
        (["launch", "run_finetune.py"], {}, True),
        (["launch", "--num_cpu_threads_per_process=1", "run_finetune.py"], {}, False),
        (["launch", "run_finetune.py"], {"OMP_NUM_THREADS": "1"}, False),
        (None, {}, False),
    ],
    ids=["plain", "option", "environment", "no_launcher"],
)
def test_free_cores_are_used_unless_the_user_says_otherwise(
    arguments: list[str] | None,
    environment: dict[str, str],
    free_cores: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import torch

    started = launch._Launcher(arguments, environment) if arguments is not None else None
    chosen: list[int] = []
    monkeypatch.setattr(launch, "_launcher", lambda: started)
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    launch.use_free_cores(1)
    launch.use_free_cores(1000)
    cores = len(os.sched_getaffinity(0))
    assert chosen == ([max(1, cores - 1), 1] if free_cores else [])


MULTI_GPU = """\
compute_environment: LOCAL_MACHINE
distributed_type: MULTI_GPU
num_machines: 1
num_processes: 2
mixed_precision: 'no'
"""
TORCHRUN = ("torchrun", "--standalone", "--nproc-per-node", "2")
ACCELERATE = ("accelerate", "launch", "--config_file", "multi_gpu.yaml")


def start(folder: Path, launcher: Sequence[str], **environment: str) -> subprocess.CompletedProcess[str]:
    """Start `<launcher> run_finetune.py recipe.json` in a folder, with nothing set that a launcher would set."""
    (folder / "multi_gpu.yaml").write_text(MULTI_GPU)
    program = str(Path(sys.executable).with_name(launcher[0]))
    kept = {
        k: v for k, v in os.environ.items() if not k.startswith(("ACCELERATE_", "RANK", "WORLD_", "LOCAL_"))
    }
    return subprocess.run(
        [program, *launcher[1:], str(ROOT / "run_finetune.py"), "recipe.json"],
        cwd=folder,
        env=kept | {"HF_HOME": str(folder / "hf"), "OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture
def job(tmp_path: Path, make_images: Callable[..., Path], tiny_recipe: Callable[..., dict]) -> Path:
    """A folder with images and a recipe that writes to `run`."""
    recipe = tiny_recipe(make_images(tmp_path / "images"), tmp_path / "run")
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    return tmp_path


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without GPU")
@pytest.mark.parametrize(
    "launcher", [TORCHRUN, pytest.param(ACCELERATE, marks=pytest.mark.slow)], ids=lambda x: x[0]
)
def test_two_processes_that_would_train_alone_are_refused_before_anything_is_written(
    job: Path, launcher: Sequence[str]
) -> None:
    done = start(job, launcher)
    assert done.returncode != 0
    assert "each would train alone in the same folder" in done.stderr
    assert "Traceback" not in done.stderr.partition("torch/distributed")[0]
    assert not (job / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [TORCHRUN, ACCELERATE], ids=lambda x: x[0])
def test_two_processes_train_one_model(job: Path, launcher: Sequence[str]) -> None:
    """They leave one finished RUN, speak with one voice and part without a complaint."""
    done = start(job, launcher, ACCELERATE_USE_CPU="true")
    assert done.returncode == 0, done.stderr
    assert (job / "run" / "report" / "report.html").is_file()
    assert json.loads((job / "run" / "run.json").read_text())["state"] == "finished"
    assert done.stdout.count("open ") == 1
    assert done.stdout.count("precision ") == 1
    for complaint in ("Traceback", "destroy_process_group", "timeout", "Error"):
        assert complaint not in done.stderr, done.stderr


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        pytest.param([], "set by accelerate_config.yaml", id="plain"),
        pytest.param(
            ["--config_file", str(YAML)],
            "set by accelerate launch --config_file",
            id="config_file",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["--mixed_precision", "no"],
            "precision no, set by accelerate launch --mixed_precision",
            id="mixed_precision",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_the_literal_command(
    options: list[str],
    wanted: str,
    tmp_path: Path,
    make_images: Callable[..., Path],
    tiny_recipe: Callable[..., dict],
) -> None:
    """`accelerate launch run_finetune.py RECIPE` from the checkout trains and ends in a report."""
    root = make_images(tmp_path / "images")
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps(tiny_recipe(root, tmp_path / "run")))
    command = [
        str(Path(sys.executable).with_name("accelerate")),
        "launch",
        *options,
        "run_finetune.py",
        str(recipe),
    ]
    environment = os.environ | {
        "HF_HOME": str(tmp_path / "hf"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    environment.pop("ACCELERATE_MIXED_PRECISION", None)
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    # A processor without bf16 says so instead; either way the shipped file was read.
    assert wanted in done.stdout or (not options and "accelerate_config.yaml asks for bf16" in done.stdout)
    assert (tmp_path / "run" / "report" / "report.html").is_file()
    noted = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert noted["precision"] == ("no" if "precision no" in done.stdout else "bf16")
