"""`evaluate_elsewhere`: a finished model on the images of another source, from their files to a page."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel

from ..data.inspection.check import data_section
from ..data.inspection.scan import scan_images
from ..data.loading import index_images, leave_out_rejected, refuse_too_many_rejected
from ..data.sources import SOURCES
from ..data.splits import safe_cell
from ..errors import ModelUnavailableError, RecipeError
from ..evaluation.ood.embedded import EmbeddedFold
from ..evaluation.ood.section import ood_section
from ..evaluation.predictions import Predictions, foreign_embeddings, read_embeddings, write_embeddings
from ..evaluation.scoring import BATCH_SIZE
from ..evaluation.transfer.correspondence import correspondence
from ..evaluation.transfer.elsewhere import Elsewhere, score_all_ways
from ..evaluation.transfer.page import write_transfer
from ..evaluation.transfer.section import transfer_section
from ..kept_reports import TRANSFER, kept_report, refuse_other_report
from ..other_sets import OTHER_TAXONOMIES
from .companions import load_appearance, load_detector, load_stored_calibration
from .models import LoadedModel, ModelPlace, find_model, load_model, quickest_precision

if TYPE_CHECKING:
    from ..data.samples import CellImages
    from ..evaluation.ood.detector import OodDetector
    from ..recipe import DataSection

_PREFIX = "--data."
#: Of the keys of a data section those that say which images; the others belong to the model or to a training.
_KEYS = ("source", "root", "taxonomy", "max_rejected_share")
_AS_IT_IS = "as it is"
_LEVEL = 0.95


@dataclass(frozen=True)
class ElsewhereOptions:
    """How another source is scored.

    Args:
        match_colour: Score also with the colours brought to those of the training images.
        match_scale: Score also with the cells brought to the size they had in training.
        revision: Of a model on the Hub: branch, tag or commit.
        device: Of torch; by default the GPU where there is one.
        precision: Of the backbone; `auto` takes bfloat16 where that is quicker.
        batch_size: Pictures at once.
        workers: Processes that read pictures.
        cache_dir: Of the Hub's files.
        draws, seed: Of the intervals.
    """

    match_colour: bool = False
    match_scale: bool = False
    revision: str | None = None
    device: str | None = None
    precision: Literal["auto", "float32", "bfloat16"] = "float32"
    batch_size: int = BATCH_SIZE
    workers: int = 0
    cache_dir: str | None = None
    draws: int = 1000
    seed: int = 0


@dataclass(frozen=True)
class Transferred:
    """What came of it.

    Args:
        page: For people.
        report: Content of `report.json`.
        text: One line.
    """

    page: Path
    report: dict[str, Any]
    text: str


def asks_for_elsewhere(arguments: Sequence[str]) -> bool:
    """Whether what is left of a command line names images (`--data.root`, ...).

    Example:
        >>> asks_for_elsewhere(["--data.source", "matek19", "--data.root", "Matek19"]), asks_for_elsewhere([])
        (True, False)
    """
    return any(argument.startswith(_PREFIX) for argument in arguments)


def evaluate_elsewhere(
    model: str, arguments: Sequence[str], output: Path, options: ElsewhereOptions | None = None
) -> Transferred:
    """Score a model on all images of another source, and say how well it tells the common classes apart there.

    Args:
        model: RUN, folder or Hub id.
        arguments: `["--data.source", NAME, "--data.root", PATH, ...]`; without `--data.taxonomy` the labels are the
            source's own.
        output: Folder for `report.json`, `report.html`, `figures/`, the predictions of each way to prepare the
            pictures, and `their_labels.csv`.
        options: See `ElsewhereOptions`.

    Raises:
        RecipeError: An argument is not known.
        ModelUnavailableError: The model cannot be had, or is a file.
        DataError: The images cannot be used, have no class in common with the model, or cannot be matched; or `output`
            holds a report of another kind.
    """
    chosen = options or ElsewhereOptions()
    refuse_other_report(output, TRANSFER)
    data, source_options = _data(arguments)
    if Path(model).is_file() or Path(model).suffix in (".parquet", ".csv"):
        raise ModelUnavailableError(
            f"{model}: is a file, and other images are asked of a model: give a RUN, the folder of a model or a Hub id"
        )
    place = find_model(model, revision=chosen.revision, cache_dir=chosen.cache_dir)
    images = _images(data, source_options)
    loaded = load_model(place, chosen.device)
    common = correspondence(loaded.taxonomy, images.taxonomy)
    ways = _score(place, loaded, images, chosen)
    drawn: dict[str, Any] = {"draws": chosen.draws, "seed": chosen.seed, "level": _LEVEL}
    source = Path(data.root).name if data.root is not None else data.source
    parts: dict[str, Any] = {
        "transfer": transfer_section(
            {name: way.predictions for name, way in ways.items()},
            ways[_AS_IT_IS].their_labels,
            common,
            source=source,
            matchings={name: _in_words(name, way) for name, way in ways.items()},
            **drawn,
        ),
        "ood": _strange(place, loaded, source, ways[_AS_IT_IS], drawn),
    }
    page, report = write_transfer(
        output, _about(place, images, data, source, ways[_AS_IT_IS].predictions), parts, drawn
    )
    _keep(output, ways)
    return Transferred(page, report, _one_line(report, page))


def _data(arguments: Sequence[str]) -> tuple[DataSection, Mapping[str, BaseModel]]:
    """Which images; without a taxonomy, labels are read as the source's own set has them."""
    given = dict(zip(arguments, [*arguments[1:], ""], strict=True))
    source = next((given[key] for key in given if key == f"{_PREFIX}source"), "image_folder")
    for argument in arguments:
        if (found := re.fullmatch(rf"{re.escape(_PREFIX)}source=(.+)", argument)) is not None:
            source = found.group(1)
    taxonomy = source if source in OTHER_TAXONOMIES else "mll"
    section, options = data_section(None, source, taxonomy, arguments)
    known = (*_KEYS, *SOURCES)
    if idle := sorted(key for key in section.model_fields_set if key not in known):
        raise RecipeError(
            [
                f"data.{key}: changes nothing here; which images is said by "
                f"{', '.join(f'data.{key}' for key in _KEYS)} and the options of the source"
                for key in idle
            ],
            "command line",
        )
    return section, options


