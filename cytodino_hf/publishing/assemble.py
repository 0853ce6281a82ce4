"""Find out what a folder holds and put together what is sent of it. A new kind of model is one entry in `KINDS`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..errors import PublishError
from ..files import read_json
from .allow_list import CARD, CONFIG, Kind, Wish
from .backbone import BACKBONE
from .classifier import CLASSIFIER

#: Kinds of models that are published; the first that knows a folder takes it.
KINDS: dict[str, Kind] = {kind.name: kind for kind in (CLASSIFIER, BACKBONE)}


@dataclass(frozen=True)
class Publication:
    """What will lie in the repository.

    Args:
        kind: Kind of the model.
        files: Path in the repository -> file.
        public: Paths whose text is public already and is not looked through.
    """

    kind: Kind
    files: dict[str, Path]
    public: frozenset[str]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.stat().st_size for file in self.files.values())

    def to_text(self) -> str:
        """Every file with its size, and the card."""
        width = max(len(name) for name in self.files)
        lines = [f"{name:<{width}}  {file.stat().st_size:>13,}" for name, file in sorted(self.files.items())]
        card = self.files[CARD].read_text(encoding="utf-8")
        return "\n".join([*lines, f"{'in all':<{width}}  {self.size:>13,} bytes", "", card])


def find_kind(run: Path) -> tuple[Path, Kind]:
    """The folder that is published, a RUN or a folder in it, and the kind of model it holds.

    Raises:
        PublishError: There is no finished model.
    """
    if not run.is_dir():
        raise PublishError(f"{run}: no such folder; give the RUN of a finished training")
    state = run / "run.json"
    if state.is_file() and read_json(state).get("state") != "finished":
        raise PublishError(f"{run}: its training has not come to its end; start the same command again first")
    for kind in KINDS.values():
        for folder in (run / name for name in kind.folders):
            if (folder / CONFIG).is_file() and kind.is_one(folder, read_json(folder / CONFIG)):
                return folder, kind
    raise PublishError(f"{run}: holds no model of ours; give the RUN of a fine-tuning or a pretraining")


def assemble(run: Path, work: Path, wish: Wish) -> Publication:
    """Gather what is sent; the RUN is only read.

    Args:
        run: The RUN.
        work: An empty folder for what is written.
        wish: How it is to be published.

    Raises:
        PublishError: The RUN is not finished, not whole, or its base or licence cannot be had.
    """
    folder, kind = find_kind(run)
    gathered = kind.gather(kind, folder, work, wish)
    if others := sorted(name for name in gathered.files if not kind.allows(name)):
        raise PublishError(
            f"{folder}: nothing of a {kind.name} may be called {', '.join(others)}; nothing was sent"
        )
    return Publication(kind, gathered.files, gathered.public)
