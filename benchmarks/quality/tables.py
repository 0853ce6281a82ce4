"""The comparison in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cytodino_hf.evaluation.comparison import LESS_IS_BETTER

from .scores import SEED_ERRORS, ArmScores, Score

if TYPE_CHECKING:
    from .study import Study

WORDS = {
    "macro_f1": "macro F1",
    "balanced_accuracy": "balanced accuracy",
    "accuracy": "accuracy",
    "nll": "NLL",
    "ece": "ECE",
    "critical_to_safe": "critical called safe",
}
# On a set whose classes are of one size accuracy and balanced accuracy are one number.
_COLUMNS = ("macro_f1", "balanced_accuracy", "nll", "ece", "critical_to_safe")


def to_markdown(study: Study) -> str:
    """The tables of a study with what a reader needs to judge them."""
    lines = [
        f"### Ours against as published, on {study.images_name}, backbone {study.backbone}",
        "",
        f"`{study.command}`",
        "",
        *_ours_against_published(study),
        *_arms(study, "test"),
        *_arms(study, study.decides),
        *_efforts(study.arms),
        *(f"- {line}" for line in _circumstances(study)),
    ]
    return "\n".join(lines)


def heading(metric: str) -> str:
    """A metric in words, with what is better where that is less."""
    return WORDS[metric] + (" (less is better)" if metric in LESS_IS_BETTER else "")


def _ours_against_published(study: Study) -> list[str]:
    if not study.ours_against_published:
        return []
    by_name = {arm.name: arm for arm in study.arms}
    lines = [
        "| test fold | ours | as published | ours - published (95 %) | better |",
        "|---|---|---|---|---|",
    ]
    for metric, row in study.ours_against_published["test"].items():
        cells = [_with_spread(by_name[name].folds["test"][metric]) for name in ("ours", "published")]
        is_ours = (row["difference"] > 0) != (metric in LESS_IS_BETTER)
        is_clear = by_name["published"].folds["test"][metric].is_clear
        winner = ("ours" if is_ours else "published") if is_clear else "undecided"
        difference = f"{row['difference']:+.3f} ({row['low']:+.3f} to {row['high']:+.3f})"
        lines.append(f"| {heading(metric)} | {' | '.join(cells)} | {difference} | {winner} |")
    return [*lines, ""]


def _arms(study: Study, fold: str) -> list[str]:
    if len(study.arms) == 1 and study.arms[0].name == study.reference and fold != "test":
        return []
    word = f"{fold} fold (it decides)" if fold == study.decides else f"{fold} fold"
    shown = [metric for metric in _COLUMNS if metric in study.arms[0].folds[fold]]
    lines = [f"| {word} | " + " | ".join(heading(m) for m in shown) + " |", "|---" * (len(shown) + 1) + "|"]
    for arm in study.arms:
        cells = [_with_difference(arm.folds[fold][metric]) for metric in shown]
        lines.append(f"| {arm.title} (`{arm.name}`) | {' | '.join(cells)} |")
    return [*lines, ""]


def _efforts(arms: Sequence[ArmScores]) -> list[str]:
    lines = [
        "| effort of a run | images shown | minutes of training | CPU minutes | chosen epochs |",
        "|---|---|---|---|---|",
    ]
    for arm in arms:
        cpu = "" if arm.cpu_s is None else f"{arm.cpu_s / 60:.1f}"
        epochs = ", ".join("" if epoch is None else f"{epoch:.1f}" for epoch in arm.best_epochs)
        lines.append(f"| {arm.title} | {arm.images_shown:,.0f} | {arm.seconds / 60:.1f} | {cpu} | {epochs} |")
    return [*lines, ""]


def _with_spread(score: Score) -> str:
    return f"{score.mean:.3f}" + ("" if score.spread is None else f" (SD {score.spread:.3f})")


def _with_difference(score: Score) -> str:
    text = _with_spread(score)
    if score.difference is None:
        return text
    difference = f"{score.difference:+.3f} ({score.low:+.3f} to {score.high:+.3f})"
    return f"{text}; {f'**{difference}**' if score.is_clear else difference}"


def _circumstances(study: Study) -> list[str]:
    machine, folds = study.machine, study.images
    where = f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB"
    if "gpu" in machine:
        where = f"{machine['gpu']}; {where}"
    more = f", {folds['more']:,} more for training in the arms that say so" if "more" in folds else ""
    size = study.settings["image_size_px"]
    counted = ", ".join(
        f"{folds[name]:,} {name}" for name in ("train", "validation", "calibration", "test") if name in folds
    )
    seeds = ", ".join(map(str, study.settings["seeds"]))
    return [
        f"{study.date}; {where}; load at the start {machine['load_at_start']}.",
        f"Images: {study.images_name}: {counted}{more}; {size} px.",
        f"Weights of the backbone: sha256 {study.backbone_sha256[:16]}. Seeds {seeds}.",
        "Means over seeds, SD over seeds (n - 1). After the semicolon: arm - ours with its 95 % interval, a paired "
        "stratified bootstrap over images with the mean over seeds inside each draw. It does not hold "
        "what other seeds would change, so a difference is called clear (bold; better) where the interval leaves out 0 "
        f"and the difference is more than {SEED_ERRORS:g} of its standard errors over seeds.",
        f"Checkpoints are chosen, and between arms is decided, on the {study.decides} fold, which is therefore "
        "optimistic; the test fold was scored once by each finished run and decides nothing.",
        "Every arm is a recipe of the project with its sizes reduced: backbone, picture; as many images shown in all "
        "unless a run stopped early. A batch of 1 accumulated 4 times is computed as one of 4: the same gradient.",
        ", ".join(f"{name} {number}" for name, number in study.versions.items()) + ".",
    ]
