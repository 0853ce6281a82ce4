"""summarise_seeds: one recipe trained with several seeds, as one page: mean, standard deviation, interval."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .errors import DataError
from .evaluate import DRAWS, SEED, Evaluated
from .evaluation.changes.section import seeds_section
from .evaluation.plots import bytes_to_data_uri, figure_bytes
from .evaluation.report import DRAWN_NOTE
from .evaluation.roc_curves import draw_roc_curves, roc_section
from .files import whole_file, without_places
from .kept_reports import SEEDS, refuse_other_report
from .kept_run import KeptRun
from .page import plain, render_template

# What runs of one recipe may differ in.
_OF_A_SEED = (("training", "seed"), ("training", "output_dir"))
_METRICS = (
    "macro_f1", "balanced_accuracy", "accuracy", "weighted_f1", "nll", "brier", "ece", "critical_to_safe",
)  # fmt: skip


def summarise_seeds(
    paths: Sequence[Path], output: Path, *, draws: int | None = None, seed: int | None = None
) -> Evaluated:
    """Write `report.json` and `report.html` of several RUNs that differ in their seed alone.

    Args:
        paths: The RUNs, at least two.
        output: Folder of the report.
        draws, seed: Of intervals; None takes those of the first recipe.

    Raises:
        DataError: They are of several recipes (names the keys that differ), of one seed, or of other test images.
    """
    refuse_other_report(output, SEEDS)
    runs = [KeptRun.read(path) for path in paths]
    _check_same_recipe(runs)
    first = runs[0]
    settings = first.recipe.get("evaluation", {})
    draws = settings.get("interval_draws", DRAWS) if draws is None else draws
    seed = settings.get("seed", SEED) if seed is None else seed
    folds = {f"seed {run.recipe['training']['seed']}": run.test for run in runs}
    trained = set.intersection(*(set(_train_classes(run)) for run in runs))
    counted = np.array([code in trained for code in first.taxonomy.codes])
    name = Path(first.recipe["training"]["output_dir"]).name or "run"
    report = plain(
        {
            "title": f"{len(runs)} seeds of one recipe",
            "runs": [str(path.name) for path in paths],
            "notes": [DRAWN_NOTE] if first.report.get("is_drawn") else [],
            "intervals": {"level": 0.95, "draws": draws, "seed": seed},
            "parts": {
                "seeds": seeds_section(
                    {name: list(folds.values())},
                    first.taxonomy,
                    _METRICS,
                    classes_counted=counted,
                    draws=draws,
                    seed=seed,
                ),
                "roc": roc_section(folds, first.taxonomy),
            },
        }
    )
    figures = {}
    (output / "figures").mkdir(parents=True, exist_ok=True)
    if report["parts"]["roc"]["curves"]:
        content = figure_bytes(draw_roc_curves(report["parts"]["roc"]), "svg")
        (output / "figures" / "roc_curves.svg").write_bytes(content)
        figures["roc_curves"] = bytes_to_data_uri(content, "svg")
    template = Path(__file__).parent / "evaluation" / "seeds_page.html"
    page = render_template(template, {}, report=report, figures=figures)
    text = json.dumps(report, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    for file, written in (("report.json", text), ("report.html", page)):
        with whole_file(output / file) as stream:
            stream.write(written.encode("utf-8"))
    return Evaluated(output / "report.html", report)


def _check_same_recipe(runs: Sequence[KeptRun]) -> None:
    seeds = [run.recipe["training"]["seed"] for run in runs]
    if len(set(seeds)) < len(seeds):
        raise DataError(f"the runs have the seeds {', '.join(map(str, seeds))}: give each seed once")
    first = _asked_for(runs[0])
    for run in runs[1:]:
        other = _asked_for(run)
        if different := sorted(key for key in {*first, *other} if first.get(key) != other.get(key)):
            raise DataError(
                f"{run.path} and {runs[0].path} are of different recipes ({', '.join(different)}): a summary over "
                "seeds is of one recipe; compare two runs with --against"
            )


def _asked_for(run: KeptRun) -> dict[str, Any]:
    """Key -> value of what a run was asked for, without its seed and places."""
    sections = without_places(
        {name: keys for name, keys in run.recipe.items() if name not in ("hub", "evaluation")}
    )
    return {
        f"{section}.{key}": value
        for section, keys in sections.items()
        for key, value in keys.items()
        if (section, key) not in (*_OF_A_SEED, ("data", "root"))
    }


def _train_classes(run: KeptRun) -> list[str]:
    return list(run.report.get("train_classes") or run.taxonomy.codes)
