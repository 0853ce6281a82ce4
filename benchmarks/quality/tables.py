"""The comparison in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cytodino_hf.evaluation.comparison import ENOUGH_DISCORDANT, LESS_IS_BETTER

from .arms import accumulates
from .images import FEWEST_OF_A_CLASS, THINNING_SEED
from .probed import ProbedRow, ProbedScore
from .scores import ArmScores, Score

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
_PRECISIONS = {"no": "float32"}
# A training fold whose classes differ by no more than this is called balanced.
_BALANCED = 1.25
# On a set whose classes are of one size accuracy and balanced accuracy are one number.
_COLUMNS = ("macro_f1", "balanced_accuracy", "nll", "ece", "critical_to_safe")


def to_markdown(study: Study) -> str:
    """The tables of a study with what a reader needs to judge them."""
    lines = [
        f"### {study.title}, on {study.images_name}, backbone {study.backbone}",
        "",
        f"`{study.command}`",
        "",
        *_ours_against_published(study),
        *_arms(study, "test"),
        *_arms(study, study.decides),
        *_probed(study.probed),
        *_sureness(study.arms),
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
        winner = ("ours" if is_ours else "published") if row["is_clear"] else "undecided"
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


def _probed(rows: Sequence[ProbedRow]) -> list[str]:
    """What frozen features reach, beside the arms."""
    if not rows:
        return []
    shown = [metric for metric in _COLUMNS if any(metric in row.scores for row in rows)]
    lines = [
        "| frozen features, test fold | " + " | ".join(heading(m) for m in shown) + " |",
        "|---" * (len(shown) + 1) + "|",
    ]
    for row in rows:
        what = f"{row.system}{' (of this study)' if row.is_of_study else ''}, {row.method}"
        more = f", {row.more:,} more labels" if row.more else ""
        cells = [_probed_cell(row.scores.get(metric)) for metric in shown]
        lines.append(f"| {what}{more} | {' | '.join(cells)} |")
    return [*lines, ""]


def _probed_cell(score: ProbedScore | None) -> str:
    if score is None:
        return ""
    spread = "" if score.spread is None else f" (SD {score.spread:.3f})"
    return f"{score.value:.3f}{spread} ({score.low:.3f} to {score.high:.3f})"


def _sureness(arms: Sequence[ArmScores]) -> list[str]:
    """Whether probabilities are too high or too modest, and what one temperature would mend."""
    if any(arm.sureness is None for arm in arms):
        return []
    lines = [
        "| how sure, test fold | mean probability of the answer | right | temperature | NLL with it | ECE with it |",
        "|---|---|---|---|---|---|",
    ]
    for arm in arms:
        assert arm.sureness is not None
        cells = (f"{value:.3f}" for value in arm.sureness.model_dump(exclude={"format"}).values())
        lines.append(f"| {arm.title} | {' | '.join(cells)} |")
    return [
        *lines,
        "",
        "The temperature divides the logits; it has the least NLL on the calibration fold and is below 1 where an arm "
        "is too modest. Means over seeds. The other tables and the runs do without.",
        "",
    ]


def _efforts(arms: Sequence[ArmScores]) -> list[str]:
    lines = [
        "| effort of a run | images shown | minutes of training | CPU minutes | precision | chosen after images |",
        "|---|---|---|---|---|---|",
    ]
    for arm in arms:
        cpu = "" if arm.cpu_s is None else f"{arm.cpu_s / 60:.1f}"
        after = "; ".join("" if shown is None else f"{shown:,}" for shown in arm.chosen_after)
        precision = ", ".join(_PRECISIONS.get(name, name) for name in arm.precision)
        minutes = f"{arm.seconds / 60:.1f}"
        lines.append(f"| {arm.title} | {arm.images_shown:,.0f} | {minutes} | {cpu} | {precision} | {after} |")
    return [*lines, ""]


def _with_spread(score: Score) -> str:
    return f"{score.mean:.3f}" + ("" if score.spread is None else f" (SD {score.spread:.3f})")


def _with_difference(score: Score) -> str:
    text = _with_spread(score)
    if score.difference is None:
        return f"{text} [{score.mean_low:.3f} to {score.mean_high:.3f}]"
    difference = f"{score.difference:+.3f} ({score.low:+.3f} to {score.high:+.3f})"
    return f"{text}; {f'**{difference}**' if score.is_clear else difference}"


def _circumstances(study: Study) -> list[str]:
    seeds = ", ".join(map(str, study.settings["seeds"]))
    return [
        f"{study.date}; {_machine(study)}.",
        f"Images: {_images(study)}.",
        f"Weights of the backbone: sha256 {study.backbone_sha256[:16]}. Seeds {seeds}.",
        *_judged(study),
        f"Checkpoints are chosen, and between arms is decided, on the {study.decides} fold, which is therefore "
        "optimistic; the test fold was scored once by each finished run and decides nothing.",
        *_balance(study),
        "Every arm is a recipe of the project with its sizes reduced: backbone, picture. Every arm is shown as many "
        "images unless a run stopped early, is evaluated after as many, and its schedule falls by them.",
        *_accumulation(study),
        *(
            f"Frozen features: `{command}`; intervals over images alone, and none of a difference to an arm."
            for command in dict.fromkeys(row.command for row in study.probed)
        ),
        ", ".join(f"{name} {number}" for name, number in study.versions.items()) + ".",
    ]


def _machine(study: Study) -> str:
    machine = study.machine
    where = f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB"
    if "gpu" in machine:
        where = f"{machine['gpu']}; {where}"
    jobs, threads = (
        " or ".join(map(str, sorted({n for arm in study.arms for n in numbers(arm)})))
        for numbers in (lambda arm: arm.jobs, lambda arm: arm.threads)
    )
    at_once = f"; runs at once: {jobs}, threads of each: {threads}" if jobs else ""
    return f"{where}; load at the start {machine['load_at_start']}{at_once}"


def _images(study: Study) -> str:
    folds, size = study.images, study.settings["image_size_px"]
    counted = ", ".join(
        f"{folds[name]:,} {name}" for name in ("train", "validation", "calibration", "test") if name in folds
    )
    more = f", {folds['more']:,} more for training in the arms that say so" if "more" in folds else ""
    crop = f", of the middle {study.center_crop_px} px of the file" if study.center_crop_px else ""
    return f"{study.images_name}: {counted}{more}; {size} px{crop}; fingerprint {study.images_sha256[:16]}"


def _judged(study: Study) -> list[str]:
    several = len(study.settings["seeds"]) > 1
    both = (
        "of images (paired stratified bootstrap, the mean over seeds inside each draw) and of seeds (t, degrees of "
        "freedom by Welch-Satterthwaite) together"
        if several
        else "of images (paired stratified bootstrap); with one seed it does not hold what other seeds would change"
    )
    told = [
        "Means over seeds, SD over seeds (n - 1); in square brackets the 95 % interval of the mean over images "
        "(stratified bootstrap)."
    ]
    if not any(score.difference is not None for arm in study.arms for score in arm.folds["test"].values()):
        return told
    return [
        *told,
        f"After the semicolon: arm - {study.reference} with the 95 % interval {both}. A difference is called clear "
        f"(bold; better) where it leaves out 0, and never where the two ways differ in fewer than {ENOUGH_DISCORDANT} "
        "images.",
        "Neither the number of metrics nor that of arms is corrected for: of twenty differences that are none, one "
        "may be called clear.",
    ]


def _balance(study: Study) -> list[str]:
    counts = study.train_classes
    told = ", ".join(f"{code} {n}" for code, n in counts.items())
    if study.settings.get("natural_ratios"):
        return [
            f"The training fold was thinned to the class ratios of the full MLL set (seed {THINNING_SEED}, at least "
            f"{FEWEST_OF_A_CLASS} of a class where there are): {told}. The other folds keep their ratios."
        ]
    if max(counts.values()) <= _BALANCED * min(counts.values()):
        return [
            f"The training fold is balanced ({told}): sampler and class weights have nothing to balance here, and what "
            "they are worth does not show. `--natural-ratios` thins it to the ratios of the full MLL set."
        ]
    return [f"Training images: {told}."]


def _accumulation(study: Study) -> list[str]:
    document = {arm.name: arm.recipe for arm in study.arms}
    folded = [name for name in document if accumulates(name)]
    if not folded:
        return []
    text = (
        f"A batch of 1 accumulated 4 times ({', '.join(folded)}) is computed as one of 4: the same gradient"
    )
    if any(document[name]["model"]["position_jitter"] for name in folded):
        text += (
            " but for position jitter, of which one draw serves the four images (1 x 4 took 1.7 times the time of the "
            "processor: 192 wide, 6 blocks, 64 px in patches of 8)"
        )
    return [f"{text}."]
