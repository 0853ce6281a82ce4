"""Draw bone-marrow cells: 21 classes by rules of morphology, on slides that differ in stain, light and focus.

For demonstrations and tests only: a drawn cell shows what a class is known by, no more.
"""

from __future__ import annotations

from .classes import LOOKS
from .scene import IMAGE_SIZE_PX, draw_cell
from .slides import SlideLook, slide_look

#: Part of every cache key: raise it when a change of this package changes a pixel.
DRAWING_VERSION = 2

__all__ = ["DRAWING_VERSION", "IMAGE_SIZE_PX", "LOOKS", "SlideLook", "draw_cell", "slide_look"]
