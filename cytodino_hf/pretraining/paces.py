"""The pace of one run: every value that changes along it, as a function of the optimizer step."""

from __future__ import annotations

from dataclasses import dataclass

from .recipe import ObjectiveSection, PretrainTrainingSection
from .schedules import cosine, is_last_layer_frozen, teacher_momentum, teacher_temperature


@dataclass(frozen=True)
class Paces:
    """Schedules of a recipe over a known number of steps; steps count from 0.

    Args:
        objective, training: Sections of the recipe.
        steps: Optimizer steps of the whole run.
        peak_rate: Learning rate at the end of the warm-up.
    """

    objective: ObjectiveSection
    training: PretrainTrainingSection
    steps: int
    peak_rate: float

    @property
    def warmup_steps(self) -> int:
        """Steps in which the learning rate rises."""
        given = self.training.warmup_steps
        return round(given * self.steps if given < 1 else given)

    def rate(self, step: int) -> float:
        """Learning rate of a step."""
        return cosine(
            step, self.steps, self.peak_rate, self.training.min_learning_rate, warmup_steps=self.warmup_steps
        )

    def rate_share(self, step: int) -> float:
        """Learning rate over its peak, as torch's schedulers want it."""
        return self.rate(step) / self.peak_rate

    def last_layer_share(self, step: int) -> float:
        """The same of the heads' last layers, which stand still at first."""
        return 0.0 if is_last_layer_frozen(self.objective, step, self.steps) else self.rate_share(step)

    def weight_decay(self, step: int) -> float:
        """Weight decay of a step."""
        return cosine(step, self.steps, self.training.weight_decay, self.training.final_weight_decay)

    def momentum(self, step: int) -> float:
        """Share of itself the teacher keeps after a step."""
        return teacher_momentum(self.objective, step, self.steps)

    def teacher_temperature(self, step: int) -> float:
        """Temperature of the teacher in a step."""
        return teacher_temperature(self.objective, step, self.steps)

    def at(self, step: int) -> dict[str, float]:
        """What the log says of a step; the learning rate stands there already."""
        return {
            "weight_decay": self.weight_decay(step),
            "momentum": self.momentum(step),
            "teacher_temperature": self.teacher_temperature(step),
        }
