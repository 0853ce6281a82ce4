"""What the teacher says while it learns: loss parts, entropy of its answers, rank of its features, and collapse.

Self-distillation has two ways to learn nothing: the teacher gives every picture the same prototype (entropy 0), or
finds all prototypes alike in every picture (entropy at its maximum). In both its answers tell nothing of the picture:
the entropy of the mean answer less the mean entropy of the answers, which is the information between picture and
prototype, goes to 0. And features that have become one and the same have rank 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import CheckpointError, CollapseError

if TYPE_CHECKING:
    from .model import IBotOutput

#: Nats the answers must tell of the picture.
INFORMATION_FLOOR = 0.01
#: Effective rank of the features below which they are one vector.
RANK_FLOOR = 1.01
#: Lines of the log that must tell of a collapse, one after the other, before it is believed.
BAD_LINES = 2
#: Answers of the least stretch that is judged: what the answers to fewer pictures have in common is chance.
LEAST_ANSWERS = 16
#: CLS features the rank is measured on, of each process.
WINDOW = 1024
_PARTS = ("cls", "patch", "koleo")
# Of the answers by their name: what the log calls entropy and information, and what they are given to.
_KEYS = {"cls": ("teacher_entropy", "information"), "patch": ("patch_entropy", "patch_information")}
_SUBJECTS = {"cls": "picture", "patch": "masked patch"}
_REMEDY = (
    "What helps, one at a time: objective.centering 'sinkhorn' or 'centre', where it is 'none'; a longer "
    "objective.teacher_temperature_warmup or a lower final_teacher_temperature where all prototypes are alike, a "
    "higher teacher_temperature where one wins; half of training.base_learning_rate with longer warmup_steps; "
    "objective.momentum nearer to 1. A changed recipe needs another training.output_dir."
)


class Monitor:
    """Sums of what the steps since the last line of the log saw; the host waits for the device at that line only.

    What the answers tell of the picture is measured over all of these steps and all processes: in one micro-batch of a
    few pictures an answer cannot differ much from their mean.

    Args:
        out_dim: Prototypes of a head: the largest entropy is their logarithm.
        width: Of the features.
        device: Where the model computes.
        answers: Which answers are watched, from `watched_answers`.
        window: Features the rank is measured on.
    """

    def __init__(
        self, *, out_dim: int, width: int, device: torch.device, answers: Sequence[str], window: int = WINDOW
    ) -> None:
        self.out_dim = out_dim
        self._parts = torch.zeros(len(_PARTS), device=device)
        self._said = {name: torch.zeros(out_dim + 2, device=device) for name in answers}
        self._features = torch.zeros(window, width, device=device)
        self._noted = 0  # micro-batches since the last line
        self._filled = 0  # features ever seen
        self._bad_lines = 0  # one after another, up to now

    @property
    def has_news(self) -> bool:
        """Whether anything was noted since the last line."""
        return self._noted > 0

    def note(self, output: IBotOutput) -> None:
        """Remember one micro-batch."""
        self._parts += torch.stack([output.parts[name] for name in _PARTS]).float()
        for name, said in self._said.items():
            said += output.said[name]
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

        Answers are gathered on over several calls until there are enough to say what they tell.

        Args:
            accelerator: Of accelerate; all processes come here together.

        Returns:
            `loss_cls`, `loss_patch`, `loss_koleo` (before their weights); `feature_rank`; where there were enough
            answers `teacher_entropy` as a share of its maximum and `information` in nats, and the same of the patches,
            `patch_entropy` and `patch_information`, where they are watched.
        """
        means = accelerator.reduce(self._parts / max(self._noted, 1), reduction="mean").tolist()
        features = accelerator.gather(self._features[: min(self._filled, len(self._features))])
        seen = {f"loss_{name}": value for name, value in zip(_PARTS, means, strict=True)}
        whole = {
            name: accelerator.reduce(said.clone(), reduction="sum").double().cpu()
            for name, said in self._said.items()
        }
        enough = [name for name, said in whole.items() if said[-1] >= LEAST_ANSWERS]
        # The first are the rarest as a rule; what is enough in a line of its own would be judged without the others.
        for name in enough if enough[:1] == list(whole)[:1] else ():
            seen |= _what_they_tell(whole[name], *_KEYS[name])
            self._said[name].zero_()
        self._parts.zero_()
        self._noted = 0
        return seen | {"feature_rank": effective_rank(features)}

    def judge(self, seen: dict[str, float], step: int) -> str | None:
        """Stop a run whose teacher told nothing of the pictures in two lines of the log, one after the other.

        Args:
            seen: From `report`; the same on all processes.
            step: Steps done.

        Returns:
            A warning after the first such line, or None.

        Raises:
            CollapseError: What was seen, and what to change.
        """
        if not any(key in seen for _, key in _KEYS.values()):
            return None  # of too few pictures to say anything
        self._bad_lines = self._bad_lines + 1 if (how := collapse(seen)) else 0
        if how is None:
            return None
        if self._bad_lines < BAD_LINES:
            return f"after step {step} the teacher may have collapsed: {how}. Another such line stops the run"
        raise CollapseError(
            f"after step {step} the teacher has collapsed, in {BAD_LINES} lines of the log one after the other: {how}. "
            f"More steps would not bring it back. {_REMEDY}"
        )

    def clear(self) -> None:
        """Forget everything: a training begins."""
        for sums in (self._parts, self._features, *self._said.values()):
            sums.zero_()
        self._noted = self._filled = self._bad_lines = 0

    def save(self, path: Path) -> None:
        """Write what was noted into a checkpoint."""
        from safetensors.torch import save_file

        counts = torch.tensor([self._noted, self._filled, self._bad_lines])
        save_file(self._sums() | {"counts": counts}, path)

    def load(self, path: Path) -> None:
        """Go on with what `save` wrote.

        Raises:
            CheckpointError: Another version of the program wrote it.
        """
        from safetensors.torch import load_file

        kept, sums = load_file(path), self._sums()
        if kept.keys() != {*sums, "counts"}:
            raise CheckpointError(
                f"{path} was written by another version of the program, which watched other things. Go on with that "
                "one, or give another training.output_dir"
            )
        for name, tensor in sums.items():
            tensor.copy_(kept[name])
        self._noted, self._filled, self._bad_lines = kept["counts"].tolist()

    def _sums(self) -> dict[str, Tensor]:
        said = {f"said_{name}": tensor for name, tensor in self._said.items()}
        return said | {"parts": self._parts, "features": self._features}


