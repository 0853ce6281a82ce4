"""Train every arm with every seed: each a normal RUN in a process of its own, left alone once it is finished."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from cytodino_hf.errors import CytoDinoError, RunFolderError
from cytodino_hf.files import write_json
from cytodino_hf.recipe import load_recipe
from cytodino_hf.run_folder import RunFolder

_COSTS = "costs.json"
_PRECISION = "ACCELERATE_MIXED_PRECISION"
_LOOK_EVERY_S = 0.2


@dataclass(frozen=True)
class Cost:
    """What a process took.

    Args:
        cpu_s, wall_s: Seconds of the processor, and on the wall.
        jobs: Runs at the same time.
        threads: Of each run.
    """

    cpu_s: float
    wall_s: float
    jobs: int = 1
    threads: int = 1


@dataclass(frozen=True)
class Run:
    """One arm with one seed.

    Args:
        arm: Name of the arm.
        seed: Of the run.
        study: Folder of the study.
        images_sha256: Fingerprint of its images, labels and folds.
        precision: See `Arm.precision`.
    """

    arm: str
    seed: int
    study: Path
    images_sha256: str
    precision: str | None = None

    @property
    def name(self) -> str:
        """Of folder and files, below those of the study."""
        return f"{self.arm}/seed{self.seed}"

    @property
    def folder(self) -> RunFolder:
        """The RUN."""
        return RunFolder(self.study / "runs" / self.name)

    @property
    def recipe_file(self) -> Path:
        """`cytodino finetune` of this file is this run."""
        return self.study / "recipes" / f"{self.name}.json"

    @property
    def log(self) -> Path:
        """What its process said."""
        return self.study / "logs" / f"{self.name}.log"

    def is_finished(self) -> bool:
        """Whether it came to its end, by the very recipe and on the very images of this study.

        Raises:
            RunFolderError: Its folder holds a run of another recipe, on other images or in another precision.
        """
        folder = self.folder
        folder.check(load_recipe(self.recipe_file), self.images_sha256)
        if not folder.is_finished():
            return False
        known = folder.environment()["precision"]
        if self.precision not in (None, known):
            raise RunFolderError(
                f"{folder.path} holds a run in precision {known!r}, the arm asks for {self.precision!r}; delete it, "
                "and the same command trains it again"
            )
        return True

    def write_recipe(self, document: dict[str, Any]) -> None:
        """Write the recipe with this run's seed and folder."""
        training = document["training"] | {"seed": self.seed, "output_dir": str(self.folder.path)}
        write_json(self.recipe_file, document | {"training": training})


class Child(Protocol):
    """A run that is under way."""

    def poll(self) -> Cost | None:
        """What it took, once it has ended well.

        Raises:
            CytoDinoError: It failed.
        """

    def stop(self) -> Cost | None:
        """End it in good order; what it took, or None where it had ended."""


def perform(runs: Sequence[Run], *, jobs: int, start: Callable[[Run], Child] | None = None) -> None:
    """Bring every run to its end, `jobs` at a time; finished ones are left alone.

    Args:
        runs: In the order to be done.
        jobs: How many at the same time.
        start: Begins a run; by default in a process of its own.

    Raises:
        CytoDinoError: A run failed; the same study goes on where it was.
    """
    from tqdm.auto import tqdm

    begin: Callable[[Run], Child] = ChildProcess if start is None else start
    waiting = [run for run in runs if not run.is_finished()]
    for run in waiting:
        if not run.folder.path.exists():
            _forget(run)
    under_way: dict[Run, Child] = {}
    done = len(runs) - len(waiting)
    with (
        _ends_together(under_way, jobs),
        tqdm(total=len(runs), initial=done, desc="runs", unit="run") as progress,
    ):
        while waiting or under_way:
            while waiting and len(under_way) < jobs:
                run = waiting.pop(0)
                under_way[run] = begin(run)
            for run, child in list(under_way.items()):
                if (cost := child.poll()) is not None:
                    del under_way[run]
                    _add(run, replace(cost, jobs=jobs))
                    progress.write(f"{run.name}: {cost.cpu_s:.0f} s of CPU, {cost.wall_s:.0f} s", sys.stderr)
                    progress.update()
            if under_way:
                time.sleep(_LOOK_EVERY_S)


