"""Draw folds: how many images of each class a fold gets, and which ones, whole groups together.

Every draw orders names by a hash of (seed, name): the result depends neither on the order of files on the
disk nor on a library's random generator, and an image added later moves few others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from .samples import FOLDS

# Which folds a class too small for all of them fills first: it must be learnt, then it must be measured.
_PRIORITY = tuple(FOLDS.index(name) for name in ("train", "test", "validation", "calibration"))
# In units of the chi-square distance: as much as two images too many in a fold meant to hold one.
_MISSING_CLASS_COST = 4.0
# Groups beyond this number are placed once and not moved again: the quotas are then met closely anyway.
_MAX_MOVABLE_GROUPS = 2000
_MAX_SWEEPS = 20


def fold_quotas(count: int, fractions: np.ndarray) -> np.ndarray:
    """How many of `count` images each fold gets: largest remainder, and at least one where there are enough.

    Args:
        count: Images of one class.
        fractions: (folds,) float64 in the order of `FOLDS`, sum 1. A fold with fraction 0 gets none.

    Returns:
        (folds,) int64, sum `count`. With fewer images than folds: train first, then test, validation,
        calibration.

    Example:
        >>> fold_quotas(8, np.array([0.65, 0.10, 0.05, 0.20])).tolist()
        [4, 1, 1, 2]
        >>> fold_quotas(2, np.array([0.65, 0.10, 0.05, 0.20])).tolist()
        [1, 0, 0, 1]
    """
    active = [fold for fold in _PRIORITY if fractions[fold] > 0]
    quotas = np.zeros(len(FOLDS), dtype=np.int64)
    if count < len(active):
        quotas[active[:count]] = 1
        return quotas
    # Rounded first: 0.65 * 20 must be 13, not 12.999...
    ideal = np.round(fractions * count, 9)
    quotas[:] = np.floor(ideal)
    by_remainder = sorted(active, key=lambda fold: -(ideal[fold] - quotas[fold]))
    for fold in by_remainder[: count - int(quotas.sum())]:
        quotas[fold] += 1
    for fold in active:
        if quotas[fold] == 0:
            quotas[quotas.argmax()] -= 1
            quotas[fold] = 1
    return quotas


def draw_folds(
    names: Sequence[str],
    labels: np.ndarray,
    groups: Sequence[str] | None,
    fractions: Mapping[str, float],
    seed: int,
) -> np.ndarray:
    """Give every image a fold, stratified by class, no group in two folds.

    Groups of several images are placed first, large ones first, each where it brings the folds closest to
    their quotas of every class; the other images fill what is left, which meets the quotas exactly where
    there are none.

    Args:
        names: Unique name of each image.
        labels: (images,) class of each image, from 0.
        groups: Group of each image; None where there are no groups.
        fractions: Share of each fold, sum 1.
        seed: Another seed gives another draw.

    Returns:
        (images,) int64, index into `FOLDS`.
    """
    shares = np.array([fractions.get(fold, 0.0) for fold in FOLDS])
    class_count = int(labels.max()) + 1
    totals = np.bincount(labels, minlength=class_count)
    quotas = np.stack([fold_quotas(int(total), shares) for total in totals], axis=1)  # (folds, classes)
    folds = np.full(len(names), -1, dtype=np.int64)
    if groups is not None:
        _place_groups(folds, labels, groups, quotas, seed)
    order = np.argsort(_draw_keys(names, seed), kind="stable")
    for label in range(class_count):
        of_class = order[labels[order] == label]
        rest = of_class[folds[of_class] < 0]
        have = np.bincount(folds[of_class][folds[of_class] >= 0], minlength=len(FOLDS))
        folds[rest] = np.repeat(np.arange(len(FOLDS)), _fill(len(rest), quotas[:, label] - have))
    return folds


def _fill(count: int, wanted: np.ndarray) -> np.ndarray:
    """Share `count` single images among folds by what each still wants; groups may have overfilled some."""
    wanted = np.maximum(wanted, 0)
    if wanted.sum() == count:
        return wanted
    return fold_quotas(count, wanted / wanted.sum())


def _draw_keys(names: Sequence[str], seed: int) -> np.ndarray:
    """(names,) uint64: the first eight bytes of sha256 over seed and name."""
    prefix = f"{seed}\n"
    digests = b"".join(hashlib.sha256((prefix + name).encode()).digest()[:8] for name in names)
    return np.frombuffer(digests, dtype=">u8")


def _place_groups(
    folds: np.ndarray, labels: np.ndarray, groups: Sequence[str], quotas: np.ndarray, seed: int
) -> None:
    """Write the fold of every image that shares its group with another one into `folds`."""
    names, group_of, sizes = np.unique(
        np.asarray(groups, dtype=object), return_inverse=True, return_counts=True
    )
    shared = np.flatnonzero(sizes > 1)
    if len(shared) == 0:
        return
    row_of_group = np.full(len(names), -1)
    row_of_group[shared] = np.arange(len(shared))
    rows = row_of_group[group_of]
    tallies = np.zeros((len(shared), quotas.shape[1]), dtype=np.int64)  # (groups, classes)
    np.add.at(tallies, (rows[rows >= 0], labels[rows >= 0]), 1)
    keys = _draw_keys([names[group] for group in shared], seed)
    # Large groups first, within a factor of two in drawn order: by exact size no seed would change anything.
    order = np.lexsort((keys, -np.floor(np.log2(sizes[shared]))))
    placed = _choose_folds(tallies, quotas, order)
    folds[rows >= 0] = placed[rows[rows >= 0]]


def _choose_folds(tallies: np.ndarray, quotas: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Fold of each group: greedy in `order`, then moved as long as that brings the quotas closer.

    The cost of a fold is the chi-square distance of its class counts from its quotas, plus a price for every
    class that it should hold and does not. Once all groups are placed, an empty fold costs more than
    anything: with few groups the quotas alone would leave the smallest fold without one.
    """
    active = np.array([fold for fold in _PRIORITY if quotas[fold].sum() > 0])
    wanted = quotas[active]

    def cost(have: np.ndarray, empty_cost: float) -> np.ndarray:
        distance = (have - wanted) ** 2 / np.maximum(wanted, 1)
        missing = (have == 0) & (wanted > 0)
        empty = have.sum(axis=1) == 0
        return (distance + _MISSING_CLASS_COST * missing).sum(axis=1) + empty_cost * empty  # (folds,)

    have = np.zeros_like(wanted)
    place = np.full(len(tallies), -1)
    for sweep in range(_MAX_SWEEPS if len(tallies) <= _MAX_MOVABLE_GROUPS else 1):
        moved = False
        empty_cost = float(tallies.sum()) ** 2 if sweep else 0.0
        for group in order[::-1] if sweep else order:
            if sweep:
                have[place[group]] -= tallies[group]
            added = cost(have + tallies[group], empty_cost) - cost(have, empty_cost)
            best = int(added.argmin())
            if sweep and added[best] > added[place[group]] - 1e-9:
                best = int(place[group])
            moved |= best != place[group]
            place[group] = best
            have[best] += tallies[group]
        if not moved:
            break
    return active[place]
