"""The parts of a report, a table: what each says, what it draws, and the partial that shows it.

A part is a function of what a run left: predictions, embeddings, and what is kept beside them. One that cannot be
says why; one that nobody asked for is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..taxonomy import Taxonomy
from .baseline_report import baselines_section, draw_baselines
from .baselines import HAVE_PROBABILITIES
from .calibration.artifact import CALIBRATION_FILE
from .calibration.figures import draw_reliability
from .calibration.section import calibration_section
from .changes.figures import draw_comparison
from .changes.section import comparison_section
from .conformal.figures import draw_class_coverage, draw_set_sizes
from .conformal.section import conformal_section
from .data_questions.section import data_questions_section, draw_class_counts
from .data_questions.stain import draw_stain
from .embedding_map import draw_embedding_map, embedding_section
from .fitted import Fitted
from .galleries import draw_gallery, galleries_section
from .ood.detector import OOD_FILE
from .ood.embedded import EmbeddedFold
from .ood.figures import draw_ood_roc, draw_ood_scores
from .ood.section import ood_section
from .predictions import Predictions
from .roc_curves import draw_roc_curves, roc_section
from .selective.figures import draw_risk_coverage
from .selective.section import selective_section
from .summary import metrics_section
from .symmetries import symmetries_section
from .symmetries_figures import draw_symmetries

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Format = Literal["svg", "png"]
#: Name -> figure with its format, or the bytes of a PNG that was drawn before.
Drawn = dict[str, "tuple[Figure, Format] | bytes"]


@dataclass(frozen=True)
class Evidence:
    """What parts rest on besides the predictions; whatever is not there makes its part say so.

    Args:
        embeddings: Fold -> float32 (images, width), rows as the predictions.
        fitted: What was fitted on the calibration fold.
        baselines: Baseline -> fold -> predictions.
        baseline_notes, baselines_gap: What a reader must know of each baseline; why there is none.
        is_pretrained: The backbone had learnt something before.
        copies, stain: Sections of these names (see `data_questions`).
        other: (name, predictions) of another run on the same images, to compare with.
        averaged: Predictions of the test fold, averaged over the symmetries of the square.
        picture: Id of an image of the reported fold -> its picture.
        kept_galleries: Gallery -> (ids of its cells, PNG) that was drawn before; used where there is no `picture`.
    """

    embeddings: Mapping[str, np.ndarray] = field(default_factory=dict)
    fitted: Fitted = field(default_factory=Fitted)
    baselines: Mapping[str, Mapping[str, Predictions]] = field(default_factory=dict)
    baseline_notes: Mapping[str, str] = field(default_factory=dict)
    baselines_gap: str = "none is kept"
    is_pretrained: bool = True
    copies: Mapping[str, Any] | None = None
    stain: Mapping[str, Any] | None = None
    other: tuple[str, Predictions] | None = None
    averaged: Predictions | None = None
    picture: Callable[[str], np.ndarray] | None = None
    kept_galleries: Mapping[str, tuple[list[str], bytes]] = field(default_factory=dict)


@dataclass(frozen=True)
class Asked:
    """What a part is told.

    Args:
        name: Of the run.
        fold: Name of the reported fold.
        scored: Its predictions.
        predictions: Of all folds.
        taxonomy: The classes, in label order.
        train_classes: Codes of the classes with an image in the training fold.
        counts: Fold -> class code -> images.
        evidence: Everything else.
        drawn: `draws`, `seed`, `level` of intervals.
    """

    name: str
    fold: str
    scored: Predictions
    predictions: Mapping[str, Predictions]
    taxonomy: Taxonomy
    train_classes: tuple[str, ...]
    counts: Mapping[str, Mapping[str, int]]
    evidence: Evidence
    drawn: Mapping[str, Any]


@dataclass(frozen=True)
class Part:
    """One part of a report.

    Args:
        title: In the list of contents.
        section: Its plain values; a text says why there are none, None that nobody asked.
        figures: Its figures from its values; None draws nothing.
        anchor: Of its heading on the page, where that is not the name of the part.
    """

    title: str
    section: Callable[[Asked], dict[str, Any] | str | None]
    figures: Callable[[Mapping[str, Any], Asked], Drawn]
    anchor: str | None = None


def _baselines(asked: Asked) -> dict[str, Any] | str:
    baselines, evidence = _baselines_of(asked), asked.evidence
    if not baselines:
        why = f"none answered the {asked.fold} fold" if evidence.baselines else evidence.baselines_gap
        return f"No baseline stands beside: {why}."
    return baselines_section(
        asked.scored,
        baselines,
        asked.taxonomy,
        asked.train_classes,
        is_pretrained=evidence.is_pretrained,
        notes=evidence.baseline_notes,
        **asked.drawn,
    )


def _baselines_of(asked: Asked) -> dict[str, Predictions]:
    """Those of the reported fold."""
    return {
        name: folds[asked.fold] for name, folds in asked.evidence.baselines.items() if asked.fold in folds
    }


def _comparison(asked: Asked) -> dict[str, Any] | None:
    if asked.evidence.other is None:
        return None
    name, other = asked.evidence.other
    return comparison_section(
        asked.scored,
        other,
        asked.taxonomy,
        names=(asked.name, name),
        classes_counted=_counted(asked),
        **asked.drawn,
    )


def _counted(asked: Asked) -> np.ndarray:
    """(K,) bool, the classes of the training fold, over which means are taken."""
    return np.array([code in asked.train_classes for code in asked.taxonomy.codes])


def _calibration(asked: Asked) -> dict[str, Any]:
    fitted = asked.evidence.fitted
    section = calibration_section(
        asked.scored, fitted.calibration, asked.predictions.get("calibration"), **asked.drawn
    )
    if fitted.calibration is None and CALIBRATION_FILE in fitted.gaps:
        section["reason"] = f"Nothing was scaled: {fitted.gaps[CALIBRATION_FILE]}."
    return section


def _selective(asked: Asked) -> dict[str, Any]:
    calibration = asked.evidence.fitted.calibration
    fold = asked.predictions.get("calibration") if calibration is not None else None
    why = asked.evidence.fitted.gaps.get(CALIBRATION_FILE)
    return selective_section(asked.scored, asked.taxonomy, fold, calibration, no_fold=why, **asked.drawn)


def _conformal(asked: Asked) -> dict[str, Any] | str:
    calibration = asked.evidence.fitted.calibration
    if calibration is None:
        why = asked.evidence.fitted.gaps.get(CALIBRATION_FILE, "there is no calibration fold")
        return f"No set of classes can be promised: {why}."
    return conformal_section(
        asked.predictions["calibration"],
        asked.scored,
        asked.taxonomy,
        scale=calibration.scaling,
        seed=asked.drawn["seed"],
        level=asked.drawn["level"],
    )


def _ood(asked: Asked) -> dict[str, Any] | str:
    detector = asked.evidence.fitted.detector
    if detector is None:
        why = asked.evidence.fitted.gaps.get(OOD_FILE, "there is no calibration fold")
        return f"Nothing calls out strange images: {why}."
    fold = EmbeddedFold(asked.scored, asked.evidence.embeddings.get(asked.fold))
    return ood_section(detector, fold, asked.train_classes, **asked.drawn)


def _roc(asked: Asked) -> dict[str, Any]:
    runs = {asked.name: asked.scored}
    if asked.evidence.other is not None:
        runs[_unlike(asked.evidence.other[0], runs)] = asked.evidence.other[1]
    runs |= {
        f"baseline {name}": one
        for name, one in _baselines_of(asked).items()
        # The majority ranks nothing: its curve is the diagonal.
        if name in HAVE_PROBABILITIES and (one.logits != one.logits[:1]).any()
    }
    return roc_section(runs, asked.taxonomy, level=asked.drawn["level"])


def _unlike(name: str, taken: Mapping[str, Any]) -> str:
    return f"{name} (other)" if name in taken else name


def _embeddings(asked: Asked) -> dict[str, Any] | str:
    embeddings = asked.evidence.embeddings.get(asked.fold)
    if embeddings is None:
        return "No map of what the model sees as alike: no embeddings were kept."
    return embedding_section(embeddings, asked.scored.labels, asked.taxonomy, seed=asked.drawn["seed"])


def _test_time(asked: Asked) -> dict[str, Any] | None:
    averaged = asked.evidence.averaged
    if averaged is None or asked.fold != "test":
        return None
    counted = _counted(asked)
    return symmetries_section(asked.scored, averaged, asked.taxonomy, classes_counted=counted, **asked.drawn)


def _data(asked: Asked) -> dict[str, Any]:
    evidence = asked.evidence
    return data_questions_section(asked.counts, asked.taxonomy, copies=evidence.copies, stain=evidence.stain)


def _draw_galleries(section: Mapping[str, Any], asked: Asked) -> Drawn:
    drawn: Drawn = {}
    for name, gallery in section.items():
        ids = [cell["id"] for cell in gallery["cells"]]
        kept = asked.evidence.kept_galleries.get(name)
        if ids and asked.evidence.picture is not None:
            pictures = [asked.evidence.picture(image) for image in ids]
            drawn[name] = (draw_gallery(gallery["cells"], pictures), "png")
        elif ids and kept is not None and kept[0] == ids:
            drawn[name] = kept[1]
    return drawn


def _draw_data(section: Mapping[str, Any], _asked: Asked) -> Drawn:
    drawn: Drawn = {}
    if section["counts"]["images"]:
        drawn["class_counts"] = (draw_class_counts(section["counts"]), "svg")
    if section["stain"] and section["stain"]["rows"]:
        drawn["stain"] = (draw_stain(section["stain"]), "svg")
    return drawn


def _draw_conformal(section: Mapping[str, Any], asked: Asked) -> Drawn:
    figures = {
        "conformal_set_sizes": draw_set_sizes(section),
        "conformal_class_coverage": draw_class_coverage(section, order=asked.taxonomy.codes),
    }
    return {name: (figure, "svg") for name, figure in figures.items() if figure is not None}


def _draw_embeddings(section: Mapping[str, Any], _asked: Asked) -> Drawn:
    if not section["points"]:
        return {}
    return {f"embeddings_by_{by}": (draw_embedding_map(section, by), "png") for by in ("class", "lineage")}


def _draw_nothing(_section: Mapping[str, Any], _asked: Asked) -> Drawn:
    return {}


def _each(
    section: Mapping[str, Any],
    _asked: Asked,
    *,
    needs: str | None = None,
    **figures: Callable[[Mapping[str, Any]], Figure | None],
) -> Drawn:
    """Figures that need the section alone, where its entry `needs` is not empty."""
    if needs is not None and not section[needs]:
        return {}
    made = {name: draw(section) for name, draw in figures.items()}
    return {name: (figure, "svg") for name, figure in made.items() if figure is not None}


#: Name (key of `report.json`, file of the partial) -> part, in the order of the page.
PARTS: dict[str, Part] = {
    "metrics": Part(
        "Agreement, ranking, lineages",
        lambda asked: metrics_section(asked.scored, asked.taxonomy, asked.train_classes, **asked.drawn),
        _draw_nothing,
    ),
    "baselines": Part(
        "What it had to beat", _baselines, partial(_each, needs="systems", baselines=draw_baselines)
    ),
    "comparison": Part("Comparison", _comparison, partial(_each, comparison=draw_comparison)),
    "calibration": Part("Calibration", _calibration, partial(_each, reliability=draw_reliability)),
    "selective": Part("When to abstain", _selective, partial(_each, risk_coverage=draw_risk_coverage)),
    "conformal": Part("Sets of classes", _conformal, _draw_conformal),
    "ood": Part("Strange images", _ood, partial(_each, ood_scores=draw_ood_scores, ood_roc=draw_ood_roc)),
    "test_time": Part(
        "Test-time augmentation", _test_time, partial(_each, needs="metrics", test_time=draw_symmetries)
    ),
    "roc": Part("ROC curves", _roc, partial(_each, needs="curves", roc_curves=draw_roc_curves)),
    "galleries": Part(
        "Mistakes to look at",
        lambda asked: galleries_section(asked.scored, asked.taxonomy),
        _draw_galleries,
    ),
    "embeddings": Part("Seen as alike", _embeddings, _draw_embeddings),
    "data": Part("Questions about the images", _data, _draw_data, anchor="data-questions"),
}


def build_parts(asked: Asked) -> dict[str, dict[str, Any]]:
    """Name of the part -> its plain values, or `{"missing": why}`; parts that nobody asked for are left out.

    Raises:
        DataError: Predictions are broken, of other classes or of other images than they should be.
    """
    found: dict[str, dict[str, Any]] = {}
    for name, part in PARTS.items():
        section = part.section(asked)
        if section is not None:
            found[name] = {"missing": section} if isinstance(section, str) else section
    return found


def draw_parts(sections: Mapping[str, Mapping[str, Any]], asked: Asked) -> Drawn:
    """The figures of all parts that have values."""
    drawn: Drawn = {}
    for name, section in sections.items():
        if "missing" not in section:
            drawn |= PARTS[name].figures(section, asked)
    return drawn
