"""Risk against coverage: how often the model is wrong on the share of images it is surest of.

With e_r = 1 where the image of rank r (1 is the surest of n) is wrong, the risk at k images is (e_1 + ... + e_k) / k,
and

    AURC = (1/n) sum over k = 1..n of the risk at k = (1/n) sum over r of e_r (H_n - H_(r-1)),

H_m = 1 + 1/2 + ... + 1/m.

The excess AURC is what is left after taking off the AURC of the best order, which puts all E wrong images last:
(1/n) sum over r = n-E+1..n of (H_n - H_(r-1)). Images with the same score have no order; they count with the mean over
all orders. Both hold for images that a bootstrap draws several times: copies have the same score.

Source: Geifman, Uziel and El-Yaniv 2019, Bias-reduced uncertainty estimation for deep neural classifiers (ICLR, arXiv
1805.08206), section 2 (AURC) and 3 (E-AURC; there with the limit r + (1 - r) log(1 - r) of the best order).
"""

from __future__ import annotations

import numpy as np


class RiskCoverage:
    """Risk against coverage of one score, for any weights of the images.

    Args:
        score: (images,) higher is surer.
        wrong: (images,) bool, the mistakes that count.

    Raises:
        ValueError: There is no image, or a score is not finite.
    """

    def __init__(self, score: np.ndarray, wrong: np.ndarray) -> None:
        if not len(score):
            raise ValueError("no image to rank")
        if not np.isfinite(score).all():
            raise ValueError("a score is not finite, so the images have no order")
        self._order = np.argsort(-score, kind="stable")
        ranked = score[self._order]
        starts = np.flatnonzero(np.concatenate([[True], np.diff(ranked) != 0]))
        self._ends = np.append(starts[1:], len(ranked)) - 1  # last image of each block of equal scores
        block = np.searchsorted(starts, np.arange(len(ranked)), side="right") - 1
        self._mistakes = np.flatnonzero(wrong[self._order])
        self._first = starts[block[self._mistakes]]
        self._last = self._ends[block[self._mistakes]]
        self._wrong = wrong[self._order].astype(np.float64)
        self._block = block
        #: Score of each block, surest first.
        self.values = ranked[self._ends]

    def areas(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """AURC and excess AURC of some draws.

        Args:
            weights: (draws, images) whole numbers; a draw without an image gives NaN.

        Returns:
            Two arrays (draws,).
        """
        ranked = weights[:, self._order]
        reached = np.cumsum(ranked, axis=1)
        total = reached[:, -1].astype(np.int64)
        largest = int(total.max())
        harmonic = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, largest + 1))])  # H_0 .. H_n
        before = np.concatenate([[0.0], np.cumsum(harmonic[:-1])])  # [m] = H_0 + ... + H_(m-1)
        w = ranked[:, self._mistakes]
        to = reached[:, self._last].astype(np.int64)
        since = (reached[:, self._first] - ranked[:, self._first]).astype(np.int64)
        # Mean of H_(r-1) over the ranks of the block; a block of weight 0 holds no mistake of weight above 0.
        mean = (before[to] - before[since]) / np.maximum(to - since, 1)
        everything = harmonic[total]
        mistakes = w.sum(axis=1)
        best = mistakes * everything - (before[total] - before[total - mistakes.astype(np.int64)])
        with np.errstate(invalid="ignore"):
            aurc = (w * (everything[:, None] - mean)).sum(axis=1) / np.where(total > 0, total, np.nan)
            return aurc, aurc - best / np.where(total > 0, total, np.nan)

    def influences(self) -> tuple[np.ndarray, np.ndarray]:
        """Change of AURC and of excess AURC per image counted more, each (images,) and summing to 0.

        With F(s) the share of images at least as sure as s, AURC is in the limit the mean of -e log F; an image adds
        its own term and raises F for all that are less sure than it, by itself.
        """
        n, share_wrong = len(self._order), float(self._wrong.mean())
        ranks = np.arange(1, n + 1)
        terms = self._over_blocks(np.cumsum((1 / ranks)[::-1])[::-1])  # H_n - H_(r-1)
        # Mistakes come evenly within a block, whatever its order.
        wrong = self._over_blocks(self._wrong)
        after = self._over_blocks(np.cumsum((wrong / ranks)[::-1])[::-1])
        of_aurc = np.empty(n)
        of_aurc[self._order] = self._wrong * terms - after
        of_aurc -= of_aurc.mean()
        slope = (
            -np.log1p(-share_wrong) if share_wrong < 1 else 0.0
        )  # of the best order's AURC, r + (1 - r) log(1 - r)
        of_best = np.empty(n)
        of_best[self._order] = slope * (self._wrong - share_wrong)
        return of_aurc / n, (of_aurc - of_best) / n

    def _over_blocks(self, values: np.ndarray) -> np.ndarray:
        """Each value by the mean of its block of equal scores."""
        mean: np.ndarray = (np.bincount(self._block, values) / np.bincount(self._block))[self._block]
        return mean

    def risks(self, weights: np.ndarray, coverages: np.ndarray) -> np.ndarray:
        """Risk at some coverages, (draws, coverages); within a block of equal scores mistakes come evenly.

        Args:
            weights: (draws, images) whole numbers, an image in each draw.
            coverages: Shares of the images, above 0 up to 1.
        """
        ranked = weights[:, self._order]
        reached = np.cumsum(ranked, axis=1)[:, self._ends]
        mistakes = np.cumsum(ranked * self._wrong, axis=1)[:, self._ends]
        counts = reached[:, -1:] * coverages
        rows = [
            np.interp(k, np.append(0, kept), np.append(0, wrong))
            for k, kept, wrong in zip(counts, reached, mistakes, strict=True)
        ]
        return np.stack(rows) / counts

    def steps(self) -> tuple[np.ndarray, np.ndarray]:
        """Images and mistakes kept when the threshold is the score of each block: two whole arrays (blocks,)."""
        kept = self._ends + 1
        return kept, np.cumsum(self._wrong)[self._ends].astype(np.int64)
