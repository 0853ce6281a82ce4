"""The images a benchmark reads: a folder of class folders, or cells drawn for the occasion and called drawn."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from cytodino_hf.data.samples import CellImages
from cytodino_hf.data.sources import SOURCES
from cytodino_hf.data.sources.synthetic import draw_image_set
from cytodino_hf.taxonomy import load_taxonomy

from .settings import ImageSettings

_DRAWN_CELLS = 420
_DRAWING_SEED = 0
_DRAWN_PATIENTS = 20
_JPEG_QUALITY = 93
_CACHE = "CYTODINO_CACHE"


@dataclass(frozen=True)
class Pictures:
    """Images with a name that may be published."""

    images: CellImages
    name: str

    def some(self, count: int, offset: int = 0) -> CellImages:
        """Rows spread evenly over the set, so that every class takes part; another offset takes neighbours."""
        size = len(self.images.labels)
        rows = (np.linspace(0, size, count, endpoint=False).astype(np.int64) + offset) % size
        return self.images.select(rows.tolist())


@contextmanager
def open_pictures(settings: ImageSettings) -> Iterator[Pictures]:
    """The images asked for, or drawn cells; drawn ones, and every cache made of either, are gone at the end."""
    with (
        tempfile.TemporaryDirectory(prefix="cytodino-benchmark-") as folder,
        _cache_in(Path(folder) / "cache"),
    ):
        if settings.images is None:
            yield _draw(Path(folder) / "drawn")
        else:
            name = settings.images_name or f"images of a folder {settings.images.name!r}"
            yield Pictures(load_folder(settings.images), name)


def _draw(root: Path) -> Pictures:
    """Drawn cells as JPEG files of about 18.8 kB: those the expected cost of the reference was measured on."""
    draw_image_set(
        root, cells=_DRAWN_CELLS, seed=_DRAWING_SEED, imbalance_power=0.0, patients=_DRAWN_PATIENTS, workers=1
    )
    images = load_folder(root)
    files = [root / path for path in images.column("path")]
    for file in files:
        picture = Image.open(file)
        picture.load()
        picture.save(file, quality=_JPEG_QUALITY)
    kilobytes = np.mean([file.stat().st_size for file in files]) / 1000
    name = (
        f"{_DRAWN_CELLS} drawn (synthetic) cells, 250 x 250 JPEG of {kilobytes:.1f} kB, seed {_DRAWING_SEED}"
    )
    return Pictures(images, name)


def load_folder(root: Path) -> CellImages:
    """Index class folders."""
    source = SOURCES["image_folder"]
    return source.load(root, load_taxonomy("mll"), source.options())


@contextmanager
def _cache_in(folder: Path) -> Iterator[None]:
    """Let what the package caches for the user lie in a folder of our own."""
    before = os.environ.get(_CACHE)
    os.environ[_CACHE] = str(folder)
    try:
        yield
    finally:
        os.environ.pop(_CACHE)
        if before is not None:
            os.environ[_CACHE] = before
