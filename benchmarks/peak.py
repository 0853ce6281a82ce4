"""Peak memory of one cell, in a process that does nothing else (`python -m benchmarks.peak`, its task on stdin)."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from cytodino_hf.errors import CytoDinoError

_ROOT = Path(__file__).resolve().parent.parent
_ROUNDS = 2


class OutOfMemoryError(Exception):
    """The cell does not fit."""


def peak_memory(module: str, settings: dict[str, Any], name: str) -> int:
    """Greatest memory of a process that builds one cell and runs it twice, bytes.

    Args:
        module: A module of this package with `build(settings, name) -> Work`.
        settings: What `build` takes, fit for JSON.
        name: Of the cell.

    Returns:
        The greatest resident memory (VmHWM), code and libraries included; on a GPU what was allocated there at most.

    Raises:
        OutOfMemoryError: The cell did not fit.
        CytoDinoError: The process failed otherwise.
    """
    task = json.dumps({"module": module, "settings": settings, "name": name})
    out = subprocess.run(
        [sys.executable, "-m", __name__], input=task, capture_output=True, text=True, cwd=_ROOT, check=False
    )
    if out.returncode:
        raise CytoDinoError(f"the cell {name!r} failed in a process of its own:\n{out.stderr[-2000:]}")
    answer = json.loads(out.stdout.splitlines()[-1])
    if answer["bytes"] is None:
        raise OutOfMemoryError(name)
    return int(answer["bytes"])


def _run(task: dict[str, Any]) -> int | None:
    import torch

    from .machine import limit_threads

    limit_threads(task["settings"]["threads"])
    try:
        work = import_module(f"benchmarks.{task['module']}").build(task["settings"], task["name"])
        for number in range(_ROUNDS):
            work(number)
    except torch.OutOfMemoryError:
        return None
    if task["settings"].get("device") == "cuda":
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status").read_text(encoding="ascii")
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None
    return int(found.group(1)) * 1024


if __name__ == "__main__":
    sys.stdout.write(json.dumps({"bytes": _run(json.loads(sys.stdin.read()))}) + "\n")
