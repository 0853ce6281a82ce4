"""Which patches of a view the student does not see: rectangular blocks, as in BEiT and iBOT."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from .recipe import ObjectiveSection

Mask = npt.NDArray[np.bool_]
# Draws for the place of one block before single patches fill up the rest.
_ATTEMPTS = 10
# Masked patches of a batch are filled up to a multiple of this: they are of another number in every batch, and for each
# number the CPU's libraries make kernels anew, which takes a fifth of a step, and keep them.
_ROWS = 256


class BlockMasks:
    """Draws the masks of the global views of one picture.

    A view is masked with `mask_probability`; the share of its patches is then uniform in `mask_ratio` +-
    `mask_ratio_variance`.

    Args:
        grid: Rows and columns of patches.
        objective: Its mask settings.
        views: Global views of a picture.
    """

    def __init__(self, grid: tuple[int, int], objective: ObjectiveSection, views: int = 2) -> None:
        self.grid, self.views = grid, views
        self.probability = objective.mask_probability
        self.ratio, self.variance = objective.mask_ratio, objective.mask_ratio_variance
        self.aspect = (objective.mask_aspect[0], objective.mask_aspect[1])

    def __call__(self, generator: np.random.Generator) -> Mask:
        """Masks of one picture: (views, patches), patches row by row."""
        patches = self.grid[0] * self.grid[1]
        masks = np.zeros((self.views, patches), dtype=bool)
        for mask, (coin, place) in zip(masks, generator.random((self.views, 2)), strict=True):
            if coin < self.probability:
                ratio = self.ratio + (2 * place - 1) * self.variance
                count = min(round(ratio * patches), patches)
                mask[:] = block_mask(self.grid, count, self.aspect, generator).reshape(-1)
        return masks


def masked_places(masks: Mask) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Where the masked patches of a batch are, and what each weighs in the mean over those of a view, then over views.

    It is worked out where the masks are drawn, so that no size of a step depends on what a GPU has to tell first.

    Args:
        masks: (views, patches), True where a patch is masked.

    Returns:
        Places in the row of all patches of all views (rows,), and weights (rows,). Rows are filled up with place 0 and
        weight 0; there is always one at least.
    """
    views, _ = np.nonzero(masks)
    rows = filled_up(len(views))
    places, weights = np.zeros(rows, np.int64), np.zeros(rows, np.float32)
    places[: len(views)] = np.flatnonzero(masks)
    weights[: len(views)] = 1 / (np.count_nonzero(masks, axis=1)[views] * len(masks))
    return places, weights


def filled_up(masked: int) -> int:
    """As how many rows some masked patches are worked on."""
    return max(-(-masked // _ROWS), 1) * _ROWS


def block_mask(
    grid: tuple[int, int], count: int, aspect: tuple[float, float], generator: np.random.Generator
) -> Mask:
    """Cover exactly `count` patches with blocks that may overlap; what no further block fits into, patch by patch.

    Args:
        grid: Rows and columns of patches.
        count: Patches to cover.
        aspect: Least and largest height over width of a block; drawn log-uniformly.
        generator: Source of the draws.

    Returns:
        (rows, columns), True where covered.

    Source:
        Bao et al. 2022, BEiT (arXiv 2106.08254), algorithm 1; iBOT's least block is (shorter side // 3) squared.
    """
    rows, columns = grid
    mask = np.zeros(grid, dtype=bool)
    left = count
    least = (min(grid) // 3) ** 2
    log_low, log_high = math.log(aspect[0]), math.log(aspect[1])
    while left > 0:
        for area, shape, down, right in generator.random((_ATTEMPTS, 4)).tolist():
            size = min(least, left) + area * (left - min(least, left))
            ratio = math.exp(log_low + shape * (log_high - log_low))
            height, width = round(math.sqrt(size * ratio)), round(math.sqrt(size / ratio))
            if not (0 < height <= rows and 0 < width <= columns):
                continue
            top, start = int(down * (rows - height + 1)), int(right * (columns - width + 1))
            block = mask[top : top + height, start : start + width]
            fresh = height * width - int(np.count_nonzero(block))
            if 0 < fresh <= left:
                block[:] = True
                left -= fresh
                break
        else:
            mask.flat[generator.choice(np.flatnonzero(~mask), left, replace=False)] = True
            left = 0
    return mask
