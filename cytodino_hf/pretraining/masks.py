"""Which patches of a view the student does not see: rectangular blocks, as in BEiT and iBOT."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from .recipe import ObjectiveSection

Mask = npt.NDArray[np.bool_]
# Draws for the place of one block before single patches fill up the rest.
_ATTEMPTS = 10


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
