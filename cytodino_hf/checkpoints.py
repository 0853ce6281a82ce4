"""Sealed checkpoints: written, verified, chosen, set aside and deleted so that no moment of a kill loses a run.

A checkpoint is a folder `checkpoint-N` that is written under another name; its seal (see seals.py) comes last, and only
then the folder gets its name. So a folder of that name is whole, and what happened to it since shows. Nothing else is
ever read back.

checkpoint-N/            sealed after optimizer step N
checkpoint-N.partial/    being written; a leftover after a kill
checkpoint-N.deleted/    being deleted; a leftover after a kill
set-aside/               what did not verify, the newest few
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .errors import FullDiskError
from .files import push_to_disk
from .training.seals import best_step, verify, write_manifest

logger = logging.getLogger(__name__)
SET_ASIDE = "set-aside"
_NAME = re.compile(r"checkpoint-(0|[1-9]\d*)")
_LEFTOVER = re.compile(_NAME.pattern + r"\.(partial|deleted)")
# Folders kept in set-aside: enough to look into, not enough to fill a disk.
_KEPT_ASIDE = 3
# What a save may need beyond its tensors: log, names, the file system's own blocks.
_SPACE_MARGIN = 1.05
_SPACE_EXTRA_BYTES = 16 * 2**20
_MIB = 2**20
# How torch and safetensors, which write without Python, word a failed write.
_FAILED_WRITE = re.compile(
    r"inline_container|PytorchStreamWriter|I/O error|No space left|file.* cannot be", re.I
)


@dataclass(frozen=True)
class SetAside:
    """A checkpoint that was not used.

    Args:
        name: Its folder's name.
        reason: What is wrong with it.
        moved_to: Where it is now.
    """

    name: str
    reason: str
    moved_to: str


@dataclass(frozen=True)
class Choice:
    """Where to go on, and what was passed over to get there.

    Args:
        folder: The newest checkpoint that can be trusted; None: from the start.
        set_aside: Those that cannot.
    """

    folder: Path | None
    set_aside: tuple[SetAside, ...]


class Checkpoints:
    """The checkpoints of one RUN.

    In several processes one alone calls what writes; all may call `folder`, `partial` and `guarded`.

    Args:
        run: The RUN folder.
        limit: How many of the newest stay, the best one besides; None keeps all.
    """

    def __init__(self, run: str | Path, limit: int | None = None) -> None:
        self.run = Path(run)
        self.limit = limit

    def folder(self, step: int) -> Path:
        """The folder of the checkpoint after a step."""
        return self.run / f"checkpoint-{step}"

    def partial(self, step: int) -> Path:
        """The folder in which the checkpoint after a step is written."""
        return self.run / f"checkpoint-{step}.partial"

    def steps(self) -> list[int]:
        """Steps of everything that bears the name of a checkpoint, in order."""
        if not self.run.is_dir():
            return []
        names = (_NAME.fullmatch(path.name) for path in self.run.iterdir())
        return sorted(int(name[1]) for name in names if name)

    def begin(self, step: int, needed_bytes: int) -> None:
        """Make room for a checkpoint.

        Args:
            step: Optimizer step it is taken after.
            needed_bytes: Bytes of the tensors to be written.

        Raises:
            FullDiskError: The disk has too little space; nothing was touched.
        """
        self.run.mkdir(parents=True, exist_ok=True)
        needed = int(needed_bytes * _SPACE_MARGIN) + _SPACE_EXTRA_BYTES
        free = shutil.disk_usage(self.run).free
        if free < needed:
            raise FullDiskError(
                f"{self.run}: the checkpoint after step {step} needs {needed / _MIB:,.0f} MiB and the disk has "
                f"{free / _MIB:,.0f} MiB left. {self._what_is_left()} Free some space and start the same command again"
            )
        _remove(self.partial(step))
        with self.guarded(step) as folder:
            folder.mkdir()

    @contextmanager
    def guarded(self, step: int) -> Iterator[Path]:
        """The folder to write a checkpoint into; removed again when the writing fails.

        Raises:
            FullDiskError: The disk is full or a limit on the size of files was reached; older checkpoints stay.
        """
        try:
            yield self.partial(step)
        except BaseException as error:
            shutil.rmtree(self.partial(step), ignore_errors=True)
            if isinstance(error, OSError) or _FAILED_WRITE.search(str(error)):
                raise FullDiskError(
                    f"{self.folder(step)} could not be written ({' '.join(str(error).split())[:200]}). "
                    f"{self._what_is_left()} Free space or lift the limit and start the same command again"
                ) from error
            raise

    def seal(self, step: int, processes: int = 1) -> Path:
        """Write the manifest of a checkpoint and give its folder its name.

        Args:
            step: Optimizer step it was taken after.
            processes: How many train together; each has random numbers of its own in the checkpoint.

        Returns:
            The folder, from now on one that verifies.
        """
        folder = self.partial(step)
        write_manifest(folder, step, processes)
        if os.path.lexists(self.folder(step)):
            _remove(self.folder(step))
        os.rename(folder, self.folder(step))
        push_to_disk(self.run)
        return self.folder(step)

    def rotate(self, best_step: int | None) -> None:
        """Delete all but the newest `limit` checkpoints and the best one.

        Args:
            best_step: Step of the best checkpoint, if there is one yet.
        """
        if self.limit is None:
            return
        steps = self.steps()
        kept = {*steps[-self.limit :], best_step}
        for step in steps:
            if step not in kept:
                _remove_or_tell(self.folder(step))

    def choose(self) -> Choice:
        """Find where to go on: the newest checkpoint that verifies together with its best one.

        A checkpoint whose best one is lost is passed over: an older one, or the start, leads to the same best again,
        while the lost one would be missing at the end. What fails is moved to `set-aside`, never deleted at once;
        leftovers of a kill are removed.
        """
        self._remove_leftovers()
        seen: dict[int, str | None] = {}
        refused: dict[int, str] = {}
        chosen = None
        for step in reversed(self.steps()):
            reason = self._judge(step, seen)
            if reason is None:
                chosen = self.folder(step)
                break
            refused[step] = reason
        # A damaged best one that is older than the chosen checkpoint.
        refused |= {
            s: r for s, r in seen.items() if r is not None and os.path.lexists(self.folder(s))
        } | refused
        return Choice(chosen, tuple(self._set_aside(step, refused[step]) for step in sorted(refused)))

    def _judge(self, step: int, seen: dict[int, str | None]) -> str | None:
        """Why a checkpoint cannot be gone on from; `seen` keeps what `verify` said, so that a folder is read once."""

        def verdict(number: int) -> str | None:
            if number not in seen:
                seen[number] = verify(self.folder(number))
            return seen[number]

        reason = verdict(step)
        if reason is None:
            best = best_step(self.folder(step))
            if best is not None and (problem := verdict(best)) is not None:
                reason = f"its best checkpoint, {self.folder(best).name}: {problem}"
        return reason

    def _set_aside(self, step: int, reason: str) -> SetAside:
        aside = self.run / SET_ASIDE
        aside.mkdir(exist_ok=True)
        name = self.folder(step).name
        target = next(
            p for n in range(10_000) if not os.path.lexists(p := aside / (f"{name}-{n}" if n else name))
        )
        os.rename(self.folder(step), target)
        os.utime(target, follow_symlinks=False)  # now: the oldest to arrive is the first to go
        push_to_disk(self.run)
        for old in sorted(aside.iterdir(), key=lambda p: p.lstat().st_mtime_ns)[:-_KEPT_ASIDE]:
            _remove_or_tell(old)
        return SetAside(name, reason, str(target.relative_to(self.run)))

    def _remove_leftovers(self) -> None:
        if self.run.is_dir():
            for path in list(self.run.iterdir()):
                if _LEFTOVER.fullmatch(path.name):
                    _remove_or_tell(path)

    def _what_is_left(self) -> str:
        steps = self.steps()
        return f"The checkpoint after step {steps[-1]} is untouched." if steps else "No earlier one exists."


def _remove(path: Path) -> None:
    """Delete a folder or file so that a kill leaves nothing that looks like a checkpoint."""
    if not os.path.lexists(path):
        return
    if _NAME.fullmatch(path.name) and path.parent.name != SET_ASIDE:
        doomed = path.with_name(path.name + ".deleted")
        _remove(doomed)
        os.rename(path, doomed)
        path = doomed
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _remove_or_tell(path: Path) -> None:
    """Delete what is in nobody's way: failing to is no reason to stop a training."""
    try:
        _remove(path)
    except OSError as error:
        logger.warning("%s could not be deleted (%s); it is only in the way of space", path, error)
