"""How the images of each source and fold are stained: colour and optical density, from a sample.

Optical density is per colour channel. Which dye makes it is not said: that needs the laboratory's own stain vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ...data.samples import FOLDS
from ...data.stain import optical_density
from ..plots import BLUE, GREEN, INK, ORANGE, VERMILLION, new_figure, shortened, tidy

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Images looked at of each source and fold.
SAMPLE = 100
CHANNELS = ("red", "green", "blue")
#: What is measured -> its words.
MEASURES = {"rgb": "colour, 0 to 255", "od": "optical density"}
# Every fourth pixel of every fourth row gives the mean density within 1 % and costs a sixteenth.
_STEP = 4


def stain_rows(
    sources: Sequence[str], folds: Sequence[str | None], *, per_fold: int = SAMPLE, seed: int = 0
) -> list[int]:
    """A sample of rows, at most so many of each source and fold; drawn by seed, in order.

    Args:
        sources, folds: Of every row.
        per_fold: Rows at most of each.
        seed: Of the draw.
    """
    rng = np.random.default_rng(seed)
    rows_of: dict[tuple[str, str], list[int]] = {}
    for row, key in enumerate(zip(sources, (fold or "none" for fold in folds), strict=True)):
        rows_of.setdefault(key, []).append(row)
    chosen: list[int] = []
    for key in sorted(rows_of):
        rows = rows_of[key]
        chosen += rows if len(rows) <= per_fold else rng.choice(rows, per_fold, replace=False).tolist()
    return sorted(chosen)


def image_stain(image: np.ndarray) -> np.ndarray:
    """Mean and mean square of colour and optical density of one picture, float64 (2 measures, 2, 3 channels).

    Args:
        image: uint8 RGB (height, width, 3).
    """
    pixels = image[::_STEP, ::_STEP].reshape(-1, 3)
    found = []
    for values in (pixels.astype(np.float64), optical_density(pixels).astype(np.float64)):
        found.append([values.mean(axis=0), (values**2).mean(axis=0)])
    return np.array(found)


def stain_section(
    read: Callable[[int], np.ndarray],
    sources: Sequence[str],
    folds: Sequence[str | None],
    groups: Sequence[str | None] | None = None,
    *,
    per_fold: int = SAMPLE,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Any]:
    """Mean and standard deviation of each channel, by source and fold.

    Args:
        read: Row -> its picture, uint8 RGB.
        sources, folds, groups: Of every row.
        per_fold, seed: Of the sample (`stain_rows`).
        level: Nominal coverage of the interval of the mean, over images or, where groups are known, over groups.

    Returns:
        `rows`: one entry a source and fold with `images` and, by measure and channel, `mean`, `low`, `high` (None of
        one image or group), `sd` (over pixels), `sd_of_images` (over the means of images) and `shift`, how far the
        mean lies from that of the source's training fold in standard deviations of its images (None there, and where
        they do not differ).
    """
    rows = stain_rows(sources, folds, per_fold=per_fold, seed=seed)
    moments = np.array([image_stain(read(row)) for row in rows]).reshape(-1, 2, 2, 3)
    keys = [(sources[row], folds[row] or "no fold") for row in rows]
    units = [row if groups is None or groups[row] is None else f"group {groups[row]}" for row in rows]
    entries = []
    for source, fold in sorted(set(keys), key=lambda key: (key[0], _place(key[1]))):
        mine = np.array([key == (source, fold) for key in keys])
        train = np.array([key == (source, "train") for key in keys])
        some = [unit for unit, is_mine in zip(units, mine, strict=True) if is_mine]
        entry: dict[str, Any] = {"source": source, "fold": fold, "images": int(mine.sum())}
        for place, measure in enumerate(MEASURES):
            reference = moments[train, place] if fold != "train" and train.any() else None
            entry[measure] = _channels(moments[mine, place], some, reference, level)
        entries.append(entry)
    return {"rows": entries, "per_fold": per_fold, "level": level, "measures": dict(MEASURES)}


def _place(fold: str) -> int:
    return FOLDS.index(fold) if fold in FOLDS else len(FOLDS)


def _channels(
    moments: np.ndarray, units: Sequence[object], reference: np.ndarray | None, level: float
) -> dict[str, dict[str, float | None]]:
    """(images, 2, 3) moments -> numbers of each channel."""
    means = moments[:, 0]
    pixel_sd = np.sqrt(np.maximum(moments[:, 1].mean(axis=0) - means.mean(axis=0) ** 2, 0.0))
    told = {}
    for place, channel in enumerate(CHANNELS):
        mean = float(means[:, place].mean())
        half = _half_width(means[:, place], units, level)
        shift = None
        if reference is not None and len(reference) > 1:
            spread = float(reference[:, 0, place].std(ddof=1))
            shift = (mean - float(reference[:, 0, place].mean())) / spread if spread > 0 else None
        told[channel] = {
            "mean": mean,
            "low": None if half is None else mean - half,
            "high": None if half is None else mean + half,
            "sd": float(pixel_sd[place]),
            "sd_of_images": float(means[:, place].std(ddof=1)) if len(means) > 1 else None,
            "shift": shift,
        }
    return told


def _half_width(values: np.ndarray, units: Sequence[object], level: float) -> float | None:
    """Of the mean of images that may belong together: Student's t over the sums of their units."""
    from scipy.stats import t

    _, unit = np.unique([str(name) for name in units], return_inverse=True)
    sums = np.bincount(unit, weights=values - values.mean())
    if len(sums) < 2:
        return None
    error = np.sqrt(len(sums) / (len(sums) - 1) * (sums**2).sum()) / len(values)
    return float(t.ppf((1 + level) / 2, len(sums) - 1) * error)


def draw_stain(section: Mapping[str, Any]) -> Figure:
    """Mean of each channel with its interval, by source and fold: folds of one source should stand at one height.

    Args:
        section: From `stain_section`, with rows.
    """
    rows = section["rows"]
    figure = new_figure(max(5.5, 0.9 * len(rows) + 2.5), 5.2)
    signs = {"red": (VERMILLION, "o"), "green": (GREEN, "s"), "blue": (BLUE, "^")}
    starts = [i for i, row in enumerate(rows) if i and row["source"] != rows[i - 1]["source"]]
    for axes, (measure, words) in zip(figure.subplots(2, 1, sharex=True), MEASURES.items(), strict=True):
        for number, channel in enumerate(CHANNELS):
            colour, marker = signs[channel]
            for place, row in enumerate(rows):
                entry, at = row[measure][channel], place + 0.16 * (number - 1)
                if entry["low"] is not None:
                    axes.vlines(at, entry["low"], entry["high"], color=colour, alpha=0.5, linewidth=3)
                axes.plot(
                    at,
                    entry["mean"],
                    marker,
                    color=colour,
                    markersize=5.5,
                    label=channel if not place else None,
                )
        for start in starts:
            axes.axvline(start - 0.5, color=ORANGE, linewidth=0.9)
        axes.set_title(words, loc="left", fontsize=10, color=INK, fontweight="bold")
        tidy(axes, "y")
    figure.axes[0].legend(frameon=False, fontsize=8, ncols=3, loc="lower right", bbox_to_anchor=(1.0, 1.0))
    names = [f"{shortened(row['source'], 14)}\n{row['fold']}\nn={row['images']:,}" for row in rows]
    figure.axes[1].set_xticks(range(len(rows)), labels=names, fontsize=8)
    for label in figure.axes[1].get_xticklabels():
        label.set_parse_math(False)
    figure.axes[1].set_xlim(-0.6, len(rows) - 0.4)
    return figure
