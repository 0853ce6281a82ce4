"""Grey textures for chromatin and cytoplasm: tiles of filtered noise, made once and cut at random places."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

#: Side of a tile; cells are smaller, so that a random cut never wraps.
TILE_PX = 512


@lru_cache(maxsize=1)
def noise_tile() -> np.ndarray:
    """Camera noise of unit variance, float32 (tile, tile, 3), the channels partly alike."""
    rng = np.random.default_rng(101)
    grey = rng.standard_normal((TILE_PX, TILE_PX, 1), dtype=np.float32)
    colour = rng.standard_normal((TILE_PX, TILE_PX, 3), dtype=np.float32)
    return (0.6 * grey + 0.8 * colour).astype(np.float32)


@lru_cache(maxsize=8)
def texture_tile(name: str) -> np.ndarray:
    """A tile of chromatin or cytoplasm texture, float32 (tile, tile), zero mean, about -1 to 1.

    Args:
        name: `fine` (even, as in blasts), `coarse` (strands of maturing granulocytes), `clumped` (dark blocks
            with light gaps, as in lymphocytes) or `cloudy` (cytoplasm).
    """
    finest_px, widest_px, steepness = {
        "fine": (1.6, 2.6, 1.0),
        "coarse": (2.6, 5.0, 1.6),
        "clumped": (4.0, 8.0, 3.5),
        "cloudy": (7.0, 20.0, 1.0),
    }[name]
    rng = np.random.default_rng([102, len(name), *name.encode()])
    band = _blurred_noise(rng, finest_px) - _blurred_noise(rng, widest_px)
    band = np.tanh(steepness * band / band.std() / 2)
    return (band - band.mean()).astype(np.float32)


def cut(tile: np.ndarray, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """A random piece of a tile, as a view.

    Args:
        shape: (height, width) of the piece.
    """
    height, width = shape
    y, x = rng.integers(0, TILE_PX - height + 1), rng.integers(0, TILE_PX - width + 1)
    return tile[y : y + height, x : x + width]


def spokes(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, radius_px: float) -> np.ndarray:
    """Wheel-spoke chromatin of plasma cells: dark blocks round the rim with light gaps between them.

    Args:
        x, y: (1, width) and (height, 1) coordinates from the centre of the nucleus, in pixels.
        radius_px: Radius of the nucleus.

    Returns:
        float32 (height, width), about -1 to 1; positive is dark.
    """
    count = int(rng.integers(6, 9))
    angle = np.arctan2(y, x) + rng.uniform(0, 2 * np.pi)
    angle += 0.5 / count * np.sin(2 * angle)  # no two blocks are equally wide
    wedge = np.tanh(1.8 * np.cos(count * angle) + 0.5)
    reach = np.clip(np.hypot(x, y) / radius_px, 0, 1)
    hub = np.tanh(8 * (0.24 - reach))
    return np.maximum(wedge * np.clip(2.2 * reach - 0.5, 0, 1), hub).astype(np.float32)


def _blurred_noise(rng: np.random.Generator, sigma_px: float) -> np.ndarray:
    """Gaussian-filtered white noise of unit variance that wraps at the edges, (tile, tile)."""
    frequency = np.fft.fftfreq(TILE_PX)
    gain = np.exp(-2 * (np.pi * sigma_px * frequency) ** 2)
    spectrum = np.fft.fft2(rng.standard_normal((TILE_PX, TILE_PX))) * gain[:, None] * gain[None, :]
    field = np.fft.ifft2(spectrum).real
    return field / field.std()
