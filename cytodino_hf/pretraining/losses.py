"""What iBOT minimises: agreement with the teacher across views and on masked patches, and optionally KoLeo.

All of it is computed in float32, whatever the precision of the logits. Logits are cosines, not yet divided by a
temperature. A cross-entropy -sum_k p_k log softmax(s)_k is written logsumexp(s) - sum_k p_k s_k, which holds as p sums
to 1 and never writes out the log-softmax of every prototype.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Keeps the logarithm of KoLeo finite; DINOv2's value.
_KOLEO_EPS = 1e-8


class TeacherTargets(nn.Module):
    """Turns the teacher's logits into the distributions that the student has to match.

    `centre` subtracts a moving mean of the logits before the softmax: no prototype can win everywhere. The mean moves
    after it was used, in training only, with the rows of all processes. `sinkhorn` shares the rows of all processes out
    evenly among the prototypes. `none` does neither; the teacher soon answers one prototype to everything.

    Rows may be there only to fill up a batch: they move no mean and take no share of a prototype, and what they get
    means nothing.

    Args:
        out_dim: Prototypes.
        centering: `centre`, `sinkhorn` or `none`.
        momentum: Of the moving mean.
        iterations: Rounds of Sinkhorn.

    Source:
        Caron et al. 2021, DINO (arXiv 2104.14294), equation 4; Oquab et al. 2023, DINOv2 (arXiv 2304.07193), section 4.
    """

    centre: Tensor

    def __init__(
        self, out_dim: int, centering: Literal["centre", "sinkhorn", "none"], momentum: float, iterations: int
    ) -> None:
        super().__init__()
        self.centering, self.momentum, self.iterations = centering, momentum, iterations
        if centering == "centre":
            self.register_buffer("centre", torch.zeros(out_dim))

    @torch.no_grad()
    def forward(self, logits: Tensor, temperature: float, is_row: Tensor | None = None) -> Tensor:
        """Distributions over the prototypes.

        Args:
            logits: (rows, out_dim).
            temperature: Divides them.
            is_row: float32 (rows,), 1 for a row and 0 for what fills up; None: all are rows.

        Returns:
            (rows, out_dim).
        """
        with torch.autocast(logits.device.type, enabled=False):
            logits = logits.float()
            if self.centering == "sinkhorn":
                return sinkhorn(logits, temperature, self.iterations, is_row)
            if self.centering == "none":
                return torch.softmax(logits / temperature, dim=-1)
            targets = torch.softmax((logits - self.centre) / temperature, dim=-1)
            if self.training:
                self._move_centre(logits, is_row)
            return targets

    def _move_centre(self, logits: Tensor, is_row: Tensor | None) -> None:
        if is_row is None:
            of_this_process = logits.sum(dim=0), logits.new_full((1,), len(logits))
        else:
            of_this_process = is_row @ logits, is_row.sum(dim=0, keepdim=True)
        total = _over_processes(torch.cat(of_this_process), "sum")
        rows = total[-1]
        # Without a row anywhere (no patch was masked) the mean stays where it is.
        weight = (1 - self.momentum) * (rows > 0)
        self.centre.lerp_(total[:-1] / rows.clamp_min(1), weight)


def sinkhorn(logits: Tensor, temperature: float, iterations: int, is_row: Tensor | None = None) -> Tensor:
    """Share rows out so that all prototypes get nearly the same: columns and rows are normalised in turn, rows last.

    Args:
        logits: (rows, prototypes); the sums over rows run over the rows of all processes.
        temperature: Divides the logits; with logits in [-1, 1] at least .025, so that exp(-2 / temperature) is not 0.
        iterations: Rounds.
        is_row: float32 (rows,), 1 for a row and 0 for what only fills up; None: all are rows.

    Returns:
        Distributions: each row sums to 1, each column to about rows / prototypes; what fills up gets zeros.

    Source:
        Caron et al. 2020, SwAV (arXiv 2006.09882), section 3.1; Cuturi 2013 (arXiv 1306.0895).
    """
    # It only keeps the powers within float32, so that of what fills up may be among them.
    largest = logits.max() if len(logits) else logits.new_full((), -torch.inf)
    shares = torch.exp((logits - _over_processes(largest, "max")) / temperature)
    if is_row is not None:
        shares = shares * is_row[:, None]
    least = torch.finfo(shares.dtype).tiny
    for _ in range(iterations):
        shares = shares / _over_processes(shares.sum(dim=0), "sum").clamp_min(least)
        shares = shares / shares.sum(dim=-1, keepdim=True).clamp_min(least)
    return shares


def cls_loss(student: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """Mean cross-entropy of the student on one view of a picture with the teacher on another view.

    Args:
        student: Logits (batch, views, prototypes), the teacher's views first, then local ones.
        targets: The teacher's distributions (batch, global views, prototypes).
        temperature: The student's.

    Returns:
        Mean over pictures and pairs of different views.
    """
    with torch.autocast(student.device.type, enabled=False):
        student = student.float() / temperature
        # (batch, global views, views): cross-entropy of each pair
        pairs = student.logsumexp(dim=-1)[:, None] - torch.einsum("btk,bsk->bts", targets, student)
        images, taught, views = pairs.shape
        same = torch.diagonal(pairs, dim1=1, dim2=2)
        return (pairs.sum() - same.sum()) / (images * (taught * views - taught))


def patch_loss(student: Tensor, targets: Tensor, weights: Tensor, temperature: float) -> Tensor:
    """Cross-entropy with the teacher on masked patches, mean over those of a view, then over all views.

    A view without a masked patch counts as 0; without any at all the loss is 0 and has a gradient of 0.

    Args:
        student: Logits of the masked patches (masked, prototypes).
        targets: The teacher's distributions at the same places.
        weights: Of each in that mean (masked,), as `masked_places` gives them; 0 for what only fills up.
        temperature: The student's.
    """
    with torch.autocast(student.device.type, enabled=False):
        student = student.float() / temperature
        per_patch = student.logsumexp(dim=-1) - torch.einsum("mk,mk->m", targets, student)
        return (per_patch * weights).sum()


def koleo_loss(features: Tensor) -> Tensor:
    """-mean log of the distance of each unit vector to its nearest neighbour: small where features spread evenly.

    Neighbours are sought among the pictures of this process only. One picture alone gives 0.

    Args:
        features: (batch, width), one view of each picture.

    Source:
        Sablayrolles et al. 2019 (arXiv 1806.03198), equation 2; distances as in DINOv2.
    """
    with torch.autocast(features.device.type, enabled=False):
        unit = F.normalize(features.float(), dim=-1, eps=_KOLEO_EPS)
        if len(unit) < 2:
            return unit.sum() * 0
        with torch.no_grad():
            cosines = (unit @ unit.T).fill_diagonal_(-torch.inf)
            nearest = cosines.argmax(dim=-1)
        distances = F.pairwise_distance(unit, unit[nearest], eps=_KOLEO_EPS)
        return -torch.log(distances + _KOLEO_EPS).mean()


def answers_in_sum(distributions: Tensor, is_row: Tensor | None = None) -> Tensor:
    """What many answers come to, so that sums over batches and processes can be taken of it.

    Args:
        distributions: (rows, prototypes).
        is_row: float32 (rows,), 1 for a row and 0 for what only fills up; None: all are rows.

    Returns:
        (prototypes + 2,): the sum of the distributions, the sum of their entropies in nats, the number of rows.
    """
    with torch.autocast(distributions.device.type, enabled=False):
        if is_row is None:
            is_row = distributions.new_ones(len(distributions))
        entropies = torch.special.entr(distributions).sum(dim=-1)
        return torch.cat(
            (is_row @ distributions, (is_row @ entropies)[None], is_row.sum(dim=0, keepdim=True))
        )


def _over_processes(value: Tensor, how: Literal["sum", "max"]) -> Tensor:
    """Sum or maximum over the processes that train together; every process must come here equally often."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(value, op=dist.ReduceOp.SUM if how == "sum" else dist.ReduceOp.MAX)
    return value
