"""From the options of a command to tables: check the settings, run the benchmark, write what was asked for."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cytodino_hf.errors import CytoDinoError

from . import settings as known
from .results import to_markdown, update_results, write_json


def run_benchmark(
    name: str, settings: str, values: dict[str, Any], *, json: Path | None = None, results: Path | None = None
) -> str:
    """Run one benchmark.

    Args:
        name: `data`, `step`, `predict` or `startup`.
        settings: Name of its model in `settings`.
        values: Its fields.
        json: Where every raw round goes; None writes none.
        results: Markdown file whose section is replaced; None leaves all as it is.

    Returns:
        The tables in Markdown.

    Raises:
        CytoDinoError: A setting is not possible, or what it needs is missing.
    """
    checked = check_settings(getattr(known, settings), values)
    result = import_module(f"benchmarks.{name}").run(checked, known.command_line(name, checked))
    if json is not None:
        write_json(json, result)
    if results is not None:
        update_results(results, result)
    return to_markdown(result)


def check_settings(model: type[known.Settings], values: dict[str, Any]) -> known.Settings:
    """Settings of a benchmark from the options of its command.

    Raises:
        CytoDinoError: One is not possible; names all.
    """
    if values["quick"]:
        values = values | known.QUICK[model]
    if "device" in model.model_fields:
        values = values | {"device": _device(values.get("device"))}
    try:
        return model.model_validate(values)
    except ValidationError as error:
        problems = (f"--{p['loc'][0]!s} {p['input']}: {p['msg']}".replace("_", "-") for p in error.errors())
        raise CytoDinoError("; ".join(problems)) from error


def _device(asked: str | None) -> str:
    import torch

    found = torch.cuda.is_available()
    if asked == "cuda" and not found:
        raise CytoDinoError("--device cuda: torch sees no GPU here; leave it out, or mend the driver")
    return asked or ("cuda" if found else "cpu")
