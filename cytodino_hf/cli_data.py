"""`cytodino data get`: the download of an image set alone, before any training."""

from __future__ import annotations

from typing import Annotated

import typer

from .errors import DataError


def get(
    context: typer.Context,
    source: Annotated[str, typer.Argument(help="Source that downloads, as in a recipe.", show_default=False)],
) -> None:
    """Download the images of a source, once; a recipe with this source then finds them without any request.

    Any key of the source can be set: --data.hub_dataset.id OWNER/NAME, --data.mll.version 1.
    """
    from .data.inspection.check import data_section
    from .data.sources import SOURCES

    section, options = data_section(None, source, "mll", context.args)
    fetch = SOURCES[section.source].fetch
    if fetch is None:
        able = ", ".join(name for name, known in SOURCES.items() if known.fetch is not None)
        raise DataError(f"source {section.source!r} downloads nothing; sources that do: {able}")
    typer.echo(f"{fetch(options[section.source])}: the images of source {section.source}")
