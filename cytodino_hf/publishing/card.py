"""The card of a classifier: filled from its run, every value inert, nothing promised that the run does not hold."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..environment import hardware
from ..evaluation.calibration.artifact import CALIBRATION_FILE
from ..evaluation.companions import BoundCompanions
from ..evaluation.headlines import headlines
from ..evaluation.ood.detector import OOD_FILE
from ..page import duration
from .allow_list import LICENCE
from .checklist import BLANK, checklist
from .licences import Base

if TYPE_CHECKING:
    from markupsafe import Markup

CONFUSION = "confusion_matrix.png"
#: What storing the weights in bfloat16 may move a logit by, as a share of the largest logit. A weight moves by 2^-9 of
#: itself (0.2 %) at most, and many weights as often up as down. Measured: 0.4 % with 2 blocks of width 32, 0.3 % with
#: the embedded backbone on 400 drawn cells; the bound leaves room for deeper backbones.
BFLOAT16_SHARE = 0.02
TEMPLATE = Path(__file__).with_name("card_template.md")
# Scores in the metadata: key in the report -> metric of the Hub, its name.
_METRICS = {
    "macro_f1": ("f1", "macro F1"),
    "weighted_f1": ("f1", "weighted F1"),
    "balanced_accuracy": ("recall", "balanced accuracy"),
    "accuracy": ("accuracy", "accuracy"),
}
# Parts of the report that a card says a sentence of.
_ABOUT_SURENESS = ("calibration", "selective", "conformal")
_FOLDS = ("test", "validation", "calibration")
_TAGS = ("cytology", "bone-marrow", "image-classification", "cytodino")
# Letters, digits and what neither Markdown, HTML, a formula nor a spreadsheet acts on.
_INERT = re.compile(r"[^\w \t.,;/()%-]|^[-=+@]|_", re.UNICODE)


def inert(value: Any) -> Markup:
    """A value that is shown as it is: no HTML, Markdown, link or formula of it takes effect.

    Example:
        >>> str(inert("<b>|x|</b> $y$"))
        '&#60;b&#62;&#124;x&#124;&#60;/b&#62; &#36;y&#36;'
    """
    from markupsafe import Markup

    if isinstance(value, Markup):
        return value
    text = " ".join(str(value).split())
    return Markup(_INERT.sub(lambda found: f"&#{ord(found.group(0))};", text))


def scored_fold(report: Mapping[str, Any]) -> str | None:
    """The fold whose scores a card shows: the test fold where there is one."""
    return next((fold for fold in _FOLDS if (report.get(fold) or {}).get("metrics")), None)


def model_card(
    repo_id: str,
    report: Mapping[str, Any],
    config: Mapping[str, Any],
    preprocessing: Mapping[str, Any],
    base: Base,
    *,
    is_merged: bool,
    storage: str,
) -> str:
    """README.md of a published classifier.

    Args:
        repo_id: Where it will lie.
        report: Content of `report.json`, without places.
        config: `config.json` as published.
        preprocessing: `preprocessor_config.json`.
        base: What it was made from.
        is_merged: Whether the weights are whole.
        storage: Type of the published weights.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(TEMPLATE.parent),
        undefined=StrictUndefined,
        finalize=inert,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    fold = scored_fold(report)
    parts = report.get("parts") or {}
    words = base_in_words(base)
    rows = [(item, _with_blanks(text)) for item, text in checklist(report, words, fold)]
    return environment.get_template(TEMPLATE.name).render(
        front_matter=Markup(_front_matter(repo_id, report, base, fold, is_merged)),
        repo_id=Markup(repo_id),  # a Hub id holds letters, digits, dots, dashes and underscores only
        report=report,
        config=config,
        preprocessing=preprocessing,
        base=base,
        base_in_words=words,
        text_of_licence=Markup(LICENCE),
        confusion=Markup(CONFUSION),
        companions=BoundCompanions.of(config).sha256,
        calibration_file=Markup(CALIBRATION_FILE),
        ood_file=Markup(OOD_FILE),
        sureness=headlines({name: parts[name] for name in _ABOUT_SURENESS if name in parts}),
        fold=fold,
        scores=report[fold] if fold else None,
        metrics=_metrics(report, fold),
        checklist=rows,
        is_merged=is_merged,
        storage=storage,
        bfloat16_share=f"{BFLOAT16_SHARE:.0%}",
        blank=Markup(BLANK),
        interval=_interval,
        duration=duration(report["training"]["seconds"]),
        hardware=hardware(report["environment"]),
    )


def _with_blanks(text: str) -> Markup:
    """An answer in which only the mark of a blank is Markdown."""
    from markupsafe import Markup

    said, mark, _ = text.partition(BLANK)
    return Markup(f"{inert(said)} {mark}".strip())


def base_in_words(base: Base) -> str:
    """The base as a person says it, with its commit."""
    commit = f" at commit {base.commit}" if base.commit else ""
    if base.history is None:
        return f"{base.name}{commit}"
    steps = base.history["training"]["steps"]
    return f"{base.name}, a backbone pretrained with cytodino_hf (iBOT, {steps:,} steps)"


def _front_matter(
    repo_id: str, report: Mapping[str, Any], base: Base, fold: str | None, is_merged: bool
) -> str:
    from huggingface_hub import ModelCardData

    about: dict[str, Any] = {}
    if base.licence is not None:
        name, link = base.licence
        is_own = base.text_from is not None
        about = (
            {"license": "other", "license_name": name, "license_link": LICENCE if is_own else link}
            if is_own
            else {"license": name}
        )
    if base.is_on_hub:
        about |= {"base_model": base.name, "base_model_relation": "finetune" if is_merged else "adapter"}
    card = ModelCardData(
        library_name="transformers",
        pipeline_tag="image-classification",
        tags=[*_TAGS, *(["synthetic-data"] if report["is_drawn"] else [])],
        model_name=repo_id.partition("/")[2],
        eval_results=_eval_results(report, fold),
        **about,
    )
    return card.to_yaml()


def _eval_results(report: Mapping[str, Any], fold: str | None) -> list[Any] | None:
    from huggingface_hub import EvalResult

    if fold is None:
        return None
    source, level = report["data"]["source"], report["intervals"]["level"]
    return [
        EvalResult(
            task_type="image-classification",
            dataset_type=source,
            dataset_name=f"{source}{' (drawn)' if report['is_drawn'] else ''}",
            dataset_split=fold,
            metric_type=kind,
            metric_name=f"{name} ({level:.0%} interval {score['low']:.4f} to {score['high']:.4f})",
            metric_value=score["value"],
            metric_args={"low": score["low"], "high": score["high"], "level": level, "n": score["n"]},
        )
        for kind, name, score in _known(report, fold)
    ]


def _known(report: Mapping[str, Any], fold: str) -> list[tuple[str, str, Mapping[str, Any]]]:
    scores = report[fold]["metrics"]
    return [(kind, name, scores[key]) for key, (kind, name) in _METRICS.items() if scores.get(key)]


def _metrics(report: Mapping[str, Any], fold: str | None) -> list[tuple[str, str]]:
    return [(name, _interval(score)) for _, name, score in _known(report, fold)] if fold else []


def _interval(score: Mapping[str, Any] | None, key: str = "value") -> str:
    if score is None or score.get(key) is None:
        return "no image"
    return f"{score[key]:.3f} ({score['low']:.3f} to {score['high']:.3f})"