def costs(study: Path) -> dict[str, Cost]:
    """What the processes of each run took together, by `Run.name`; one that failed is missing in it."""
    file = study / _COSTS
    found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return {name: Cost(**values) for name, values in found.items()}


def _add(run: Run, cost: Cost) -> None:
    """Add what a process took to what earlier ones of the same run took."""
    known = costs(run.study)
    if earlier := known.get(run.name):
        cost = replace(cost, cpu_s=earlier.cpu_s + cost.cpu_s, wall_s=earlier.wall_s + cost.wall_s)
    _write_costs(run.study, known | {run.name: cost})


def _forget(run: Run) -> None:
    """A run whose folder was deleted begins anew."""
    known = costs(run.study)
    if known.pop(run.name, None):
        _write_costs(run.study, known)


def _write_costs(study: Path, known: dict[str, Cost]) -> None:
    write_json(study / _COSTS, {name: vars(one) for name, one in sorted(known.items())})


class ChildProcess:
    """`cytodino finetune` of one run, with one thread unless OMP_NUM_THREADS says otherwise.

    What precision the study itself inherited is not handed on: an arm has its own, or that of the project.

    Several runs at once use the cores better than several threads of one: on a machine that others use too, threads
    that wait for each other cost ten times the processor's time.

    Args:
        run: Which.
    """

    def __init__(self, run: Run) -> None:
        environment = {"OMP_NUM_THREADS": "1"} | os.environ
        environment.pop(_PRECISION, None)
        if run.precision is not None:
            environment[_PRECISION] = run.precision
        self._threads = int(environment["OMP_NUM_THREADS"].split(",")[0])  # a list is one number a level
        run.log.parent.mkdir(parents=True, exist_ok=True)
        with open(run.log, "a", encoding="utf-8") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "cytodino_hf", "finetune", str(run.recipe_file)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
            )
        self._run, self._begun = run, time.perf_counter()

    def poll(self) -> Cost | None:
        """See `Child`."""
        if self._process.returncode is not None:
            return None
        ended, status, usage = os.wait4(self._process.pid, os.WNOHANG)
        if not ended:
            return None
        cost = self._ended(status, usage)
        if self._process.returncode:
            raise CytoDinoError(
                f"{self._run.name} failed (exit code {self._process.returncode}): {_last_line(self._run.log)}\n"
                f"The whole story: {self._run.log}. The same command goes on where it was."
            )
        return cost

    def stop(self) -> Cost | None:
        """See `Child`."""
        if self._process.returncode is not None:
            return None
        self._process.terminate()  # it saves first
        _, status, usage = os.wait4(self._process.pid, 0)
        return self._ended(status, usage)

    def _ended(self, status: int, usage: resource.struct_rusage) -> Cost:
        self._process.returncode = os.waitstatus_to_exitcode(status)
        seconds = usage.ru_utime + usage.ru_stime, time.perf_counter() - self._begun
        return Cost(*seconds, threads=self._threads)


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return next((line for line in reversed(lines) if line.startswith("error:")), lines[-1] if lines else "")


@contextmanager
def _ends_together(under_way: dict[Run, Child], jobs: int) -> Iterator[None]:
    """Whatever ends the study ends its runs, also the SIGTERM of a scheduler; what they took until then counts."""

    def leave(number: int, frame: Any) -> None:
        raise SystemExit(128 + number)

    is_main = threading.current_thread() is threading.main_thread()
    former = signal.signal(signal.SIGTERM, leave) if is_main else None
    try:
        yield
    finally:
        for run, child in under_way.items():
            if (cost := child.stop()) is not None:
                _add(run, replace(cost, jobs=jobs))
        if is_main:
            signal.signal(signal.SIGTERM, former)
