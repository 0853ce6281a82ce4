"""The report of a run: `report.json` for programs, `report.html` for people, figures also as files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..page import duration, plain, render_template
from ..taxonomy import Taxonomy
from .calibration.artifact import CALIBRATION_FILE
from .confusion import draw_class_confusion, lineage_order
from .fitted import Fitted
from .fold_report import fold_section
from .headlines import headlines
from .ood.detector import OOD_FILE
from .panels import draw_augmentation_strip, draw_class_panel
from .plots import (
    bytes_to_data_uri,
    draw_class_f1,
    draw_training_curves,
    figure_bytes,
    training_curves,
)
from .predictions import Predictions
from .report_parts import PARTS, Asked, Drawn, Evidence, Format, build_parts, draw_parts
from .resampling import are_grouped
from .selective.review import review_folds
from .statistics import FEW_IMAGES
from .threads import one_thread

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DRAWN_NOTE = (
    "All images of this run were drawn by a program. The numbers show that the method works; "
    "they say nothing about real cells."
)
GROUPED_NOTE = (
    "Intervals take images as independent. Images of one {kind} resemble each other, "
    "so the true intervals are wider."
)
WHOLE_GROUPS_NOTE = (
    "Images of one {kind} resemble each other, so intervals are over whole groups of images, not over images."
)
_FOLD_ORDER = ("test", "validation", "calibration", "train")
_MAX_SVG_CLASSES = 40


@dataclass(frozen=True)
class ReportContext:
    """Everything a report needs besides predictions; its dictionaries hold plain values for `report.json`.

    Args:
        title: Name of the run.
        recipe: The resolved recipe, by section.
        environment: Package versions, hardware, git commit; may be nested.
        data: `source`, `attribution`, `is_drawn`, `counts` (fold -> class code -> images), `promise` (of the
            split), `group_kind`, `rejected` (list of `{"path", "reason"}`), `notes` (list of sentences).
        training: `steps`, `epochs`, `best_step`, `best_metric` (`{"name", "value"}`), `seconds`,
            `log_history`, `setbacks` (sentences), `set_aside` (checkpoints not used: `{"name", "reason",
            "moved_to"}`); other entries are listed beside them.
        taxonomy: The classes, in label order.
        train_classes: Codes of the classes with an image in the training fold.
        model: What is known of the model (parameters per part, revision); may be nested.
        class_panel: Class code -> a few uint8 images (height, width, 3); None draws no panel.
        augmentation_strip: Rows of uint8 images, the original first; None draws no strip.
        evidence: What the parts rest on besides the predictions; None leaves them out.
        kept_figures: Name -> PNG drawn before, of figures whose images are not at hand.
    """

    title: str
    recipe: Mapping[str, Any]
    environment: Mapping[str, Any]
    data: Mapping[str, Any]
    training: Mapping[str, Any]
    taxonomy: Taxonomy
    train_classes: tuple[str, ...]
    model: Mapping[str, Any] = field(default_factory=dict)
    class_panel: Mapping[str, Sequence[np.ndarray]] | None = None
    augmentation_strip: Sequence[Sequence[np.ndarray]] | None = None
    evidence: Evidence | None = None
    kept_figures: Mapping[str, bytes] = field(default_factory=dict)


def build_report(
    predictions: Mapping[str, Predictions],
    context: ReportContext,
    *,
    draws: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Any]:
    """The content of `report.json`; plain values only, no NaN, same input same content.

    Args:
        predictions: Fold name -> predictions of that fold.
        context: Everything else.
        draws, seed, level: Of the bootstrap (`metric_intervals`).

    Raises:
        DataError: Predictions are not finite, or name other classes than the taxonomy.
    """
    data = context.data
    notes = [DRAWN_NOTE] if data.get("is_drawn") else []
    if kind := data.get("group_kind"):
        grouped = any(are_grouped(one.groups) for one in predictions.values())
        notes.append((WHOLE_GROUPS_NOTE if grouped else GROUPED_NOTE).format(kind=kind))
    folds = sorted(predictions, key=lambda fold: (_place(fold), fold))
    sections = {
        fold: fold_section(
            fold,
            predictions[fold],
            context.taxonomy,
            context.train_classes,
            draws=draws,
            seed=seed,
            level=level,
        )
        for fold in folds
    }
    scored = [fold for fold in folds if sections[fold]["metrics"]]
    parts = {}
    if asked := _asked(scored, predictions, context, {"draws": draws, "seed": seed, "level": level}):
        parts = build_parts(asked)
    return plain(
        {
            "title": context.title,
            "is_drawn": bool(data.get("is_drawn")),
            "split_promise": data.get("promise"),
            "notes": notes,
            "folds": folds,
            "intervals": {"level": level, "draws": draws, "seed": seed},
            **sections,
            "reported_fold": scored[0] if scored else None,
            "review_folds": review_folds(predictions) if context.evidence is not None else [],
            "parts": parts,
            "taxonomy": context.taxonomy.to_dict(),
            "train_classes": list(context.train_classes),
            "data": data,
            "model": context.model,
            "training": context.training,
            "recipe": context.recipe,
            "environment": context.environment,
        }
    )


@one_thread()
def write_report(
    folder: str | Path,
    predictions: Mapping[str, Predictions],
    context: ReportContext,
    *,
    draws: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Any]:
    """Write `report.json`, `report.html` and `figures/` into a folder.

    Arguments and errors are those of `build_report`.

    Returns:
        The content of `report.json`.
    """
    report = build_report(predictions, context, draws=draws, seed=seed, level=level)
    folder = Path(folder)
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    addresses = {}
    for name, drawn in _figures(report, predictions, context).items():
        format: Format = "png" if isinstance(drawn, bytes) else drawn[1]
        content = drawn if isinstance(drawn, bytes) else figure_bytes(*drawn)
        (folder / "figures" / f"{name}.{format}").write_bytes(content)
        addresses[name] = bytes_to_data_uri(content, format)
    text = json.dumps(report, indent=2, allow_nan=False, ensure_ascii=False)
    (folder / "report.json").write_text(text + "\n", encoding="utf-8")
    (folder / "report.html").write_text(render_page(report, addresses), encoding="utf-8")
    return report


def render_page(report: Mapping[str, Any], figures: Mapping[str, str]) -> str:
    """The self-contained page: no script, no request to anywhere, every value escaped.

    Args:
        report: Content of `report.json`.
        figures: Figure name -> `data:` address.
    """
    template = Path(__file__).with_name("report_template.html")
    return render_template(
        template,
        {"duration": duration},
        report=report,
        figures=figures,
        scored=_scored_folds(report),
        contents=_contents(report),
        headlines=headlines(report["parts"]),
        few_images=FEW_IMAGES,
    )


def _place(fold: str) -> int:
    return _FOLD_ORDER.index(fold) if fold in _FOLD_ORDER else len(_FOLD_ORDER)


def _scored_folds(report: Mapping[str, Any]) -> list[str]:
    """Folds with a number to show, the one that decides first."""
    return [fold for fold in report["folds"] if report[fold]["metrics"]]


def _contents(report: Mapping[str, Any]) -> list[dict[str, str]]:
    """Parts with values, in the order of the page: name, title and anchor."""
    return [
        {"name": name, "title": part.title, "anchor": part.anchor or name}
        for name, part in PARTS.items()
        if name in report["parts"] and "missing" not in report["parts"][name]
    ]


def _asked(
    scored: Sequence[str],
    predictions: Mapping[str, Predictions],
    context: ReportContext,
    drawn: Mapping[str, Any],
) -> Asked | None:
    """What the parts are told of the first scored fold; None where there are none to show."""
    evidence = context.evidence
    if evidence is None or not scored:
        return None
    fold = scored[0]
    if fold != "test":
        why = "there is no test fold to try it on"
        evidence = replace(evidence, fitted=Fitted(gaps={CALIBRATION_FILE: why, OOD_FILE: why}))
    return Asked(
        name=context.title,
        fold=fold,
        scored=predictions[fold],
        predictions=predictions,
        taxonomy=context.taxonomy,
        train_classes=context.train_classes,
        counts=context.data.get("counts") or {},
        evidence=evidence,
        drawn=drawn,
    )


def _figures(
    report: Mapping[str, Any], predictions: Mapping[str, Predictions], context: ReportContext
) -> Drawn:
    taxonomy = context.taxonomy
    order = lineage_order(taxonomy)
    names = {cell.code: f"{cell.code}  {cell.name}" for cell in taxonomy.classes}
    # A chart of very many cells is smaller as pixels.
    chart: Format = "svg" if len(taxonomy) <= _MAX_SVG_CLASSES else "png"
    figures: Drawn = dict(context.kept_figures)
    if context.class_panel:
        shown: dict[str, dict[str, Sequence[np.ndarray]]] = {}
        for i in order:
            members = shown.setdefault(taxonomy.lineages[i], {})
            members[names[taxonomy.codes[i]]] = context.class_panel.get(taxonomy.codes[i], ())
        figures["class_panel"] = (draw_class_panel(shown), "png")
    if context.augmentation_strip:
        figures["augmentation_strip"] = (draw_augmentation_strip(context.augmentation_strip), "png")
    curves = training_curves(context.training.get("log_history", ()))
    if not curves.is_empty:
        figures["training_curves"] = (draw_training_curves(curves, context.training.get("best_step")), "svg")
    if scored := _scored_folds(report):
        section = report[scored[0]]
        figures["confusion_matrix"] = (draw_class_confusion(section["confusion_matrix"], taxonomy), chart)
        figures["class_f1"] = (_class_f1_figure(section["per_class"]), chart)
    if asked := _asked(scored, predictions, context, report["intervals"]):
        figures |= draw_parts(report["parts"], asked)
    return figures


def _class_f1_figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    rows = [row for row in rows if row["f1"] is not None]
    value, low, high = (np.array([row["f1"][key] for row in rows]) for key in ("value", "low", "high"))
    return draw_class_f1(
        [row["code"] for row in rows],
        value,
        low,
        high,
        np.array([row["images"] for row in rows]),
        np.array([row["is_critical"] for row in rows]),
    )
