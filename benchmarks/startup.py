"""`cytodino benchmark startup`: what a command costs before it does anything, as CPU time of fresh processes."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from cytodino_hf.errors import CytoDinoError

from .results import Result, Row, new_result
from .rounds import Round, Work, interleave
from .settings import Settings

_ROOT = Path(__file__).resolve().parent.parent
_RECIPE = _ROOT / "recipes" / "demo.json"
_CELLS = 420
_TABLE = "starting"
_HELP = "ours: cytodino --help"
_REFERENCE = "published: import of its libraries"
# What the published training script imports before it does anything.
_PUBLISHED_IMPORTS = """
import os
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
import albumentations, matplotlib.pyplot, numpy, pandas, torch
from albumentations.pytorch import ToTensorV2
from peft import LoraConfig, get_peft_model
from PIL import Image
from sklearn.metrics import confusion_matrix, f1_score
from sklearn.utils.class_weight import compute_class_weight
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import AutoImageProcessor, AutoModel
"""
_VALIDATE = f"from cytodino_hf.recipe import load_recipe; load_recipe({str(_RECIPE)!r})"
_OURS = "import sys; from cytodino_hf.cli import main; main(sys.argv[1:])"


def run(settings: Settings, command: str) -> Result:
    """Start each command anew in every round."""
    with tempfile.TemporaryDirectory(prefix="cytodino-benchmark-") as folder:
        environment = os.environ | {
            "CYTODINO_CACHE": folder,
            "XDG_CACHE_HOME": folder,
            "OMP_NUM_THREADS": str(settings.threads),
            "HF_HUB_OFFLINE": "1",
        }
        commands = _commands(Path(folder))
        if settings.quick:
            commands = {name: commands[name] for name in (_REFERENCE, _HELP)}
        peaks: dict[str, int] = {}
        works = {name: partial(_start, name, words, environment, peaks) for name, words in commands.items()}
        rounds = interleave(
            works,
            rounds=settings.rounds,
            warm_up=0 if settings.quick else 1,
            measure=_timed_children,
            label="startup",
        )
    rows = [
        Row(
            table=_TABLE,
            name=name,
            against=_REFERENCE,
            unit="start",
            units=1,
            memory_bytes=peaks[name],
            rounds=rounds[name],
        )
        for name in commands
    ]
    return new_result(
        "startup",
        "Starting a command",
        command=command,
        clock="cpu_s",
        settings=settings.model_dump(),
        images=None,
        rows=rows,
        notes=[
            "CPU time of fresh processes, children included; files in the page cache. The published script imports all "
            "its libraries before it reads an option.",
            f"The dry run reads recipes/demo.json with {_CELLS} drawn cells that are there already.",
        ],
    )


def _commands(folder: Path) -> dict[str, Sequence[str]]:
    python = sys.executable
    overrides = ["--data.synthetic.cells", str(_CELLS), "--training.output_dir", str(folder / "run")]
    return {
        _REFERENCE: (python, "-c", _PUBLISHED_IMPORTS),
        _HELP: (python, "-c", _OURS, "--help"),
        "ours: a recipe checked": (python, "-c", _VALIDATE),
        "ours: finetune --dry-run": (python, "-c", _OURS, "finetune", str(_RECIPE), "--dry-run", *overrides),
    }


def _start(
    name: str, words: Sequence[str], environment: dict[str, str], peaks: dict[str, int], number: int
) -> None:
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            words, env=environment, cwd=_ROOT, stdout=subprocess.DEVNULL, stderr=errors
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            errors.seek(0)
            raise CytoDinoError(f"{name} failed:\n{errors.read().decode(errors='replace')[-2000:]}")
    peaks[name] = max(peaks.get(name, 0), usage.ru_maxrss * 1024)


def _timed_children(work: Work, number: int, device: str) -> Round:
    """CPU time of the processes a cell starts."""
    before, wall = os.times(), time.perf_counter()
    work(number)
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return Round(cpu_s=cpu, wall_s=time.perf_counter() - wall)
