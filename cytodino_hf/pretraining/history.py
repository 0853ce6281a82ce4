"""What a backbone saw before: the list that its own pretraining left, handed on and held against what is held out now.

A backbone that goes on carries the images of every earlier pretraining in its `images.csv`. What somebody else trained,
such as one of the Hub without such a list, has seen what nobody can look up; that is then said wherever it matters.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..backbones import backbone_source, explained, hub_arguments, is_on_hub
from ..data.tables import read_table
from ..errors import DataError
from ..recipe import BackboneSection, HubSection
from ..recipe_checks import EMBEDDED
from .looked import UNLISTED, Looked

LIST_FILE, RECORD_FILE = "images.csv", "pretraining.json"
#: Of `images.csv`; `pretraining` counts from 1, the first pretraining that is listed.
LIST_COLUMNS = ("source", "id", "sha256", "pretraining")
# Of the record of an earlier pretraining.
_KEPT = ("images", "weights_sha256", "origin")
_AGAIN = "take the whole folder of the backbone again from where it came from"


@dataclass(frozen=True)
class History:
    """What is known of the backbone that a pretraining goes on from.

    Args:
        name: As the recipe calls it; of a folder its name alone.
        is_on_hub: It has a commit.
        record: What its `pretraining.json` holds; empty where it has none.
        file: Its list.
        seen: The rows of that list, by `LIST_COLUMNS`; None where there is no list.
    """

    name: str
    is_on_hub: bool
    record: dict[str, Any]
    file: Path | None
    seen: tuple[tuple[str, ...], ...] | None

    def origin(self, commit: str | None = None) -> dict[str, Any]:
        """What the record of the new backbone says of this one.

        Args:
            commit: Of a backbone on the Hub.
        """
        kept: dict[str, Any] = {key: self.record[key] for key in _KEPT if key in self.record}
        at = {"commit": commit} if self.is_on_hub else {}
        return {"name": self.name, **at, "is_listed": self.seen is not None, **kept}

    def compare(self, looked: Sequence[Looked]) -> str:
        """Make sure that nothing that is held out now was pretrained on before.

        Args:
            looked: The sets, with everything marked that is held out.

        Returns:
            What is known, in words.

        Raises:
            DataError: A held-out image is in the list.
        """
        if self.seen is None:
            return f"model.backbone: {in_doubt([self.name])}"
        before = {sha256: f"{source}/{name}" for source, name, sha256, _ in self.seen}
        held = 0
        both = []
        for source in looked:
            ids = source.images.column("id")
            for row, sha256 in enumerate(source.scan.column("file_sha256")):
                why = source.why_not[row]
                held += why not in (None, UNLISTED)
                if why not in (None, UNLISTED) and sha256.hex() in before:
                    both.append(f"{source.name}/{ids[row]} ({why}), there called {before[sha256.hex()]!r}")
        if both:
            raise DataError(
                f"model.backbone: {len(both)} images that are held out now are among those that {self.name} was "
                f"pretrained on, such as {both[0]} in {self.file}. No score on them would mean anything: go on from a "
                "backbone that has not seen them, or give the split that its pretraining held out "
                "(data.sources.NAME.split, data.hold_out, probe.split)"
            )
        doubt = unlisted(self.origin())
        return (
            f"model.backbone: none of the {held} images that are held out now is among the {len(before)} files that "
            f"{self.name} was pretrained on" + (f"; {in_doubt(doubt)}" if doubt else "")
        )


def held_out_images_seen(
    section: BackboneSection, hub: HubSection, folds: Mapping[str, Sequence[bytes]]
) -> str | None:
    """What a report says of the held-out images that a backbone saw in pretraining; None of random weights.

    Args:
        section, hub: Of the recipe.
        folds: Name of a held-out fold -> sha256 of each of its image files.

    Raises:
        BackboneUnavailableError: It cannot be had.
        DataError: What its pretraining left is damaged.
    """
    history = read_history(section, hub)
    if history is None:
        return None
    if history.seen is None:
        return f"backbone: {in_doubt([history.name])}"
    before = {row[2] for row in history.seen}
    seen = {fold: sum(one.hex() in before for one in sums) for fold, sums in folds.items()}
    told = ", ".join(
        f"{seen[fold] or 'none'} of {len(sums)} of the {fold} fold" for fold, sums in folds.items()
    )
    warning = "; scores on those may flatter, though it saw no label" if any(seen.values()) else ""
    doubt = unlisted(history.origin())
    return (
        f"backbone: {history.name} was pretrained on {len(before)} image files, {told} among them{warning}"
        + (f"; {in_doubt(doubt)}" if doubt else "")
    )


def read_history(section: BackboneSection, hub: HubSection) -> History | None:
    """What is known of the backbone of a recipe; None where it starts from random weights.

    Args:
        section, hub: Of the recipe.

    Raises:
        BackboneUnavailableError: It cannot be had.
        DataError: What its pretraining left is damaged.
    """
    from transformers.utils import cached_file

    if section.backbone is None:
        return None
    source, own = backbone_source(section.backbone), is_on_hub(section)
    fetched: dict[str, Any] = {"revision": section.revision, **hub_arguments(hub)}
    for what in ("missing_entries", "connection_errors"):  # most backbones have no such files
        fetched[f"_raise_exceptions_for_{what}"] = False
    with explained(section):
        record_file, list_file = (cached_file(source, name, **fetched) for name in (RECORD_FILE, LIST_FILE))
    record = {} if record_file is None else _read_record(Path(record_file))
    file = None if list_file is None else Path(list_file)
    seen = None if file is None else _read_list(file, record)
    name = section.backbone if own or section.backbone == EMBEDDED else Path(source).resolve().name
    return History(name, own, record, file, seen)


def unlisted(origin: dict[str, Any] | None) -> list[str]:
    """Names of the backbones, over any number of pretrainings, whose images no list names.

    Args:
        origin: Of a record; None where it began with random weights.
    """
    found = []
    while origin is not None:
        if not origin.get("is_listed"):
            found.append(str(origin["name"]))
        origin = origin.get("origin")
    return found


def in_doubt(names: Sequence[str]) -> str:
    """What cannot be said where some backbones have no list."""
    return (
        f"what images {' and '.join(names)} saw in pretraining is not known (no {LIST_FILE}): held-out ones may be "
        "among them"
    )


def digest_of(sums: Iterable[str]) -> str:
    """sha256 of sorted sums, a line each: the same as `sort | sha256sum`."""
    return hashlib.sha256("".join(f"{value}\n" for value in sorted(sums)).encode()).hexdigest()


def _read_record(file: Path) -> dict[str, Any]:
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{file}: no valid JSON ({error}); {_AGAIN}") from error
    if not isinstance(record, dict):
        raise DataError(f"{file}: is no record of a pretraining; {_AGAIN}")
    return record


def _read_list(file: Path, record: dict[str, Any]) -> tuple[tuple[str, ...], ...]:
    """Rows of a list; one without numbers is of a single pretraining."""
    columns = read_table(file)
    if missing := [name for name in LIST_COLUMNS[:3] if name not in columns]:
        raise DataError(f"{file}: lists no images, the column {missing[0]} is missing; {_AGAIN}")
    numbers = columns.get("pretraining", ["1"] * len(columns["id"]))
    cells = zip(*(columns[name] for name in LIST_COLUMNS[:3]), numbers, strict=True)
    rows = tuple(tuple(cell or "" for cell in row) for row in cells)
    for line, (*_, sha256, number) in enumerate(rows, start=2):
        if not re.fullmatch(r"[0-9a-f]{64}", sha256) or not re.fullmatch(r"[1-9][0-9]{0,8}", number):
            raise DataError(f"{file}: line {line}: no sha256 and number of a pretraining; {_AGAIN}")
    last = max((int(row[-1]) for row in rows), default=0)
    wanted = record.get("images", {}).get("images_sha256")
    if wanted not in (None, digest_of(row[2] for row in rows if int(row[-1]) == last)):
        raise DataError(f"{file}: does not list the images that {RECORD_FILE} beside it records; {_AGAIN}")
    return rows
