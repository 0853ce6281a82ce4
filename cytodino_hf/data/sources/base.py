"""What a data source is: options a recipe may set, and a function that makes the table of images.

A new source is one file with a `SOURCE`, one line in the table `SOURCES`, one test file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from ...taxonomy import Taxonomy
from ..samples import CellImages


class SourceOptions(BaseModel):
    """Base of every source's options: nothing unknown, nothing converted, nothing changed later."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


@dataclass(frozen=True)
class Source:
    """One way to get images.

    Args:
        summary: One line for lists and `--help`.
        options: Model of the options, each field with a description.
        load: `load(root, taxonomy, options)` indexes the images without reading a pixel. `root` None means
            that the source finds or makes its images itself; one that cannot raises a `DataError`. The
            taxonomy says which class codes are allowed.
        fetch: `fetch(options)` brings the images to this machine, or finds them in a cache without asking anybody,
            and returns their folder. None for a source that downloads nothing.
    """

    summary: str
    options: type[BaseModel]
    load: Callable[[Path | None, Taxonomy, Any], CellImages]
    fetch: Callable[[Any], Path] | None = None
