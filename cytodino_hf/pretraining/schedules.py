"""What changes along a run, each a function of the step, so that a run that goes on needs no memory of them."""

from __future__ import annotations

import math

from .recipe import ObjectiveSection


def cosine(step: int, steps: int, first: float, last: float, *, warmup_steps: int = 0) -> float:
    """Half a cosine from `first` to `last`, after a straight line from 0 to `first`.

    Args:
        step: From 0; steps beyond the end have the value `last`.
        steps: Of the whole run.
        first: Value at the end of the warm-up.
        last: Value the curve reaches at `steps`.
        warmup_steps: Length of the line; 0 starts at `first`.

    Source:
        `cosine_scheduler` of DINO and iBOT.

    Example:
        >>> [cosine(step, 4, 1.0, 0.0) for step in (0, 2, 4)]
        [1.0, 0.5, 0.0]
    """
    if step < warmup_steps:
        # The line's last point is already `first`.
        return first * step / (warmup_steps - 1) if warmup_steps > 1 else first
    if step >= steps:
        return last
    done = (step - warmup_steps) / (steps - warmup_steps)
    return last + (first - last) * (1 + math.cos(math.pi * done)) / 2


def teacher_momentum(objective: ObjectiveSection, step: int, steps: int) -> float:
    """Share of itself that the teacher keeps after this step."""
    return cosine(step, steps, objective.momentum, objective.final_momentum)


def teacher_temperature(objective: ObjectiveSection, step: int, steps: int) -> float:
    """The teacher's temperature at this step: a straight line, then level."""
    first, last = objective.teacher_temperature, objective.final_teacher_temperature
    warmup_steps = objective.teacher_temperature_warmup * steps
    return last if step >= warmup_steps else first + (last - first) * step / warmup_steps


def is_last_layer_frozen(objective: ObjectiveSection, step: int, steps: int) -> bool:
    """Whether the heads' last layers stand still in this step."""
    return step < objective.freeze_last_layer * steps
