"""The RUN folder: what it keeps about itself, and which runs may continue in it.

recipe.json        the resolved recipe, every key with its value
environment.json   versions, hardware, commit, command
split.csv          path, label, fold, group of every image
rejected.csv       path, reason of every file that was left out
near_duplicates.csv   cluster, path, label, fold of images that show the same picture
images.csv, left_out.csv   of a pretraining instead of these three: what is drawn, or was before by the backbone that
                   goes on; what is not and why
run.json           state (running, finished), fingerprint of the data, checkpoints that were set aside and why,
                   setbacks of the machine and the smaller batches they left (see recovery.py)
run.lock           held by the process that trains, with its pid
checkpoint-N/      sealed (see checkpoints.py)
set-aside/         checkpoints that did not verify
bad_numbers.json   of the last stop because a number was NaN or infinite: step, images, losses
last-good/         the weights before that step, a model like the final one
config.json, ...   the final model (see model_builder)
predictions/       Parquet files, one per fold, and embeddings
report/            report.json, report.html, figures
backbone/          of a pretraining instead of these three (see pretraining/backbone_folder.py)
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO, Any, Protocol, Self

from .checkpoints import Checkpoints
from .data.splits import SPLITS
from .environment import describe_environment
from .errors import RunFolderError
from .files import write_json
from .folder_lock import LOCK_FILE, alone_in, locked

logger = logging.getLogger(__name__)
# May differ between the start of a run and its continuation: they change where, how fast and what is said beside,
# not what.
_MAY_DIFFER = (
    "training.output_dir",
    "training.dataloader_num_workers",
    "training.report_to",
    "training.halve_batch_on_out_of_memory",
    "evaluation.baselines",
    "evaluation.parts",
    "hub.repo_id",
    "hub.private",
    "hub.merged",
    "hub.publish_revision",
    "hub.storage",
    "data.cache",
    "data.max_rejected_share",
    "*.hub_dataset.max_gigabytes",
    "data.sources.*.cache",
    "data.sources.*.max_rejected_share",
)
# Where images and lists lie may differ as well: what they hold is compared by the fingerprint of the data.
_PLACES = ("data.root", "data.hold_out", "data.sources.*.root", "probe.root")
# A way, or the file of a list: one file may take the place of another.
_WAYS_OR_FILES = ("data.split", "data.sources.*.split", "probe.split", "*.image_folder.table")


class RunRecipe(Protocol):
    """What a run is made by, of whatever kind."""

    def to_dict(self) -> dict[str, Any]:
        """Every key with its value, in the form of a recipe file."""


class RunData(Protocol):
    """The images of a run, with what it keeps of them."""

    def fingerprint(self) -> str:
        """Changes where images, labels, groups or folds do."""

    def write_lists(self, folder: Path) -> None:
        """Write which images there are, into the RUN."""


class RunFolder:
    """One `training.output_dir`; as a context it lets go of the folder at the end.

    Args:
        path: The folder; created by `begin`.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._lock: IO[str] | None = None

    @property
    def base(self) -> Path:
        """Where a backbone that is not on the Hub is kept."""
        return self.path / "base"

    @property
    def predictions(self) -> Path:
        """Folder of the predictions."""
        return self.path / "predictions"

    @property
    def report(self) -> Path:
        """Folder of the report."""
        return self.path / "report"

    def is_finished(self) -> bool:
        """Whether a run of this folder came to its end."""
        return self._state().get("state") == "finished"

    def is_finished_with(self, recipe: RunRecipe, load: Callable[[], RunData]) -> bool:
        """Whether a run of this folder came to its end, on the data of a recipe that `check` found to be the same.

        Args:
            recipe: The recipe about to run.
            load: Finds its images. They are looked at only where they or their lists lie elsewhere than they did.

        Raises:
            RunFolderError: It is finished, but there are other data where the recipe looks now.
        """
        if not self.is_finished():
            return False
        if any(_is_place(name) for name, _, _ in _unequal(self._kept_recipe(), recipe.to_dict())):
            self.check(recipe, load().fingerprint())
        return True

    def check(self, recipe: RunRecipe, data_fingerprint: str | None = None) -> None:
        """Refuse to work in a folder that belongs to something else.

        Args:
            recipe: The recipe about to run.
            data_fingerprint: Of its images, where they are known already.

        Raises:
            RunFolderError: The folder holds something else, another recipe's run, or a run on other data.
        """
        if not self.path.exists():
            return
        if not self.path.is_dir():
            raise RunFolderError(f"{self.path} is a file; give another training.output_dir")
        if not (self.path / "recipe.json").is_file():
            # A start that was killed before its recipe was written leaves at most half a file of ours.
            if any(not p.name.endswith(".partial") and p.name != LOCK_FILE for p in self.path.iterdir()):
                raise RunFolderError(f"{self.path} is not empty and no RUN; give another training.output_dir")
            return
        if differences := _differences(self._kept_recipe(), recipe.to_dict()):
            lines = "\n".join(f"  - {name}: {old!r} there, {new!r} now" for name, old, new in differences)
            raise RunFolderError(
                f"{self.path} holds a run of another recipe; give another training.output_dir or delete it:\n{lines}"
            )
        known = self._state().get("data_fingerprint")
        if data_fingerprint is not None and known not in (None, data_fingerprint):
            raise RunFolderError(
                f"{self.path} holds a run on other data: images, labels, groups or folds have changed since "
                "(it lists them, see its CSV files); give another training.output_dir or delete it"
            )

    def begin(self, recipe: RunRecipe, data: RunData) -> None:
        """Claim the folder: write recipe, lists of images and environment; the environment anew where a run continues.

        Raises:
            RunFolderError: See `check`.
        """
        fingerprint = data.fingerprint()
        self.check(recipe, fingerprint)
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(self.path / "recipe.json", recipe.to_dict())  # first: it makes the folder a RUN
        data.write_lists(self.path)
        write_json(self.path / "environment.json", describe_environment())
        state = {"state": "running", "data_fingerprint": fingerprint, "started": _now()}
        write_json(self.path / "run.json", state | self._state())

    def finish(self) -> None:
        """Mark the run as finished; from now on the same command does nothing."""
        write_json(self.path / "run.json", self._state() | {"state": "finished", "finished": _now()})

    def environment(self) -> dict[str, Any]:
        """What `begin` noted about the machine and the packages."""
        return json.loads((self.path / "environment.json").read_text(encoding="utf-8"))

    def hold(self) -> None:
        """Keep the folder for this process until `release`; a process that is gone, however it ended, holds nothing.

        Raises:
            RunFolderError: Another process trains in it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = locked(self.path)

    def release(self) -> None:
        """Let another process train in the folder; nothing where it is not held."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()

    def newest_checkpoint(self) -> Path | None:
        """Where to go on: see `Checkpoints.choose`. What is set aside is told and noted in run.json."""
        choice = Checkpoints(self.path).choose()
        going_on = f"going on from {choice.folder.name}" if choice.folder else "training from the start"
        for entry in choice.set_aside:
            logger.warning(
                "%s is not used: %s. It was moved to %s; %s",
                self.path / entry.name, entry.reason, entry.moved_to, going_on,
            )  # fmt: skip
        if choice.set_aside:
            noted = [vars(entry) | {"noted": _now()} for entry in choice.set_aside]
            self.remember("set_aside", [*self.set_aside(), *noted])
        return choice.folder

    def remember(self, name: str, value: Any) -> None:
        """Keep a fact about the run in run.json."""
        with alone_in(self.path):
            write_json(self.path / "run.json", self._state() | {name: value})

    def recall(self, name: str) -> Any:
        """What `remember` kept, or None."""
        return self._state().get(name)

    def set_aside(self) -> list[dict[str, str]]:
        """Checkpoints of this run that were not used: name, reason, moved_to, noted."""
        return list(self.recall("set_aside") or [])

    def _kept_recipe(self) -> dict[str, Any]:
        kept: dict[str, Any] = json.loads((self.path / "recipe.json").read_text(encoding="utf-8"))
        return kept

    def _state(self) -> dict[str, Any]:
        path = self.path / "run.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _differences(kept: dict[str, Any], now: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """Keys that make it another run, with both values."""
    return [
        (name, old, new)
        for name, old, new in _unequal(kept, now)
        if not any(fnmatchcase(name, pattern) for pattern in (*_MAY_DIFFER, *_PLACES))
        and not (_is_place(name) and _is_file(old) and _is_file(new))
    ]


def _unequal(kept: dict[str, Any], now: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    old, new = _flat(json.loads(json.dumps(kept))), _flat(json.loads(json.dumps(now)))
    names = sorted({*old, *new})
    return [(name, old.get(name), new.get(name)) for name in names if old.get(name) != new.get(name)]


def _is_place(name: str) -> bool:
    """Whether a key says where images or a list of them lie."""
    return any(fnmatchcase(name, pattern) for pattern in (*_PLACES, *_WAYS_OR_FILES))


def _is_file(value: Any) -> bool:
    """Whether a value of `_WAYS_OR_FILES` is the file of a list."""
    return value is not None and value not in SPLITS


def _flat(document: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in document.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
