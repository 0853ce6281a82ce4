"""Pictures of patch maps: a page for each image, and a sheet of all.

Attention is drawn in viridis, which is as even to colour-blind readers. The three colours of the principal components
carry no order; what has the same colour has similar features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .plots import INK, new_figure, shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MAP = "viridis"
_LARGE, _SMALL = 3.4, 2.2  # inches of a panel
_CAPTION = 0.32  # inches above a panel
_HEAD_COLUMNS = 6
_SHEET_COLUMNS = 2  # images side by side, three panels each


@dataclass(frozen=True)
class Explained:
    """One image and what was seen in it.

    Args:
        name: Caption.
        image: uint8 (height, width, 3), as the backbone saw it.
        colours: float (rows, columns, 3) in 0 to 1.
        attention: (heads, rows, columns), shares.
        attention_words: Whose.
    """

    name: str
    image: np.ndarray
    colours: np.ndarray
    attention: np.ndarray
    attention_words: str = "attention"


def draw_page(seen: Explained, variance: float) -> Figure:
    """The image, its patch features as colours, the mean attention, and below that of every head.

    Each head is drawn from zero to its own largest share, for heads differ much in how sharp they are. Above it stands
    how many times that is what a patch would get if all of them got the same; a head that gives every patch less, and
    the rest to other tokens, is drawn from zero to that even share, and so stays as dark as it is weak.

    Args:
        seen: What to draw.
        variance: Share of the variance that the three colours show.
    """
    heads = len(seen.attention)
    columns = min(_HEAD_COLUMNS, max(3, heads))
    rows = -(-heads // columns)
    shape = seen.image.shape[0] / seen.image.shape[1]
    wide = max(3 * _LARGE, columns * _SMALL)
    large, small = wide / 3 * shape, wide / columns * shape
    heads_high = rows * (small + _CAPTION)
    high = heads_high + large + _CAPTION
    figure = new_figure(wide, high, layout=None)
    top = _row(figure, 3, wide, high, bottom=heads_high, panel_high=large)
    _picture(top[0], seen.image, shortened(seen.name, 40))
    _picture(top[1], seen.colours, f"features, components 1-3 ({variance:.0%} of variance)")
    _attention(top[2], seen.attention.mean(0), f"{seen.attention_words}, mean")
    for row in range(rows):
        bottom = (rows - 1 - row) * (small + _CAPTION)
        panels = _row(figure, columns, wide, high, bottom=bottom, panel_high=small)
        for axes, head in zip(panels, range(row * columns, min(heads, (row + 1) * columns)), strict=False):
            _attention(axes, seen.attention[head], f"head {head + 1}")
    _hide_empty(figure)
    return figure


def draw_sheet(pages: Sequence[Explained]) -> Figure:
    """Image, features and mean attention of every image, side by side."""
    columns = min(_SHEET_COLUMNS, len(pages))
    rows = -(-len(pages) // columns)
    wide, panel = columns * 3 * _SMALL, _SMALL
    tallest = max(seen.image.shape[0] / seen.image.shape[1] for seen in pages)
    row_high = panel * tallest + _CAPTION
    high = rows * row_high
    figure = new_figure(wide, high, layout=None)
    for row in range(rows):
        bottom = (rows - 1 - row) * row_high
        panels = _row(figure, 3 * columns, wide, high, bottom=bottom, panel_high=panel * tallest)
        for place, seen in enumerate(pages[row * columns : (row + 1) * columns]):
            image, colours, attention = panels[3 * place : 3 * place + 3]
            _picture(image, seen.image, shortened(seen.name))
            _picture(colours, seen.colours, "features")
            _attention(attention, seen.attention.mean(0), "attention")
    _hide_empty(figure)
    return figure


def _row(
    figure: Figure, count: int, wide: float, high: float, bottom: float, panel_high: float
) -> list[Axes]:
    """Axes side by side over the whole width; all lengths in inches."""
    apart, each = 0.06, wide / count
    return [
        figure.add_axes(
            ((i * each + apart) / wide, bottom / high, (each - 2 * apart) / wide, panel_high / high)
        )
        for i in range(count)
    ]


def _picture(axes: Axes, pixels: np.ndarray, title: str) -> None:
    axes.imshow(pixels, interpolation="nearest")
    _name(axes, title)


def _attention(axes: Axes, shares: np.ndarray, title: str) -> None:
    largest = float(shares.max())
    axes.imshow(shares, cmap=_MAP, vmin=0, vmax=max(largest, 1 / shares.size), interpolation="nearest")
    times = largest * shares.size
    _name(axes, f"{title}: to {times:.{1 if times < 100 else 0}f} x even")


def _name(axes: Axes, title: str) -> None:
    # Without ticks and with a place for the title matplotlib need not measure what nobody sees: half of the time.
    axes.set(xticks=[], yticks=[])
    axes.set_title(title, fontsize=8, color=INK, loc="left", pad=3, y=1.0, parse_math=False)
    axes.set_axis_off()


def _hide_empty(figure: Figure) -> None:
    for axes in figure.axes:
        if not axes.has_data():
            axes.set_axis_off()
