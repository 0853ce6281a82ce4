"""What the parts of a report come to, a sentence each, for its verdict."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .comparison import ends_told


def headlines(parts: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The sentences, in the order of the page; a part without values has none.

    Args:
        parts: Of `report.json`.
    """
    makers = {
        "baselines": _baselines,
        "comparison": _comparison,
        "calibration": _calibration,
        "selective": _selective,
        "conformal": _conformal,
    }
    return [
        line
        for name, make in makers.items()
        if name in parts and "missing" not in parts[name] and (line := make(parts[name]))
    ]


def _percents(cell: Mapping[str, Any]) -> str:
    value = f"{100 * cell['value']:.1f} %"
    # Of a handful of images there is a value and no interval.
    return value if cell["low"] is None else f"{value} ({100 * cell['low']:.1f} to {100 * cell['high']:.1f})"


def _numbers(cell: Mapping[str, Any]) -> str:
    value = f"{cell['value']:.3f}"
    return value if cell["low"] is None else f"{value} ({cell['low']:.3f} to {cell['high']:.3f})"


def _baselines(section: Mapping[str, Any]) -> str | None:
    return " ".join(section["verdict"]) or None


def _comparison(section: Mapping[str, Any]) -> str:
    row = section["metrics"]["macro_f1"]
    words = {"better": "is better", "worse": "is worse", "unclear": "is not clearly better or worse"}
    return (
        f"It {words[row['verdict']]} than {section['other']} in macro F1: difference {row['value']:+.3f} "
        f"({ends_told(row)})."
    )


def _calibration(section: Mapping[str, Any]) -> str | None:
    if not section["metrics"]:
        return None
    ece = section["metrics"]["ece"]
    if ece["after"] is None:
        return f"Its expected calibration error is {_numbers(ece['before'])}; nothing is scaled."
    words = {"temperature": "a temperature", "vector": "vector scaling"}[section["method"]]
    return f"Its expected calibration error is {_numbers(ece['before'])}, after {words} {_numbers(ece['after'])}."


def _selective(section: Mapping[str, Any]) -> str | None:
    point = section["per_class_point"]
    if point is None:
        return None
    row = next(
        row
        for row in section["at_accuracy"]
        if row["score"] == point["score"] and row["asked"] == point["asked"]
    )
    test = row[point["kind"]]["test"]
    if test is None or test["coverage"] is None or test["accuracy"] is None:
        return None
    how = "assured" if point["kind"] == "assured" else "as observed, without assurance"
    return (
        f"Asked for {100 * point['asked']:g} % accuracy ({how}), it keeps {_percents(test['coverage'])} of its answers "
        f"and is right in {_percents(test['accuracy'])} of those."
    )


def _conformal(section: Mapping[str, Any]) -> str | None:
    if not section["possible"]:
        return None
    method = next((m for m in section["methods"].values() if m["scores"]), None)
    if method is None:
        return None
    scores = method["scores"]
    return (
        f"Sets meant to hold the true class in {100 * (1 - section['alpha']):.0f} % of cells do so in "
        f"{_percents(scores['coverage'])} and name {scores['mean_size']['value']:.2f} classes on average "
        f"({method['title']})."
    )
