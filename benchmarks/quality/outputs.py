"""Where the findings of a study go: JSON, a section of RESULTS.md, a figure."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel

from benchmarks.results import replace_section
from cytodino_hf.files import write_json

F = TypeVar("F", bound=BaseModel)


def write_found(
    found: F,
    section: str,
    text: str,
    draw: Callable[[F], bytes],
    *,
    json: Path | None,
    results: Path | None,
    figure: Path | None,
) -> None:
    """Write what is asked for.

    Args:
        found: As it came out.
        section: Name of the section in the Markdown file.
        text: The section.
        draw: Makes the PNG; called only where it is asked for.
        json: File for everything.
        results: Markdown file whose section is replaced.
        figure: PNG.
    """
    if json is not None:
        write_json(json, found.model_dump(mode="json"))
    if figure is not None:
        figure.parent.mkdir(parents=True, exist_ok=True)
        figure.write_bytes(draw(found))
    if results is not None:
        replace_section(results, section, text)
