"""What the teacher says while it learns: loss parts, entropy of its answers, rank of its features, and collapse.

Self-distillation has two ways to learn nothing: the teacher gives every picture the same prototype (entropy 0), or
finds all prototypes alike in every picture (entropy at its maximum). In both its answers tell nothing of the picture:
the entropy of the mean answer less the mean entropy of the answers, which is the information between picture and
prototype, goes to 0. And features that have become one and the same have rank 1.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import CollapseError

if TYPE_CHECKING:
    from .model import IBotOutput

#: Nats the answers must tell of the picture.
INFORMATION_FLOOR = 0.01
#: Effective rank of the features below which they are one vector.
RANK_FLOOR = 1.01
#: CLS features the rank is measured on, of each process.
WINDOW = 1024
_PARTS = ("cls", "patch", "koleo")
_REMEDY = (
    "What helps, one at a time: objective.centering 'sinkhorn' or 'centre', where it is 'none'; a longer "
    "objective.teacher_temperature_warmup or a lower final_teacher_temperature where all prototypes are alike, a "
    "higher teacher_temperature where one wins; half of training.base_learning_rate with longer warmup_steps; "
    "objective.momentum nearer to 1. A changed recipe needs another training.output_dir."
)


class Monitor:
    """Sums of what the steps since the last line of the log saw; the host waits for the device at that line only.

    Args:
        out_dim: Prototypes of the CLS head: the largest entropy is their logarithm.
        width: Of the features.
        device: Where the model computes.
        window: Features the rank is measured on.
    """

    def __init__(self, *, out_dim: int, width: int, device: torch.device, window: int = WINDOW) -> None:
        self.out_dim = out_dim
        self._sums = torch.zeros(len(_PARTS) + 2, device=device)
        self._features = torch.zeros(window, width, device=device)
        self._noted = 0  # micro-batches since the last line
        self._filled = 0  # features ever seen

    def note(self, output: IBotOutput) -> None:
        """Remember one micro-batch."""
        parts = [output.parts[name] for name in _PARTS]
        self._sums += torch.stack([*parts, output.teacher_entropy, output.prototype_entropy]).float()
        self._noted += 1
        window = len(self._features)
        rows = output.teacher_features.detach().float()[:window]
        first = self._filled % window
        fits = min(len(rows), window - first)
        self._features[first : first + fits] = rows[:fits]
        self._features[: len(rows) - fits] = rows[fits:]
        self._filled += len(rows)

    def report(self, accelerator: Any) -> dict[str, float]:
        """Means since the last call and the rank of the newest features, over all processes.

        Args:
            accelerator: Of accelerate; all processes come here together.

        Returns:
            `loss_cls`, `loss_patch`, `loss_koleo` (before their weights); `teacher_entropy` as a share of its
            maximum; `information` in nats; `feature_rank`.
        """
        means = accelerator.reduce(self._sums / max(self._noted, 1), reduction="mean").tolist()
        features = accelerator.gather(self._features[: min(self._filled, len(self._features))])
        self._sums.zero_()
        self._noted = 0
        *losses, answer, prototypes = means
        return {
            **{f"loss_{name}": value for name, value in zip(_PARTS, losses, strict=True)},
            "teacher_entropy": answer / math.log(self.out_dim),
            "information": prototypes - answer,
            "feature_rank": effective_rank(features),
        }

    def clear(self) -> None:
        """Forget everything: a training begins."""
        self._sums.zero_()
        self._features.zero_()
        self._noted = self._filled = 0

    def save(self, path: Path) -> None:
        """Write what was noted into a checkpoint."""
        from safetensors.torch import save_file

        counts = torch.tensor([self._noted, self._filled])
        save_file({"sums": self._sums, "features": self._features, "counts": counts}, path)

    def load(self, path: Path) -> None:
        """Go on with what `save` wrote."""
        from safetensors.torch import load_file

        kept = load_file(path)
        self._sums.copy_(kept["sums"])
        self._features.copy_(kept["features"])
        self._noted, self._filled = kept["counts"].tolist()


def effective_rank(features: Tensor) -> float:
    """exp of the entropy of the normalised singular values: how many directions the features use, as one number.

    Args:
        features: (images, width). Not centred: features that are all the same have rank 1.

    Source:
        Roy and Vetterli 2007; as a measure of self-supervised features RankMe, Garrido et al. 2023.
    """
    singular = torch.linalg.svdvals(features.double().cpu())
    total = singular.sum()
    if not total > 0:
        return 0.0
    shares = singular / total
    return math.exp(torch.special.entr(shares).sum().item())


def refuse_collapse(seen: dict[str, float], step: int) -> None:
    """Stop a run whose teacher tells nothing of the pictures any more.

    Args:
        seen: From `Monitor.report`; the same on all processes.
        step: Steps done.

    Raises:
        CollapseError: What was seen, and what to change.
    """
    if not (how := collapse(seen)):
        return
    raise CollapseError(
        f"after step {step} the teacher has collapsed: {how} (entropy of its answers "
        f"{seen['teacher_entropy']:.4f} of the maximum; they tell {seen['information']:.4f} nats of the picture, at "
        f"least {INFORMATION_FLOOR} are asked for; effective rank of its features {seen['feature_rank']:.3f}). More "
        f"steps would not bring it back. {_REMEDY}"
    )


def collapse(seen: dict[str, float]) -> str | None:
    """In words how the teacher has collapsed, or None.

    Args:
        seen: `teacher_entropy`, `information` and `feature_rank`, as `Monitor.report` gives them.
    """
    if seen["feature_rank"] < RANK_FLOOR:
        return "its features are the same for every picture"
    if seen["information"] >= INFORMATION_FLOOR:
        return None
    if seen["teacher_entropy"] < 0.5:
        return "it gives every picture the same prototypes"
    return "it finds all prototypes alike in every picture"
