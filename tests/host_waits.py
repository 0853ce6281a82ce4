"""Watches the steps of a training for what makes the host wait for the device."""

from __future__ import annotations

import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import TrainerCallback

# On a GPU each of these waits for the device: a value is read, or a size depends on values.
WAITS = (
    "aten::_local_scalar_dense", "aten::item", "aten::is_nonzero", "aten::nonzero", "aten::equal",
    "aten::masked_select", "aten::_unique2", "aten::unique_dim", "aten::repeat_interleave",
)  # fmt: skip
# On a GPU a tensor made of Python numbers is copied from pageable memory: the host waits for that too.
FROM_PYTHON = ("aten::lift_fresh",)
# Steps watched. The first creates the optimizer's state; an epoch, 5 steps here, begins with a seed drawn on the host.
FIRST, LAST = 1, 4


class Watch(TorchDispatchMode):
    """Counts the operators that would wait, with the line of ours or of a library that called them."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()
        self.calls = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function._schema.name
        self.calls += 1
        if name in WAITS + FROM_PYTHON or (name == "aten::index" and _by_mask(args)):
            self.found[f"{name} in {_caller()}"] += 1
        return function(*args, **(kwargs or {}))


def _by_mask(args: Any) -> bool:
    return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])


def _caller() -> str:
    frames = [f for f in traceback.extract_stack() if "torch/" not in f.filename and f.filename != __file__]
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}"


class Watched(TrainerCallback):
    """Watches from the end of step FIRST to the end of step LAST: loading, forward, backward, update, bookkeeping."""

    def __init__(self, watch: Any) -> None:
        self.watch = watch

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == FIRST:
            self.watch.__enter__()
        if state.global_step == LAST:
            self.watch.__exit__(None, None, None)


class WatchGpu:
    """torch itself raises where the host would wait."""

    def __enter__(self) -> None:
        torch.cuda.set_sync_debug_mode("error")

    def __exit__(self, *error: Any) -> None:
        torch.cuda.set_sync_debug_mode("default")


def train_unwaiting(trainer: Any) -> None:
    """Train on a GPU; torch raises at the first step whose host waits."""
    trainer.add_callback(Watched(WatchGpu()))
    try:
        trainer.train()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert trainer.guard.is_deferred