def _what_they_tell(said: Tensor, entropy_key: str, information_key: str) -> dict[str, float]:
    """From `answers_in_sum`: mean entropy as a share of its maximum, entropy of the mean less mean entropy."""
    answers, entropies, rows = said[:-2], said[-2], said[-1]
    of_answer = (entropies / rows).item()
    of_mean = torch.special.entr(answers / rows).sum().item()
    return {entropy_key: of_answer / math.log(len(answers)), information_key: of_mean - of_answer}


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


def collapse(seen: dict[str, float]) -> str | None:
    """In words how the teacher has collapsed, or None.

    Args:
        seen: As `Monitor.report` gives it.
    """
    if seen["feature_rank"] < RANK_FLOOR:
        return (
            "its features are the same for every picture (effective rank "
            f"{seen['feature_rank']:.3f}, at least {RANK_FLOOR} is asked for)"
        )
    for name, (entropy_key, information_key) in _KEYS.items():
        if seen.get(information_key, math.inf) >= INFORMATION_FLOOR:
            continue
        entropy = seen[entropy_key]
        what = _SUBJECTS[name]
        how = (
            f"it gives every {what} the same prototypes"
            if entropy < 0.5
            else f"it finds all prototypes alike in every {what}"
        )
        return (
            f"{how} (entropy of its answers {entropy:.4f} of the maximum; they tell "
            f"{seen[information_key]:.4f} nats of the {what}, at least {INFORMATION_FLOOR} are asked for)"
        )
    return None
