"""The reports that lie in folders already: read back, and never replaced by one of another kind."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from .errors import DataError

logger = logging.getLogger(__name__)

REPORT_FILE = "report.json"
#: Kinds of report, as messages name them.
RUN, PREDICTIONS = "a RUN", "a PREDICTIONS file"
TRANSFER, SEEDS = "a transfer to another set", "a summary over seeds"


def kept_report(folder: Path) -> dict[str, Any]:
    """The content of a RUN's `report.json`; empty where there is none, with a warning where it cannot be used.

    Args:
        folder: `report` of the RUN.
    """
    path = folder / REPORT_FILE
    report, why = _read(path)
    if report and (found := _kind(report)) != RUN:
        why = f"is the report of {found or 'something else'}, not of {RUN}"
    if why is not None:
        logger.warning("%s %s; it is left aside", path, why)
        return {}
    return report


def refuse_other_report(folder: Path, kind: str) -> None:
    """Keep a report of one kind from being replaced by one of another; a damaged one may be replaced.

    Args:
        folder: Where a report is to be written.
        kind: What the new report is of.

    Raises:
        DataError: The folder holds a report of another kind.
    """
    report, _ = _read(folder / REPORT_FILE)
    if report and (found := _kind(report)) != kind:
        raise DataError(
            f"{folder}: holds the report of {found or 'something else'}, which that of {kind} would replace; give "
            "another --output, or move it away"
        )


def _read(path: Path) -> tuple[dict[str, Any], str | None]:
    """What a report says; or why it cannot be used. A missing file says nothing."""
    if not path.is_file():
        return {}, None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        return {}, f"is damaged ({error})"
    return (found, None) if isinstance(found, dict) else ({}, "is no report")


def _kind(report: dict[str, Any]) -> str | None:
    """What a report is of; None for one that none of these commands wrote."""
    if "folds" in report:
        return RUN if report.get("recipe") else PREDICTIONS
    parts = report.get("parts") or {}
    return next((kind for key, kind in (("transfer", TRANSFER), ("seeds", SEEDS)) if key in parts), None)
