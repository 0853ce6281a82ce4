"""The results of a probe as files: `probe.json` (everything), `probe.csv`, `probe.md`, `probe.png`."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..files import whole_file, write_json
from .methods import METHODS

_HEADINGS = {
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "accuracy": "accuracy",
    "nll": "NLL",
    "ece": "ECE",
    "critical_to_safe": "critical → safe",
}
_CSV_COLUMNS = ("system", "method", "metric", "value", "low", "high", "sd", "runs", "test_images")


def write_report(document: Mapping[str, Any], folder: Path) -> None:
    """Write all four files; each is whole or absent.

    Args:
        document: From `run_probe`.
        folder: Where to.
    """
    from ..evaluation.plots import figure_bytes
    from .plot import draw_probe

    contents = {
        "probe.csv": to_csv(document).encode(),
        "probe.md": to_markdown(document).encode(),
        "probe.png": figure_bytes(draw_probe(document), "png"),
    }
    for name, content in contents.items():
        with whole_file(folder / name) as file:
            file.write(content)
    write_json(folder / "probe.json", document)


def to_csv(document: Mapping[str, Any]) -> str:
    """One line a number; runs are seeds, or draws where the metric is `balanced_accuracy@<images a class>`."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_CSV_COLUMNS)
    for system in document["systems"]:
        for method, found in system["methods"].items():
            for name, score in found["metrics"].items():
                ends = [score["value"], score["low"], score["high"], score["spread"]]
                writer.writerow([system["name"], method, name, *ends, len(score["seeds"]), score["n"]])
        for row in system["few_shot"]:
            start = [system["name"], system["few_shot_method"], f"balanced_accuracy@{row['shots']}"]
            ends = [row["mean"], row["low"], row["high"], row["sd"]]
            writer.writerow([*start, *ends, len(row["values"]), system["test_images"]])
    return text.getvalue()


def to_markdown(document: Mapping[str, Any]) -> str:
    """Tables for a reader, with what they rest on."""
    parts = [
        "# Frozen features, side by side",
        _about(document),
        "## Test fold",
        "Value [95 % interval over test images]; ± is the standard deviation over seeds.",
        _score_table(document["systems"]),
    ]
    if document["comparisons"]:
        first = document["comparisons"][0]["ours"]
        parts += [
            f"## {_code(first)} minus the others",
            "Paired: both on the same draws of the test images. An interval without 0 is a difference; the number of "
            "comparisons is not corrected for.",
            _comparison_table(document["comparisons"]),
        ]
    if any(system["few_shot"] for system in document["systems"]):
        parts += [
            "## With a few labelled images of each class",
            "Balanced accuracy on the whole test fold: mean over draws of the training images ± standard deviation "
            "[95 % interval of the mean over draws].",
            _few_shot_table(document["systems"]),
        ]
    used = [method for method in METHODS if any(method in s["methods"] for s in document["systems"])]
    parts += ["## Methods", "\n".join(f"- **{METHODS[m][0]}**: {METHODS[m][1]}." for m in used)]
    parts += ["Made by", f"```\n{document['command']}\n```"]
    return "\n\n".join(parts) + "\n"


def _about(document: Mapping[str, Any]) -> str:
    data = document["data"]
    folds = ", ".join(f"{sum(counts.values()):,} {fold}" for fold, counts in data["images"].items())
    more = f", and {sum(data['more']['images'].values()):,} more for training" if data["more"] else ""
    drawn = "Drawn (synthetic) cells. " if data["is_drawn"] else ""
    lines = [
        f"{drawn}{len(next(iter(data['images'].values())))} classes; images: {folds}{more}. {data['promise']}"
    ]
    lines += [f"- {note}" for note in data["notes"]]
    return "\n".join(lines)


def _score_table(systems: Sequence[Mapping[str, Any]]) -> str:
    names = [n for n in _HEADINGS if any(n in m["metrics"] for s in systems for m in s["methods"].values())]

    def rows() -> Iterator[list[str]]:
        for system in systems:
            for method, found in system["methods"].items():
                cells = [_score(found["metrics"][name]) if name in found["metrics"] else "" for name in names]
                yield [_code(system["name"]), METHODS[method][0], *cells]

    return _table(["system", "method", *(_HEADINGS[name] for name in names)], list(rows()))


def _comparison_table(comparisons: Sequence[Mapping[str, Any]]) -> str:
    names = [n for n in _HEADINGS if any(n in row["differences"] for row in comparisons)]
    rows = []
    for row in comparisons:
        methods = METHODS[row["other_method"]][0]
        if row["ours_method"] != row["other_method"]:
            methods = f"{METHODS[row['ours_method']][0]} minus {methods}"
        cells = [_difference(row["differences"].get(name)) for name in names]
        rows.append([_code(row["other"]), methods, *cells])
    return _table(["other", "method", *(_HEADINGS[name] for name in names)], rows)


def _few_shot_table(systems: Sequence[Mapping[str, Any]]) -> str:
    shots = sorted({row["shots"] for system in systems for row in system["few_shot"]})
    rows = []
    for system in systems:
        found = {row["shots"]: row for row in system["few_shot"]}
        method = METHODS[system["few_shot_method"]][0]
        rows.append([_code(system["name"]), method, *(_draws(found.get(n)) for n in shots)])
    return _table(["system", "method", *(f"{n} a class" for n in shots)], rows)


def _score(score: Mapping[str, Any]) -> str:
    spread = "" if score["spread"] is None else f" ± {score['spread']:.3f}"
    return f"{score['value']:.3f}{spread} [{score['low']:.3f}, {score['high']:.3f}]"


def _difference(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return ""
    # Where two systems say the same there is a difference and no interval.
    return f"{found['value']:+.3f}" + (
        "" if found["low"] is None else f" [{found['low']:+.3f}, {found['high']:+.3f}]"
    )


def _draws(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return ""
    if row["sd"] is None:
        return f"{row['mean']:.3f}"
    return f"{row['mean']:.3f} ± {row['sd']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"


def _table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _code(name: str) -> str:
    return f"`{name}`"
