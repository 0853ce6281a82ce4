"""How a run was started, and with which precision: the part of `accelerate launch` that accelerate leaves out.

accelerate reads a configuration from `--config_file` or from the user's own default file, never from the folder of
the script. So that the plain command uses the shipped `accelerate_config.yaml`, the script applies it itself.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .errors import CytoDinoError

PRECISIONS = ("no", "bf16", "fp16")
# linux/prctl.h: the signal a process gets when its parent ends.
_PR_SET_PDEATHSIG = 1


def apply_accelerate_config(shipped: Path) -> str:
    """Set the precision of this process, before anything of accelerate is built.

    The order: what the user told `accelerate launch` (`--config_file`, `--mixed_precision`), the user's own default
    file of accelerate, the shipped file. bf16 becomes plain float32 on a device that is slow or unable at it.

    Args:
        shipped: The project's `accelerate_config.yaml`; may be missing (an installed package without a checkout).

    Returns:
        One line that says which precision is used and who chose it.

    Raises:
        CytoDinoError: The shipped file was edited into something only `--config_file` can apply, or is no valid file.
    """
    chosen_by = _chosen_by_launcher()
    if chosen_by is not None:
        return f"precision {os.environ.get('ACCELERATE_MIXED_PRECISION', 'no')}, set by {chosen_by}"
    if not shipped.is_file():
        return f"precision {os.environ.get('ACCELERATE_MIXED_PRECISION', 'no')} (no {shipped.name} beside the script)"
    wanted = _read_precision(shipped)
    if wanted == "bf16" and (obstacle := bf16_obstacle()):
        os.environ["ACCELERATE_MIXED_PRECISION"] = "no"
        return f"precision no: {shipped.name} asks for bf16, but {obstacle}"
    os.environ["ACCELERATE_MIXED_PRECISION"] = wanted
    return f"precision {wanted}, set by {shipped.name}"


def use_large_pages() -> None:
    """Let torch put large tensors of the CPU on whole pages, large ones where the system has them.

    At torch's usual alignment of 64 bytes glibc hardly reuses what torch frees; on whole pages it does, which lowers
    the peak of memory. To be called before torch makes its first tensor. THP_MEM_ALLOC_ENABLE=0 in the environment
    keeps torch's way.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def give_back_freed_memory() -> None:
    """Return to the system what lies free in glibc's heap; nothing on other systems.

    Where tensors of the CPU are of another size in every step, the heap grows by the holes they leave.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def use_free_cores(workers: int) -> None:
    """Compute with the cores that the processes reading images leave free.

    `accelerate launch` gives its processes one thread unless it is told a number; a single process on a machine
    without GPU would leave most cores idle. A number the user chose (`--num_cpu_threads_per_process`,
    OMP_NUM_THREADS) stays.

    Args:
        workers: `training.dataloader_num_workers`. More threads than free cores wait for each other: on two cores
            with two workers, two threads are slower than one.
    """
    import torch

    launcher = _launcher()
    if launcher is None or int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return
    asked = any(word.startswith(("--num_cpu_threads", "--num-cpu-threads")) for word in launcher.arguments)
    if not asked and "OMP_NUM_THREADS" not in launcher.environment:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(max(1, cores - workers))


def end_with_launcher() -> None:
    """Be told, by a SIGTERM, when the `accelerate launch` that started this process is gone.

    With one process the launcher passes no signal on: whoever stops it, as a scheduler does, would leave a training
    behind that nobody sees. Only Linux can tell.
    """
    if sys.platform != "linux" or int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return
    import psutil

    try:
        words = psutil.Process(os.getppid()).cmdline()
    except psutil.Error:
        return
    if _launch_word(words) is not None:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def bf16_obstacle() -> str | None:
    """Why bf16 is of no use here, or None where it is."""
    import torch

    if torch.cuda.is_available():
        return (
            None
            if torch.cuda.is_bf16_supported(including_emulation=False)
            else "this GPU cannot compute in it"
        )
    if getattr(torch.backends, "mps", None) is not None and torch.backends.mps.is_available():
        return "it is not used on this device"
    return (
        None if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "this processor has no instructions for it"
    )


def speaks() -> bool:
    """Whether this process tells the user how things go: the first one of those a launcher started."""
    return os.environ.get("RANK", "0") == "0"


def refuse_independent_trainings(world_size: int) -> None:
    """Stop where several processes were started that do not know of each other: each would train in the same folder.

    Args:
        world_size: Processes this training really consists of.

    Raises:
        CytoDinoError: The launcher started more.
    """
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started > 1 and world_size == 1:
        raise CytoDinoError(
            f"{started} processes were started, but each would train alone in the same folder: the launcher's "
            "configuration asks for GPUs that are not here. Use the shipped accelerate_config.yaml (one process), "
            "or `ACCELERATE_USE_CPU=true torchrun --nproc-per-node 2 run_finetune.py ...` on a machine without GPU"
        )


@dataclass(frozen=True)
class _Launcher:
    """The `accelerate launch` a process descends from: its arguments, and the environment the user gave it."""

    arguments: Sequence[str]
    environment: Mapping[str, str]


def _chosen_by_launcher() -> str | None:
    """What decided the precision when it was not the shipped file: an option of the launcher or the user's file."""
    launcher = _launcher()
    if launcher is None:
        return (
            "the environment (ACCELERATE_MIXED_PRECISION)"
            if "ACCELERATE_MIXED_PRECISION" in os.environ
            else None
        )
    for option in ("--mixed_precision", "--mixed-precision", "--config_file", "--config-file"):
        if any(a == option or a.startswith(option + "=") for a in launcher.arguments):
            return f"accelerate launch {option}"
    from accelerate.commands.config import default_config_file

    if os.path.isfile(default_config_file):
        return f"{default_config_file} (the file of `accelerate config`)"
    return None


def _launcher() -> _Launcher | None:
    import psutil

    for parent in psutil.Process().parents()[:4]:  # a launcher of several processes puts one more in between
        try:
            words, environment = parent.cmdline(), parent.environ()
        except psutil.Error:
            return None
        if (at := _launch_word(words)) is not None:
            return _Launcher(words[at + 1 :], environment)
    return None


def _launch_word(words: Sequence[str]) -> int | None:
    """Where in a command line `accelerate launch` stands, or None."""
    for at, word in enumerate(words):
        is_script = os.path.basename(word).startswith("accelerate") and words[at + 1 : at + 2] == ["launch"]
        if is_script or "accelerate.commands.launch" in word or os.path.basename(word) == "accelerate-launch":
            return at
    return None


def _read_precision(path: Path) -> str:
    import yaml

    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise CytoDinoError(f"{path}: cannot be read ({error})") from error
    if not isinstance(document, dict) or document.get("mixed_precision", "no") not in PRECISIONS:
        raise CytoDinoError(f"{path}: mixed_precision must be one of {', '.join(PRECISIONS)}")
    wanted = int(document.get("num_processes", 1)) * int(document.get("num_machines", 1))
    if wanted > 1 and int(os.environ.get("WORLD_SIZE", "1")) == 1:
        raise CytoDinoError(
            f"{path} asks for {wanted} processes, which only the launcher can start: "
            f"accelerate launch --config_file {path.name} run_finetune.py ..."
        )
    return str(document.get("mixed_precision", "no"))