def _images(data: DataSection, source_options: Mapping[str, BaseModel]) -> CellImages:
    found = index_images(data, source_options)
    images, _, _ = leave_out_rejected(found, scan_images(found))
    refuse_too_many_rejected(images, data.max_rejected_share)
    return images


def _score(
    place: ModelPlace, loaded: LoadedModel, images: CellImages, options: ElsewhereOptions
) -> dict[str, Elsewhere]:
    """Every way that is asked for; the last is the calibration of the model, where that changes anything."""
    needs_looks = options.match_colour or options.match_scale
    precision = options.precision
    ways = score_all_ways(
        loaded.model,
        loaded.processor,
        images,
        load_appearance(place) if needs_looks else None,
        model_taxonomy=loaded.taxonomy,
        model_revision=place.revision(),
        colour=options.match_colour,
        scale=options.match_scale,
        batch_size=options.batch_size,
        workers=options.workers,
        precision=quickest_precision(str(loaded.model.device)) if precision == "auto" else precision,
    )
    calibration = load_stored_calibration(place, loaded.taxonomy.codes)
    if calibration is None or calibration.scaling.method == "none":
        return ways
    plain = ways[_AS_IT_IS]
    calibrated = replace(
        plain.predictions,
        logits=calibration.apply(plain.predictions.logits),
        calibration=calibration.fingerprint(),
    )
    return ways | {"calibrated": replace(plain, predictions=calibrated)}


def _in_words(name: str, way: Elsewhere) -> str:
    if way.predictions.calibration is not None:
        return "pictures as they are, probabilities by the calibration of the model, fitted on its own source"
    return way.matching.in_words() if way.matching is not None else name


def _strange(
    place: ModelPlace, loaded: LoadedModel, source: str, there: Elsewhere, drawn: Mapping[str, Any]
) -> dict[str, Any] | str:
    """Whether the model's detector tells these images from those of the model's own test fold."""
    detector = load_detector(place, loaded.taxonomy.codes)
    if detector is None:
        return "The model has nothing that calls out strange images."
    own = _own_test_fold(Path(place.name), detector)
    if own is None:
        return "Nothing to compare with: the model lies here without the predictions and embeddings of its test fold."
    fold, train_classes = own
    other = EmbeddedFold(there.predictions, there.embeddings)
    return ood_section(detector, fold, train_classes, outside={source: other}, **drawn)


def _own_test_fold(run: Path, detector: OodDetector) -> tuple[EmbeddedFold, list[str]] | None:
    test, embeddings = run / "predictions" / "test.parquet", run / "predictions" / "embeddings.parquet"
    report = kept_report(run / "report")
    if not (test.is_file() and embeddings.is_file() and report):
        return None
    predictions = Predictions.from_parquet(test)
    if predictions.model_revision != detector.model_revision or not len(predictions):
        return None
    if foreign_embeddings(embeddings, predictions) is not None:
        return None
    fold = EmbeddedFold.joined(predictions, *read_embeddings(embeddings))
    return fold, list(report["train_classes"])


def _about(
    place: ModelPlace, images: CellImages, data: DataSection, source: str, scored: Predictions
) -> dict[str, Any]:
    return {
        "title": f"{Path(place.name).name} on {source}",
        "is_drawn": images.is_drawn,
        "model": {
            "name": Path(place.name).name if place.commit is None else place.name,
            "commit": place.commit,
            "revision": scored.model_revision,
        },
        "data": {
            "name": source,
            "source": data.source,
            "taxonomy": images.taxonomy.name,
            "attribution": images.attribution,
            "images": len(images.labels),
            "group_kind": images.group_kind,
            "rejected": [{"path": image.path, "reason": image.reason} for image in images.rejected],
            "fingerprint": images.fingerprint(),
        },
    }


def _keep(output: Path, ways: Mapping[str, Elsewhere]) -> None:
    plain = ways[_AS_IT_IS]
    for name, way in ways.items():
        file = "predictions" if name == _AS_IT_IS else f"predictions_{name.replace(' ', '_')}"
        way.predictions.to_parquet(output / f"{file}.parquet")
    write_embeddings(
        output / "embeddings.parquet",
        plain.predictions.ids,
        plain.embeddings,
        model_revision=plain.predictions.model_revision,
    )
    rows = zip(plain.predictions.ids, plain.predictions.paths, plain.their_labels, strict=True)
    with open(output / "their_labels.csv", "w", encoding="utf-8", newline="") as file_of_labels:
        writer = csv.writer(file_of_labels, lineterminator="\n")
        writer.writerow(("id", "path", "label"))
        writer.writerows([safe_cell(cell) for cell in row] for row in rows)


def _one_line(report: Mapping[str, Any], page: Path) -> str:
    section = report["parts"]["transfer"]
    score = section["ways"][_AS_IT_IS]["scores"]["metrics"]["macro_f1"]
    return (
        f"{page}: macro F1 {score['value']:.3f} ({score['low']:.3f} to {score['high']:.3f}) on {section['images']:,} "
        f"images of {len(section['classes'])} common classes of {section['source']}"
    )
