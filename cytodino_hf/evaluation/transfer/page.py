"""The report on another source: `report.json` for programs, one page for people, figures also as files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...page import plain, render_template
from ..ood.figures import draw_ood_roc, draw_ood_scores
from ..plots import bytes_to_data_uri, figure_bytes
from .figures import draw_transfer, draw_transfer_confusion

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TEMPLATE = Path(__file__).parent.parent / "transfer_page.html"


def write_transfer(
    folder: Path, about: Mapping[str, Any], parts: Mapping[str, Any], intervals: Mapping[str, Any]
) -> tuple[Path, dict[str, Any]]:
    """Write `report.json`, `report.html` and `figures/` into a folder.

    Args:
        folder: Made where it does not exist.
        about: `title`, `is_drawn`, `model` and `data`, plain values.
        parts: `transfer` (of `transfer_section`) and `ood` (of `ood_section`, or a sentence why there is none).
        intervals: How they were drawn.

    Returns:
        The page, and the content of `report.json`.
    """
    report = plain({**about, "intervals": intervals, "parts": parts})
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    addresses = {}
    for name, figure in _figures(parts).items():
        content = figure_bytes(figure, "svg")
        (folder / "figures" / f"{name}.svg").write_bytes(content)
        addresses[name] = bytes_to_data_uri(content, "svg")
    text = json.dumps(report, indent=2, allow_nan=False, ensure_ascii=False)
    (folder / "report.json").write_text(text + "\n", encoding="utf-8")
    page = folder / "report.html"
    page.write_text(render_template(_TEMPLATE, {}, report=report, figures=addresses), encoding="utf-8")
    return page, report


def _figures(parts: Mapping[str, Any]) -> dict[str, Figure]:
    figures: dict[str, Figure | None] = {
        "transfer": draw_transfer(parts["transfer"]),
        "transfer_confusion": draw_transfer_confusion(parts["transfer"]),
    }
    if isinstance(parts["ood"], Mapping):
        figures |= {"ood_scores": draw_ood_scores(parts["ood"]), "ood_roc": draw_ood_roc(parts["ood"])}
    return {name: figure for name, figure in figures.items() if figure is not None}
