"""What a run ran on: package versions, hardware, commit and command, and how a card names it."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

_PACKAGES = (
    "cytodino-hf", "torch", "transformers", "peft", "accelerate", "datasets", "evaluate", "huggingface_hub",
    "albumentations", "numpy", "opencv-python-headless", "pillow", "scikit-learn",
)  # fmt: skip


def describe_environment() -> dict[str, Any]:
    """Package versions, hardware, commit and command of this process; no user name, no host name."""
    import psutil
    import torch

    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "packages": {name: _version(name) for name in _PACKAGES},
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpus": devices,
        "cuda": torch.version.cuda,
        "precision": os.environ.get("ACCELERATE_MIXED_PRECISION", "no"),
        "git_commit": _git_commit(),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def processor_name() -> str:
    """The processor as the system names it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    return platform.processor()


def _git_commit() -> str | None:
    """Commit of the checkout this package runs from, with `-dirty` where files were changed; None without one."""
    here = Path(__file__).parent
    if not (here.parent / ".git").exists():
        return None
    try:
        out = subprocess.run(
            ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None  # no git on this machine
    return out.stdout.strip()


def hardware(environment: Mapping[str, Any], *, processes: int | None = None) -> str:
    """The device of a run in words: its first GPU, or the processor where it has none.

    Args:
        environment: Of `describe_environment`.
        processes: Of the run; None leaves them unsaid.

    Example:
        >>> hardware({"gpus": [], "processor": "Ryzen 7", "cores": 8}, processes=2)
        '2 x Ryzen 7 (8 cores)'
    """
    gpus = environment.get("gpus") or []
    device = (
        gpus[0]
        if gpus
        else f"{environment.get('processor') or 'a processor'} ({environment.get('cores')} cores)"
    )
    return device if processes is None else f"{processes} x {device}"
