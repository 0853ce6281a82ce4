"""The table of data sources. A new one is a file here, a line in `SOURCES` and a test file."""

from __future__ import annotations

from . import hub_dataset, image_folder, mll, synthetic
from .base import Source, SourceOptions

__all__ = ["SOURCES", "Source", "SourceOptions"]

SOURCES: dict[str, Source] = {
    "mll": mll.SOURCE,
    "image_folder": image_folder.SOURCE,
    "hub_dataset": hub_dataset.SOURCE,
    "synthetic": synthetic.SOURCE,
}
