"""What `step` and `predict` share: peak memory of every cell first, then all cells and the matrix peak in turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from .machine import matrix_multiply
from .peak import OutOfMemoryError, peak_memory
from .results import MatrixMultiply
from .rounds import Round, Work, interleave
from .settings import ModelSettings

_PRECISIONS = ("float32", "bfloat16")
# Compilation, memory pools and the choice of kernels take place before the clock runs.
_WARM_UP = {"cpu": 1, "cuda": 3}


def memory_of_cells(
    module: str, settings: ModelSettings, root: Path, names: Sequence[str]
) -> tuple[dict[str, int], dict[str, str]]:
    """Peak memory of each cell in a process of its own, and the cells that do not fit, with the reason."""
    from tqdm.auto import tqdm

    memory: dict[str, int] = {}
    failed: dict[str, str] = {}
    if not settings.memory:
        return memory, failed
    task = settings.model_dump(mode="json") | {"root": str(root)}
    for name in tqdm(names, desc="peak memory", unit="cell"):
        try:
            memory[name] = peak_memory(module, task, name)
        except OutOfMemoryError:
            failed[name] = "does not fit into memory"
    return memory, failed


def time_cells(
    works: Mapping[str, Work], settings: ModelSettings, label: str
) -> tuple[dict[str, list[Round]], dict[str, MatrixMultiply]]:
    """Time all cells in turn, and in the same rounds the machine's own matrix multiplication."""
    import torch

    products = {name: matrix_multiply(getattr(torch, name), settings.device) for name in _PRECISIONS}
    both = {**works, **{f"matrix {name}": work for name, (work, _) in products.items()}}
    rounds = interleave(
        both, rounds=settings.rounds, warm_up=_WARM_UP[settings.device], device=settings.device, label=label
    )
    peaks = {
        name: MatrixMultiply(flops=flops, rounds=rounds.pop(f"matrix {name}"))
        for name, (_, flops) in products.items()
    }
    return rounds, peaks
