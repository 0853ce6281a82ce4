"""What the numbers were measured on, and how fast that machine multiplies matrices."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from cytodino_hf.environment import processor_name

if TYPE_CHECKING:
    import torch

_PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "albumentations",
    "opencv-python-headless",
    "pillow",
    "datasets",
    "numpy",
)
# Side of the matrices whose product is the machine's peak: large enough to fill it, small enough for one round.
_SIDE = {"cpu": 1536, "cuda": 8192}
_REPEATS = {"cpu": 2, "cuda": 20}


def describe_machine() -> dict[str, str | int | float]:
    """Processor, memory, GPU, and how busy the machine was."""
    import psutil
    import torch

    found: dict[str, str | int | float] = {
        "cpu": processor_name(),
        "cores": os.cpu_count() or 1,
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": platform.system(),
        "load_at_start": round(os.getloadavg()[0], 2),
    }
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found |= {"gpu": properties.name, "gpu_memory_gib": round(properties.total_memory / 2**30, 1)}
    return found


def describe_versions() -> dict[str, str]:
    """Versions of what is measured."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


def limit_threads(count: int) -> None:
    """Let torch and OpenCV use so many threads in this process."""
    import cv2
    import torch

    torch.set_num_threads(count)
    cv2.setNumThreads(count if count > 1 else 0)


def matrix_multiply(dtype: torch.dtype, device: str) -> tuple[Callable[[int], object], float]:
    """Work that multiplies two large square matrices, and its floating-point operations."""
    import torch

    side, repeats = _SIDE[device], _REPEATS[device]
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(side, side, generator=generator).to(device, dtype) for _ in range(2))
    product = torch.empty_like(left)

    def work(number: int) -> None:
        for _ in range(repeats):
            torch.mm(left, right, out=product)

    return work, 2.0 * side**3 * repeats
