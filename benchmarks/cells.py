"""What `step` and `predict` share: peak memory of each cell, then all cells and the matrix peak in turn, the rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from .machine import matrix_multiply
from .peak import OutOfMemoryError, peak_memory
from .results import Images, MatrixMultiply, Result, Row, new_result
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


def model_result(
    benchmark: str,
    title: str,
    names: Sequence[str],
    settings: ModelSettings,
    *,
    command: str,
    table: str,
    units: Callable[[str], int],
    flops: tuple[float, float],
    memory: Mapping[str, int],
    failed: Mapping[str, str],
    rounds: Mapping[str, list[Round]],
    products: dict[str, MatrixMultiply],
    images: Images,
    notes: list[str],
) -> Result:
    """The result of a benchmark of a model, from what was measured cell by cell.

    Args:
        benchmark: Name of the benchmark.
        title: What was timed, before the model's name.
        names: Cells; the first is the published way, which the others are compared with.
        settings: Of the benchmark.
        command: The command line.
        table: Name of the one table.
        units: Pictures of one round of a cell.
        flops: Operations of one picture, the published way and ours.
        memory, failed: From `memory_of_cells`.
        rounds, products: From `time_cells`.
        images: What was shown to the model.
        notes: Sentences below the table.
    """
    published, our_flops = flops
    rows = [
        Row(
            table=table,
            name=name,
            against=names[0],
            units=units(name),
            flops_per_unit=published if name == names[0] else our_flops,
            peak="bfloat16" if "bfloat16" in name else "float32",
            memory_bytes=memory.get(name),
            rounds=rounds.get(name, []),
            failed=failed.get(name),
        )
        for name in names
    ]
    return new_result(
        benchmark,
        f"{title}, DINOv3 {settings.backbone} (random weights) with LoRA and decoder head, {settings.device}",
        command=command,
        clock="device_s" if settings.device == "cuda" else "cpu_s",
        settings=settings.model_dump(),
        images=images,
        matrix_multiply=products,
        rows=rows,
        notes=notes,
    )
