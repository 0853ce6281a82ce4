"""The data section of a pretraining recipe: one or several sources of images, and what is held out of them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field

from ..data.sources import SOURCES
from ..recipe import Fractions, Section
from ..recipe_checks import check_source
from ..recipe_mistakes import check_model, check_source_options, plain_value, shortened

# A name stands in `--data.sources.NAME.root`, in tables and in the names of images.
_NAME = r"[A-Za-z0-9][A-Za-z0-9_-]*"


class SourceEntry(Section):
    """One source of a mixture. The options of the source stand under its name, as in a recipe of a fine-tuning."""

    source: str = Field("image_folder", description="one of the sources in cytodino_hf/data/sources")
    root: str | None = Field(
        None, description="folder of the images; null lets the source find or fetch them"
    )
    taxonomy: str = Field("mll", description="classes of the source; of no effect on unlabelled images")
    weight: float | None = Field(
        None, ge=0, le=1e6, description="share of the draws over the sum of all; null: by number of images"
    )
    split: str | None = Field(
        None, description="as `data.split` of the fine-tuning; only its training fold is drawn. null: all is"
    )
    split_seed: int = Field(0, ge=0, description="seed of a drawn split")
    fractions: Fractions = Field(default_factory=Fractions, description="shares of a drawn split")
    near_duplicates: Literal["group", "ignore"] = Field(
        "group", description="of a drawn split, as in the fine-tuning: `group`: one picture, one fold"
    )
    max_rejected_share: float = Field(
        0.01, ge=0, le=1, description="stop when a larger share of the files cannot be used"
    )
    cache: Literal["none", "bytes", "pixels"] = Field(
        "none", description="one file in the user's cache: the files as they are, or decoded"
    )
    attribution: str | None = Field(
        None, description="whose images these are and under which licence; null: what the source says"
    )


class MixtureSection(Section):
    """Which images a backbone learns from."""

    hold_out: list[str] = Field(
        [], description="split files whose validation, calibration and test images no source may bring"
    )
    images_per_epoch: int | None = Field(
        None, ge=1, description="draws of an epoch; null: as many as there are images"
    )


@dataclass(frozen=True)
class NamedEntry:
    """A source of the mixture.

    Args:
        name: Its key in the recipe.
        entry: What the recipe says.
        options: The source's own options, checked.
    """

    name: str
    entry: SourceEntry
    options: BaseModel


@dataclass(frozen=True)
class MixturePlan:
    """The checked data section of a pretraining recipe.

    Args:
        section: Keys of the whole mixture.
        entries: Its sources, in the order of the recipe.
    """

    section: MixtureSection
    entries: tuple[NamedEntry, ...]

    def to_dict(self) -> dict[str, Any]:
        """Every key with its value, in the form of a recipe file."""
        sources = {}
        for named in self.entries:
            options = named.options.model_dump(mode="json")
            own = {named.entry.source: options} if options else {}
            sources[named.name] = named.entry.model_dump(mode="json") | own
        return {"sources": sources, **self.section.model_dump(mode="json")}


def parse_mixture(values: Mapping[str, Any], found: list[str]) -> MixturePlan | None:
    """Check the data section of a pretraining recipe.

    Args:
        values: Its keys.
        found: Receives a line for each mistake.

    Returns:
        The plan; None where not even that can be built.
    """
    rest = dict(values)
    sources = rest.pop("sources", None)
    if not isinstance(sources, dict):
        sources = plain_value(sources)
    section = check_model(
        MixtureSection, rest, "data", found, known=("sources", *MixtureSection.model_fields)
    )
    if not isinstance(sources, dict) or not sources:
        shown = "" if sources is None else f" = {shortened(sources)}"
        found.append(f'data.sources{shown}: must name one source or more, as {{"NAME": {{"root": "..."}}}}')
        return None
    if odd := [name for name in sources if not re.fullmatch(_NAME, name)]:
        found.append(f"data.sources: the name {odd[0]!r} must be letters, digits, - and _ only")
    entries = [_named_entry(name, values, found) for name, values in sources.items()]
    complete = tuple(entry for entry in entries if entry is not None)
    if section is None or len(complete) < len(entries):
        return None
    _check_weights(complete, found)
    found += [
        f"data.hold_out: {file!r}: no such file"
        for file in section.hold_out
        if not Path(file).expanduser().is_file()
    ]
    return MixturePlan(section, complete)


def _named_entry(name: str, values: Any, found: list[str]) -> NamedEntry | None:
    place = f"data.sources.{name}"
    values = plain_value(values) if not isinstance(values, dict) else values
    if not isinstance(values, dict):
        found.append(f"{place} = {shortened(values)}: must be an object with keys")
        return None
    rest = dict(values)
    options = check_source_options(rest, place, SOURCES, found)
    entry = check_model(SourceEntry, rest, place, found, known=(*SourceEntry.model_fields, *SOURCES))
    if entry is None:
        return None
    check_source(entry, place, tuple(SOURCES), found)
    return None if (own := options.get(entry.source)) is None else NamedEntry(name, entry, own)


def _check_weights(entries: tuple[NamedEntry, ...], found: list[str]) -> None:
    """All sources by their size, or all by a weight; a weight of 0 goes with both."""
    weights = {named.name: named.entry.weight for named in entries}
    if all(weight == 0 for weight in weights.values()):
        found.append("data.sources: every weight is 0; nothing would be drawn")
    without = [name for name, weight in weights.items() if weight is None]
    if without and any(weights.values()):
        found.append(
            f"data.sources.{without[0]}.weight = None: must be a number where another source has one, or null in all"
        )
