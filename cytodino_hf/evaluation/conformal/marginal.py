"""Marginal sets by MAPIE from probabilities that are there already: LAC, APS and RAPS.

With n calibration cells and k = ceil((n + 1)(1 - alpha)), LAC covers exactly k / (n + 1) in expectation where no two
scores tie; APS, as published, does so by leaving the class that crosses the threshold out at random, and RAPS nearly.
Sets of all three may be empty. Without the random part APS and RAPS keep that class: no set is empty, a cell always
gets the same set, and far more cells are covered than asked. RAPS sets a fifth of the cells aside to choose its
penalty.

Source: Sadinle et al. 2019 (LAC, arXiv 1609.00451); Romano, Sesia and Candès 2020 (APS, arXiv 2006.02544); Angelopoulos
et al. 2021 (RAPS, arXiv 2009.14193).
"""

from __future__ import annotations

import math
import warnings
from typing import Any, Literal

import numpy as np

MarginalMethod = Literal["lac", "aps", "raps"]
MARGINAL: tuple[MarginalMethod, ...] = ("lac", "aps", "raps")
#: Of the calibration cells that RAPS sets aside to choose its penalty (Angelopoulos et al. 2021, appendix E).
RAPS_SHARE = 0.2


# Added to every probability: where a certain answer makes the running sums of APS tie at 1, MAPIE takes the first class
# for the last one of the set. The order of the classes stays, and so does the promise, for all cells are treated alike.
_APART = 1e-10


class GivenProbabilities:
    """A "classifier" whose answer to a row of probabilities is that row, for libraries that want to call one.

    Args:
        num_classes: Columns of the rows.
    """

    def __init__(self, num_classes: int) -> None:
        self.classes_ = np.arange(num_classes)
        self.n_features_in_ = num_classes

    def fit(self, rows: np.ndarray, labels: np.ndarray) -> GivenProbabilities:
        """Nothing is learned."""
        return self

    def predict_proba(self, rows: np.ndarray) -> np.ndarray:
        """The rows."""
        return np.asarray(rows, dtype=np.float64)

    def predict(self, rows: np.ndarray) -> np.ndarray:
        """The most probable class of each row."""
        return self.classes_[np.asarray(rows).argmax(axis=1)]


def marginal_cells_needed(method: MarginalMethod, alpha: float) -> int:
    """The fewest calibration cells that MAPIE takes: 1 / alpha, for RAPS in the part it sets aside."""
    least = math.ceil(max(1 / alpha, 1 / (1 - alpha)) - 1e-9)
    return least if method != "raps" else math.floor((least - 1) / RAPS_SHARE) + 1


def why_no_marginal_sets(method: MarginalMethod, labels: np.ndarray, alpha: float, seed: int) -> str | None:
    """Why MAPIE makes no sets from these calibration cells; None where it does.

    Args:
        method, labels, alpha, seed: As of `marginal_sets`.
    """
    if len(labels) < (needed := marginal_cells_needed(method, alpha)):
        return f"MAPIE needs {needed} calibration images for it; {len(labels)} are left."
    scored = _raps_parts(len(labels), seed)[1] if method == "raps" else slice(None)
    if method != "lac" and len(np.unique(labels[scored])) < 3:
        return "MAPIE makes these sets only where the calibration images are of three classes or more."
    return None


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Softmax in float64: rounding to float32 makes scores tie, and ties make sets larger."""
    from scipy.special import softmax

    shares: np.ndarray = softmax(np.asarray(logits, dtype=np.float64), axis=1)
    return shares


def marginal_sets(
    method: MarginalMethod,
    calibration: np.ndarray,
    labels: np.ndarray,
    test: np.ndarray,
    *,
    alpha: float,
    seed: int,
    is_randomised: bool = True,
) -> np.ndarray:
    """Which classes are in the set of each test cell.

    Args:
        method: Which score.
        calibration: (cells, classes) probabilities of calibration cells.
        labels: (cells,) their true classes.
        test: (test cells, classes) probabilities.
        alpha: Share of cells that may lie outside their set.
        seed: Of the random part of APS and RAPS, and of the cells RAPS sets aside.
        is_randomised: Of APS and RAPS: leave the class that crosses the threshold out at random, as published.

    Returns:
        bool (test cells, classes).

    Raises:
        ValueError: `why_no_marginal_sets` gives a reason.
    """
    from mapie.classification import SplitConformalClassifier

    if why := why_no_marginal_sets(method, labels, alpha, seed):
        raise ValueError(f"{method} at alpha {alpha}: {why}")
    if not len(test):
        return np.zeros(test.shape, dtype=bool)
    conformal = SplitConformalClassifier(
        estimator=GivenProbabilities(test.shape[1]),
        confidence_level=1 - alpha,
        conformity_score=_raps(seed) if method == "raps" else method,
        prefit=True,
        random_state=np.random.RandomState(seed),
    )
    with warnings.catch_warnings():
        # That some classes have no calibration cell is said in the report.
        warnings.filterwarnings("ignore", message=".*conformalization dataset has less labels.*")
        conformal.conformalize(_kept_apart(calibration), np.asarray(labels))
    _, sets = conformal.predict_set(
        _kept_apart(test),
        conformity_score_params={"include_last_label": "randomized" if is_randomised else True},
    )
    inside: np.ndarray = sets[:, :, 0].astype(bool)
    return inside


def _kept_apart(rows: np.ndarray) -> np.ndarray:
    apart: np.ndarray = (np.asarray(rows, dtype=np.float64) + _APART) / (1 + rows.shape[1] * _APART)
    return apart


def _raps_parts(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows that choose the penalty, and rows that set the threshold."""
    order = np.random.default_rng(seed).permutation(n)
    aside = math.ceil(RAPS_SHARE * n - 1e-9)
    return order[:aside], order[aside:]


def _raps(seed: int) -> Any:
    """RAPS that sets its part aside at random: MAPIE stratifies, which a class of one cell makes impossible."""
    from mapie.conformity_scores import RAPSConformityScore

    class PlainlySplit(RAPSConformityScore):
        def split_data(
            self, rows: Any, y: Any, y_enc: Any, sample_weight: Any = None, groups: Any = None
        ) -> tuple[Any, Any, Any, Any, Any]:
            aside, kept = _raps_parts(len(y), seed)
            self.X_raps, self.y_raps, self.y_raps_no_enc = rows[aside], y_enc[aside], y[aside]
            self.n_samples_ = len(kept)
            return rows[kept], y[kept], y_enc[kept], sample_weight, groups

    return PlainlySplit()
