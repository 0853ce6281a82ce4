"""The table of data sources. A new one is a file here, a line in `SOURCES` and a test file."""

from __future__ import annotations

from . import acevedo, aml_hehr, hub_dataset, image_folder, matek19, mll, mll23, pcam, synthetic
from .base import Source, SourceOptions

__all__ = ["SOURCES", "Source", "SourceOptions"]

SOURCES: dict[str, Source] = {
    "mll": mll.SOURCE,
    "image_folder": image_folder.SOURCE,
    "hub_dataset": hub_dataset.SOURCE,
    "synthetic": synthetic.SOURCE,
    "matek19": matek19.SOURCE,
    "acevedo": acevedo.SOURCE,
    "mll23": mll23.SOURCE,
    "aml_hehr": aml_hehr.SOURCE,
    "pcam": pcam.SOURCE,
}
