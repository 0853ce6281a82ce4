"""Outlines of cells and nuclei: closed polygons in pixels round the origin, float32 (points, 2)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType

import numpy as np

_ANGLES = np.linspace(0, 2 * np.pi, 56, endpoint=False)
_COSINES, _SINES = np.cos(_ANGLES), np.sin(_ANGLES)


@dataclass(frozen=True)
class Nucleus:
    """The drawn form of a nucleus.

    Args:
        outlines: Closed polygons; where they overlap they are one.
        creases: Open lines along which the nucleus is folded.
    """

    outlines: list[np.ndarray]
    creases: tuple[np.ndarray, ...] = ()


def blob(
    rng: np.random.Generator,
    radius_px: float,
    *,
    aspect: float = 1.0,
    roughness: float = 0.02,
    dents: tuple[tuple[float, float, float], ...] = (),
) -> np.ndarray:
    """A round outline, stretched, wavy and dented.

    Args:
        aspect: Length by width; the longer axis is x.
        roughness: Share of the radius by which slow waves move the outline.
        dents: (angle, depth as a share of the radius, width in radians) of each notch.

    Returns:
        float64 (56, 2).
    """
    radius = np.ones_like(_ANGLES)
    for wave in (2, 3, 5):
        radius += roughness * rng.standard_normal() * np.cos(wave * _ANGLES + rng.uniform(0, 6.28))
    for at, depth, width in dents:
        distance = (_ANGLES - at + np.pi) % (2 * np.pi) - np.pi
        radius -= depth * np.exp(-0.5 * (distance / width) ** 2)
    radius *= radius_px
    stretch = aspect**0.5
    return np.stack([radius * _COSINES * stretch, radius * _SINES / stretch], axis=1)


def turned(points: np.ndarray, angle: float) -> np.ndarray:
    """The points turned about the origin by `angle` in radians."""
    cosine, sine = np.cos(angle), np.sin(angle)
    return points @ np.array([[cosine, sine], [-sine, cosine]])


def strand(start: np.ndarray, end: np.ndarray, width_px: float) -> np.ndarray:
    """A thin bridge between two points, (4, 2)."""
    along = end - start
    across = np.array([-along[1], along[0]]) * (width_px / 2 / max(float(np.hypot(*along)), 1e-6))
    return np.stack([start + across, end + across, end - across, start - across])


def strip(line: np.ndarray, width_px: float) -> np.ndarray:
    """An open line (n, 2) widened to a closed outline that tapers at its inner end, (2n, 2)."""
    along = np.gradient(line, axis=0)
    across = np.stack([-along[:, 1], along[:, 0]], axis=1) / np.maximum(np.hypot(*along.T), 1e-6)[:, None]
    half = (np.linspace(1, 0.3, len(line)) * width_px / 2)[:, None]
    return np.concatenate([line + across * half, (line - across * half)[::-1]])


def _round(rng: np.random.Generator, radius: float) -> Nucleus:
    return Nucleus([blob(rng, radius, aspect=rng.uniform(1.0, 1.18), roughness=0.018)])


def _kidney(rng: np.random.Generator, radius: float) -> Nucleus:
    dent = (np.pi / 2, rng.uniform(0.64, 0.76), rng.uniform(0.40, 0.50))
    return Nucleus([blob(rng, radius, aspect=rng.uniform(1.3, 1.5), roughness=0.015, dents=(dent,))])


def _band(rng: np.random.Generator, radius: float) -> Nucleus:
    half_width = radius * rng.uniform(0.24, 0.29)
    middle = radius - half_width
    half_span = rng.uniform(1.75, 2.25)
    turn = np.linspace(-half_span, half_span, 28)
    sway = 1 + 0.05 * np.cos(2 * turn + rng.uniform(0, 6.28))
    cap = np.linspace(0, np.pi, 8)[1:-1]

    def end(at: float, sign: float) -> np.ndarray:
        radial, forward = np.array([np.cos(at), np.sin(at)]), sign * np.array([-np.sin(at), np.cos(at)])
        shape = np.cos(cap)[:, None] * radial + np.sin(cap)[:, None] * forward
        return middle * radial + half_width * shape

    directions = np.stack([np.cos(turn), np.sin(turn)], axis=1)
    outer = directions * (middle + half_width * sway)[:, None]
    inner = directions * (middle - half_width * sway)[:, None]
    outline = np.concatenate([outer, end(half_span, 1.0), inner[::-1], end(-half_span, -1.0)[::-1]])
    return Nucleus([outline * np.array([rng.uniform(0.85, 1.05), rng.uniform(0.9, 1.1)])])


def _lobes(rng: np.random.Generator, radius: float, count: int, size: float, strand_px: float) -> Nucleus:
    span = np.pi * (0.95 if count == 2 else rng.uniform(1.25, 1.65))
    turn = np.linspace(-span / 2, span / 2, count) + rng.normal(0, 0.14, count)
    reach = radius * (1 - size) * rng.uniform(1.0 if count == 2 else 0.72, 1.12, count)
    centres = np.stack([np.cos(turn), np.sin(turn)], axis=1) * reach[:, None]
    outlines = []
    for centre, direction in zip(centres, turn, strict=True):
        lobe = blob(
            rng, radius * size * rng.uniform(0.82, 1.14), aspect=rng.uniform(1.0, 1.5), roughness=0.05
        )
        outlines.append(turned(lobe, direction + np.pi / 2 + rng.normal(0, 0.3)) + centre)
    outlines += [strand(a, b, strand_px) for a, b in pairwise(centres)]
    return Nucleus(outlines)


def _segmented(rng: np.random.Generator, radius: float) -> Nucleus:
    count = int(rng.integers(3, 6))
    return _lobes(rng, radius, count, {3: 0.42, 4: 0.36, 5: 0.31}[count], rng.uniform(3, 5))


def _bilobed(rng: np.random.Generator, radius: float) -> Nucleus:
    return _lobes(rng, radius, 2, rng.uniform(0.42, 0.47), rng.uniform(4, 8))


def _folded(rng: np.random.Generator, radius: float) -> Nucleus:
    first = rng.uniform(0, 2 * np.pi)
    angles = first + np.array([0, rng.uniform(1.6, 2.4), rng.uniform(3.4, 4.6)])
    dents = tuple((at % (2 * np.pi), rng.uniform(0.22, 0.46), rng.uniform(0.22, 0.36)) for at in angles)
    creases = []
    for at, depth, _ in dents:
        way = np.linspace(1 - depth, rng.uniform(0.0, 0.2), 8) * radius
        bend = at + np.linspace(0, rng.normal(0, 0.5), 8)
        creases.append(np.stack([way * np.cos(bend), way * np.sin(bend)], axis=1))
    return Nucleus([blob(rng, radius, aspect=1.15, roughness=0.03, dents=dents)], tuple(creases))


def _cleft(rng: np.random.Generator, radius: float) -> Nucleus:
    dent = (np.pi / 2, rng.uniform(0.5, 0.75), rng.uniform(0.10, 0.15))
    return Nucleus([blob(rng, radius, aspect=rng.uniform(1.0, 1.12), roughness=0.025, dents=(dent,))])


def _mitosis(rng: np.random.Generator, radius: float) -> Nucleus:
    """One ragged plate, or two that move apart."""
    gap = rng.choice([0.0, rng.uniform(0.35, 0.6)]) * radius
    plates = []
    for side in (-1, 1) if gap else (0,):
        plate = blob(rng, radius * 0.52, aspect=rng.uniform(3.2, 4.5), roughness=0.05)
        plate *= 1 + rng.normal(0, 0.07, (len(plate), 1))
        plates.append(plate + np.array([0, side * gap]))
    return Nucleus(plates)


def _many(rng: np.random.Generator, radius: float) -> Nucleus:
    count = int(rng.integers(5, 10))
    reach = radius * np.sqrt((np.arange(count) + 0.4) / count) * 0.78
    turn = np.arange(count) * 2.4 + rng.normal(0, 0.15, count)
    return Nucleus(
        [
            blob(rng, radius * rng.uniform(0.24, 0.32), aspect=rng.uniform(1, 1.25), roughness=0.03)
            + np.array([r * np.cos(t), r * np.sin(t)])
            for r, t in zip(reach, turn, strict=True)
        ]
    )


#: Name of a nuclear form -> function of (random generator, outer radius in pixels).
NUCLEI: Mapping[str, Callable[[np.random.Generator, float], Nucleus]] = MappingProxyType(
    {
        "round": _round,
        "kidney": _kidney,
        "band": _band,
        "segmented": _segmented,
        "bilobed": _bilobed,
        "folded": _folded,
        "cleft": _cleft,
        "mitosis": _mitosis,
        "many": _many,
    }
)
