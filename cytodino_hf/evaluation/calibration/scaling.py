"""Scaling of logits: one temperature, or a scale and a bias for each class, and which of them to trust.

Source: Guo et al. 2017, On calibration of modern neural networks (arXiv 1706.04599), section 4.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..statistics import ENOUGH_IMAGES
from .halves import balanced_parts
from .temperature import COLDEST, HOTTEST, fit_temperature, image_nll

Method = Literal["none", "temperature", "vector"]

#: Parts of the cross-validation that chooses between temperature and vector scaling.
FOLDS = 5
_LARGEST_BIAS = 20.0  # in nats: a factor of 5e8 between two classes, more than any fold can show


@dataclass(frozen=True)
class Scaling:
    """logits * scale + bias.

    Args:
        method: How it was fitted; `none` changes nothing.
        scale, bias: (classes,) float64.
        temperature: 1 / scale where all classes share it, else None.
        held: Labels that vector scaling left at the temperature, for want of images.
    """

    method: Method
    scale: np.ndarray
    bias: np.ndarray
    temperature: float | None
    held: tuple[int, ...] = ()

    def apply(self, logits: np.ndarray) -> np.ndarray:
        """Calibrated logits, float32 (images, classes)."""
        return (np.asarray(logits, dtype=np.float64) * self.scale + self.bias).astype(np.float32)


def by_temperature(temperature: float, classes: int, method: Method = "temperature") -> Scaling:
    """The scaling that divides all logits by one number."""
    return Scaling(method, np.full(classes, 1 / temperature), np.zeros(classes), temperature)


def temperature_scaling(logits: np.ndarray, labels: np.ndarray) -> Scaling:
    """The temperature with the least negative log-likelihood; `none` where `why_no_scaling` says why."""
    if why_no_scaling(logits, labels):
        return by_temperature(1.0, logits.shape[1], "none")
    return by_temperature(fit_temperature(logits, labels), logits.shape[1])


def vector_scaling(logits: np.ndarray, labels: np.ndarray, start: Scaling) -> Scaling | None:
    """A scale and a bias for each class with the least negative log-likelihood.

    A class with fewer than 20 images keeps the temperature and no bias: its likelihood would be least with a bias that
    erases it.

    Args:
        logits: (images, classes) of images that the model was neither trained nor chosen on.
        labels: (images,) true classes.
        start: The temperature of these images.

    Returns:
        None where fewer than two classes have 20 images, or no temperature could be fitted.
    """
    from scipy.optimize import minimize

    free = np.bincount(labels, minlength=logits.shape[1]) >= ENOUGH_IMAGES
    if start.method == "none" or free.sum() < 2:
        return None
    logits = np.asarray(logits, dtype=np.float64)
    rows, n = np.arange(len(labels)), len(labels)

    def nll_and_slope(free_values: np.ndarray) -> tuple[float, np.ndarray]:
        scale, bias = _spread(free_values, free, start)
        scaled = logits * scale + bias
        scaled -= scaled.max(axis=1, keepdims=True)
        shares = np.exp(scaled)
        total = shares.sum(axis=1)
        nll = (np.log(total) - scaled[rows, labels]).mean()
        shares /= total[:, None]
        shares[rows, labels] -= 1.0  # now the slope of each image's nll over its scaled logits
        slope_of_scale = np.einsum("nk,nk->k", shares, logits)[free]
        return nll, np.concatenate([slope_of_scale, shares.sum(axis=0)[free]]) / n

    found = minimize(
        nll_and_slope,
        np.concatenate([start.scale[free], np.zeros(free.sum())]),
        jac=True,
        method="L-BFGS-B",
        bounds=[(1 / HOTTEST, 1 / COLDEST)] * free.sum() + [(-_LARGEST_BIAS, _LARGEST_BIAS)] * free.sum(),
    )
    scale, bias = _spread(found.x, free, start)
    return Scaling("vector", scale, bias, None, tuple(int(label) for label in np.flatnonzero(~free)))


def _spread(free_values: np.ndarray, free: np.ndarray, start: Scaling) -> tuple[np.ndarray, np.ndarray]:
    """Scale and bias of all classes from those that are fitted."""
    scale, bias = start.scale.copy(), start.bias.copy()
    scale[free], bias[free] = np.split(free_values, 2)
    return scale, bias


def why_no_scaling(logits: np.ndarray, labels: np.ndarray) -> str | None:
    """Why no temperature can be told from these images; None where it can."""
    n = len(labels)
    if n < ENOUGH_IMAGES:
        return f"{n} labelled images are too few to fit a temperature ({ENOUGH_IMAGES} are needed)"
    right = int((np.asarray(logits).argmax(axis=1) == labels).sum())
    if right in (0, n):
        word = "right" if right else "wrong"
        return f"the model is {word} on all {n} images, so they do not say how sure it should be"
    return None


@dataclass(frozen=True)
class ScalingChoice:
    """Which scaling was chosen, and on what grounds.

    Args:
        scaling: The chosen one, fitted on all images given.
        tried: Method -> its fit on all images, temperature and where it can be vector; empty where nothing was fitted.
        cross_validated: Method -> negative log-likelihood of images its fit did not see; None where it was not tried.
        reason: A sentence for people.
    """

    scaling: Scaling
    tried: dict[str, Scaling]
    cross_validated: dict[str, float | None]
    reason: str


def choose_scaling(
    logits: np.ndarray, labels: np.ndarray, groups: Sequence[str | None], ids: Sequence[str], seed: int = 0
) -> ScalingChoice:
    """The better of temperature and vector scaling by cross-validation; the simpler one wins ties.

    Temperature is taken where it lowers the cross-validated negative log-likelihood; vector scaling, with two numbers a
    class, only where it lowers that further by more than one standard error of the difference.

    Args:
        logits, labels: As of `fit_temperature`.
        groups, ids: Group (or None) and id of each image; a group is never divided.
        seed: Of the parts.

    Source:
        One standard error: Breiman et al. 1984, Classification and regression trees, 3.4.3.
    """
    nothing = by_temperature(1.0, logits.shape[1], "none")
    if why := why_no_scaling(logits, labels):
        untried = dict.fromkeys(("none", "temperature", "vector"))
        return ScalingChoice(nothing, {}, untried, f"No scaling: {why}.")
    units = _units(groups)
    temperature = temperature_scaling(logits, labels)
    tried = {"temperature": temperature}
    if (vector := vector_scaling(logits, labels, temperature)) is not None:
        tried["vector"] = vector
    if units.max() == 0:
        alone = dict.fromkeys(("none", "temperature", "vector"))
        one = "Temperature: all images are of one group, so nothing can be cross-validated."
        return ScalingChoice(temperature, tried, alone, one)
    unseen = _unseen_nll(logits, labels, balanced_parts(labels, groups, ids, FOLDS, seed))
    if vector is None:
        unseen.pop("vector")
    chosen: Method = "temperature" if unseen["temperature"].mean() < unseen["none"].mean() else "none"
    if "vector" in unseen:
        gain = unseen[chosen] - unseen["vector"]
        if gain.mean() > _standard_error(gain, units):
            chosen = "vector"
    means = {
        name: float(unseen[name].mean()) if name in unseen else None
        for name in ("none", "temperature", "vector")
    }
    return ScalingChoice(tried.get(chosen, nothing), tried, means, _reason(chosen, means))


def _unseen_nll(logits: np.ndarray, labels: np.ndarray, part: np.ndarray) -> dict[str, np.ndarray]:
    """Method -> negative log-likelihood of each image under a fit that did not see it."""
    nll = {name: image_nll(logits, labels) for name in ("none", "temperature", "vector")}
    for held_out in np.unique(part):
        out = part == held_out
        temperature = temperature_scaling(logits[~out], labels[~out])
        vector = vector_scaling(logits[~out], labels[~out], temperature) or temperature
        nll["temperature"][out] = image_nll(temperature.apply(logits[out]), labels[out])
        nll["vector"][out] = image_nll(vector.apply(logits[out]), labels[out])
    return nll


def _units(groups: Sequence[str | None]) -> np.ndarray:
    """Number of the group of each image; an image without group is alone."""
    seen: dict[object, int] = {}
    keys: list[object] = [row if group is None else group for row, group in enumerate(groups)]
    return np.array([seen.setdefault(key, len(seen)) for key in keys])


def _standard_error(values: np.ndarray, units: np.ndarray) -> float:
    """Standard error of a mean whose values come in independent units."""
    sums = np.bincount(units, values - values.mean())
    return float(np.sqrt((sums**2).sum() * len(sums) / (len(sums) - 1)) / len(values))


def _reason(chosen: Method, nll: dict[str, float | None]) -> str:
    words = {"none": "no scaling", "temperature": "temperature", "vector": "vector scaling"}
    shown = ", ".join(f"{words[name]} {value:.4f}" for name, value in nll.items() if value is not None)
    verdicts = {
        "none": "Temperature does not help, so the logits stay as they are",
        "temperature": "One temperature for all classes was chosen",
        "vector": "Vector scaling (a scale and a bias for each class) was chosen",
    }
    rest = {
        "none": "",
        "temperature": "; vector scaling is not better by more than its standard error"
        if nll["vector"] is not None
        else f"; fewer than two classes have the {ENOUGH_IMAGES} images that vector scaling needs",
        "vector": "; it is better by more than the standard error of the difference",
    }
    return (
        f"{verdicts[chosen]}{rest[chosen]} (negative log-likelihood by {FOLDS}-fold cross-validation inside the half: "
        f"{shown})."
    )
