"""A bound on critical cells that are called safe and that nobody looks at.

A cell called safe stays so only where the critical classes together are improbable enough; the others go to a person.
The risk is the share of critical cells that stay safe. It grows with the bar on that probability, so the highest bar
is taken at which the calibration cells rule out a larger risk: with n critical cells of which x stay safe, the exact
binomial p-value of "the risk is above r" is P(Bin(n, r) <= x), and it must not exceed 1 - confidence. Over repeated
calibrations the true risk is then at most r in at least that share of them. Fewer than
log(1 - confidence) / log(1 - r) critical cells cannot show it, whatever they say.

The promise is for critical cells in the mixture of the calibration fold, not for each critical class by itself.

Source: Bates et al. 2021, Distribution-free, risk-controlling prediction sets (arXiv 2101.02703), theorem 1, for a risk
that grows with the bar; Angelopoulos et al. 2021, Learn then test (arXiv 2110.01052), with binomial p-values.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ...taxonomy import Taxonomy
from .marginal import probabilities


@dataclass(frozen=True)
class RiskBound:
    """Where the bar lies for one risk.

    Args:
        risk: Share of critical cells that may stay safe.
        confidence: How sure that is.
        needed: Fewest critical calibration cells that could show it.
        cells: Critical calibration cells there are.
        allowed: How many of them may stay safe; None where there are too few cells.
        bar: A cell called safe stays so where its probability of a critical class is below this; None where there are
            too few cells. Infinite where no cell needs to be looked at.
    """

    risk: float
    confidence: float
    needed: int
    cells: int
    allowed: int | None
    bar: float | None


def critical_cells_needed(risk: float, confidence: float = 0.9) -> int:
    """The fewest critical cells, all handled rightly, that rule out a larger risk: (1 - risk)^n <= 1 - confidence.

    Example:
        >>> [critical_cells_needed(risk) for risk in (0.1, 0.05, 0.02)]
        [22, 45, 114]

    Raises:
        ValueError: Risk or confidence is not between 0 and 1.
    """
    if not (0 < risk < 1 and 0 < confidence < 1):
        raise ValueError(f"risk {risk} and confidence {confidence} must lie between 0 and 1")
    return math.ceil(math.log1p(-confidence) / math.log1p(-risk) - 1e-9)


def critical_probability(logits: np.ndarray, taxonomy: Taxonomy) -> np.ndarray:
    """Probability of all critical classes together, float64 (cells,)."""
    return probabilities(logits)[:, list(taxonomy.critical)].sum(axis=1)


def bound_risk(
    logits: np.ndarray, labels: np.ndarray, taxonomy: Taxonomy, risk: float, confidence: float = 0.9
) -> RiskBound:
    """Find the highest bar that keeps the risk.

    Args:
        logits: (cells, classes) of calibration cells that the model was neither trained, chosen nor scaled on.
        labels: (cells,) true classes.
        taxonomy: Says which classes are critical and which are safe.
        risk: Share of critical cells that may stay safe.
        confidence: How sure that must be.

    Raises:
        ValueError: Risk or confidence is not between 0 and 1, or no class is critical or none is safe.
    """
    from scipy.stats import binom

    if not taxonomy.critical or not taxonomy.safe:
        raise ValueError(
            f"taxonomy {taxonomy.name!r} names no critical class or no safe one: no risk to bound"
        )
    needed = critical_cells_needed(risk, confidence)
    is_critical = np.isin(labels, taxonomy.critical)
    n = int(is_critical.sum())
    if n < needed:
        return RiskBound(risk, confidence, needed, n, None, None)
    # P(Bin(n, risk) <= x) grows with x.
    p_values = binom.cdf(np.arange(n + 1), n, risk)
    allowed = int((p_values <= 1 - confidence).sum()) - 1
    logits = np.asarray(logits)[is_critical]
    called_safe = np.isin(logits.argmax(axis=1), taxonomy.safe)
    # The first cell too many sets the bar: it must not stay safe.
    probable = np.sort(critical_probability(logits, taxonomy)[called_safe])
    bar = float(probable[allowed]) if allowed < len(probable) else math.inf
    return RiskBound(risk, confidence, needed, n, allowed, bar)


def stays_safe(logits: np.ndarray, taxonomy: Taxonomy, bar: float) -> np.ndarray:
    """Whether each cell is called safe and nobody needs to look at it, bool (cells,)."""
    called_safe = np.isin(np.asarray(logits).argmax(axis=1), taxonomy.safe)
    kept: np.ndarray = called_safe & (critical_probability(logits, taxonomy) < bar)
    return kept
