"""Time cells in turn, round by round, and compare them with an interval.

The cells of a comparison run one after another in every round, so that a machine that slows down or is shared slows
all of them. A ratio is taken within each round; its median and a bootstrap over the rounds are reported.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import BaseModel, ConfigDict

#: What a cell does in one round; it is told the number of the round, -1 for the warm-up.
Work = Callable[[int], object]

_BOOTSTRAP_DRAWS = 2000
_CONFIDENCE = 0.95


class Round(BaseModel):
    """One timed run of one cell, seconds.

    Args:
        cpu_s: CPU time of the process, all its threads; of the child where a process is what is timed.
        wall_s: Time on the clock.
        device_s: Between two events on the GPU, None on a CPU.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    cpu_s: float
    wall_s: float
    device_s: float | None = None


@dataclass(frozen=True)
class Spread:
    """How a quantity lay over the rounds."""

    least: float
    lower_quartile: float
    median: float
    upper_quartile: float
    greatest: float


@dataclass(frozen=True)
class Ratio:
    """How many times faster, with an interval of 95 %."""

    value: float
    low: float
    high: float


def interleave(
    cells: Mapping[str, Work],
    *,
    rounds: int,
    warm_up: int = 1,
    device: str = "cpu",
    measure: Callable[[Work, int, str], Round] | None = None,
    label: str = "",
) -> dict[str, list[Round]]:
    """Run every cell once a round, in turn.

    Args:
        cells: Name -> work.
        rounds: Timed rounds.
        warm_up: Rounds before, not timed.
        device: `cpu` or `cuda`.
        measure: Runs one cell and times it; `timed` by default.
        label: Shown beside the progress bar.

    Returns:
        Name -> one `Round` for each round.
    """
    from tqdm.auto import tqdm

    run = measure or timed
    names = list(cells)
    found: dict[str, list[Round]] = {name: [] for name in names}
    with tqdm(total=len(names) * (warm_up + rounds), desc=label or "rounds", unit="cell") as progress:
        for number in range(-warm_up, rounds):
            # Another cell begins each time, so that none always runs in the wake of the same other.
            first = number % len(names)
            gc.collect()  # what earlier rounds left is nobody's work
            for name in names[first:] + names[:first]:
                result = run(cells[name], number, device)
                if number >= 0:
                    found[name].append(result)
                progress.update()
    return found


def timed(work: Work, number: int, device: str) -> Round:
    """Time one run of a cell: CPU time and wall time, and on a GPU the time between two events."""
    if device != "cuda":
        cpu, wall = time.process_time(), time.perf_counter()
        work(number)
        return Round(cpu_s=time.process_time() - cpu, wall_s=time.perf_counter() - wall)
    import torch

    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    cpu, wall = time.process_time(), time.perf_counter()
    start.record()
    work(number)
    end.record()
    torch.cuda.synchronize()
    return Round(
        cpu_s=time.process_time() - cpu,
        wall_s=time.perf_counter() - wall,
        device_s=start.elapsed_time(end) / 1000,
    )


def spread(values: Sequence[float]) -> Spread:
    """Least, quartiles and greatest of the rounds."""
    return Spread(
        *(float(v) for v in np.quantile(np.asarray(values, dtype=np.float64), [0, 0.25, 0.5, 0.75, 1]))
    )


def speed_up(reference: Sequence[float], ours: Sequence[float], seed: int = 0) -> Ratio:
    """How many times faster ours is: the median over the rounds of reference / ours, both per unit of work.

    Args:
        reference: Seconds per unit of the reference in each round.
        ours: The same of ours, in the same rounds.
        seed: Of the bootstrap, which draws rounds with replacement.

    Returns:
        The median and its percentile interval. With five rounds that is about the range of the rounds.

    Raises:
        ValueError: The two were not timed in the same rounds.

    Example:
        >>> speed_up([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
        Ratio(value=2.0, low=2.0, high=2.0)
    """
    if len(reference) != len(ours) or not len(ours):
        raise ValueError(f"{len(reference)} rounds of the reference, {len(ours)} of the other")
    ratios = np.asarray(reference, dtype=np.float64) / np.asarray(ours, dtype=np.float64)
    picks = np.random.default_rng(seed).integers(len(ratios), size=(_BOOTSTRAP_DRAWS, len(ratios)))
    medians = np.median(ratios[picks], axis=1)
    low, high = np.quantile(medians, [(1 - _CONFIDENCE) / 2, (1 + _CONFIDENCE) / 2])
    return Ratio(float(np.median(ratios)), float(low), float(high))
