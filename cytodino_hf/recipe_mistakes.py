"""Mistakes in a recipe, put into words a person can act on: place, value, what is allowed, the nearest known name."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError


def nearest(name: str, known: Sequence[str]) -> str | None:
    """The known name that looks most like `name`, or None."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return close[0] if close else None


def unknown_key(name: str, known: Sequence[str], *, kind: str, bare: bool = False) -> str:
    """Say that a name is unknown, with the nearest known one and all that are allowed."""
    close = nearest(name.rsplit(".", 1)[-1], known)
    hint = f"; did you mean {close!r}?" if close else ""
    allowed = ", ".join(known)
    return ("" if bare else f"{name}: ") + f"unknown {kind}{hint} (known: {allowed})"


def parse_overrides(tokens: Sequence[str], document: dict[str, Any]) -> list[str]:
    """Put `--section.key VALUE` pairs into the document; returns what could not be understood.

    A value is read as JSON where it is JSON and as text otherwise; where a key takes text only, `check_model` turns
    a number back into the text that was typed.
    """
    problems: list[str] = []
    rest = list(tokens)
    while rest:
        token = rest.pop(0)
        if not token.startswith("--") or "." not in token.split("=", 1)[0]:
            problems.append(f"{token}: unknown option; a key of the recipe is changed by --section.key VALUE")
            if rest and token.startswith("--") and "=" not in token and not rest[0].startswith("--"):
                rest.pop(0)  # its value
            continue
        name, has_value, text = token[2:].partition("=")
        if not has_value:
            if not rest or (rest[0].startswith("--") and "." in rest[0]):
                problems.append(f"--{name}: a value is missing")
                continue
            text = rest.pop(0)
        target: Any = document
        *parents, key = name.split(".")
        for parent in parents:
            if not isinstance(target.setdefault(parent, {}), dict):
                target[parent] = {}
            target = target[parent]
        target[key] = _read_value(text)
    return problems


@dataclass(frozen=True)
class _CommandLineValue:
    """A value from the command line that reads as JSON, with the text that was typed."""

    value: Any
    text: str


def _read_value(text: str) -> Any:
    try:
        return _CommandLineValue(json.loads(text), text)
    except (json.JSONDecodeError, RecursionError):
        return text


def plain_value(value: Any, *, as_text: bool = False) -> Any:
    """The value itself where it came from the command line; `as_text` gives what was typed."""
    if isinstance(value, _CommandLineValue):
        return value.text if as_text else value.value
    if isinstance(value, dict):
        return {k: plain_value(v) for k, v in value.items()}
    return value


def check_model(
    model: type[BaseModel],
    values: Any,
    place: str,
    found: list[str],
    *,
    known: Sequence[str] | None = None,
    hint: str | None = None,
) -> Any:
    """Validate one section; append a line for each mistake.

    Args:
        model: The strict model.
        values: Its keys.
        place: Path of the section (`data`, `data.synthetic`).
        found: Receives the mistakes.
        known: Names to choose the nearest from; the model's fields by default.
        hint: What the keys belong to, for unknown ones.

    Returns:
        The checked section; with mistakes, the section without them, or None where not even that can be built.
    """
    if isinstance(values, _CommandLineValue):
        values = values.value
    if not isinstance(values, dict):
        found.append(f"{place} = {values!r}: must be an object with keys")
        return None
    plain = {key: plain_value(value) for key, value in values.items()}
    try:
        return model(**plain)
    except ValidationError as error:
        typed = {e["loc"][0] for e in error.errors() if e["type"] == "string_type" and len(e["loc"]) == 1}
        back = {
            key: plain_value(values[key], as_text=True)
            for key in typed
            if isinstance(values.get(key), _CommandLineValue)
        }
        back = {key: text for key, text in back.items() if plain[key] is not None}
        if back:
            return check_model(model, {**values, **back}, place, found, known=known, hint=hint)
        lines: dict[str, list[str]] = {}
        for problem in error.errors():
            where = [str(part) for part in problem["loc"] if not _is_union_branch(str(part), problem["loc"])]
            name = ".".join([place, *where])
            lines.setdefault(name, []).append(in_words(problem, known or tuple(model.model_fields), hint))
        for name, words in lines.items():
            value = _value_at(plain, name[len(place) + 1 :].split("."))
            shown = (
                "" if words[0].startswith("unknown") or words == ["is missing"] else f" = {shortened(value)}"
            )
            found.append(f"{name}{shown}: {' or '.join(dict.fromkeys(words))}")
        return _salvaged(model, plain, {str(e["loc"][0]) for e in error.errors()})


def check_source_options(
    section: dict[str, Any], where: str, sources: Mapping[str, Any], found: list[str]
) -> dict[str, Any]:
    """Take the options of every source out of a section and check them; appends a line for each mistake.

    Args:
        section: Keys as given; the sources' names are taken out of it.
        where: Its name, for messages.
        sources: `SOURCES`.
        found: Mistakes so far.

    Returns:
        Name of the source -> its options.
    """
    return {
        name: check_model(spec.options, section.pop(name, {}), f"{where}.{name}", found)
        for name, spec in sources.items()
    }


def _salvaged(model: type[BaseModel], values: dict[str, Any], bad: set[str]) -> Any:
    """The section with its wrong keys at their defaults, so that contradictions of the others still show."""
    good = {key: value for key, value in values.items() if key not in bad}
    required = {
        name: "" for name, field in model.model_fields.items() if field.is_required() and name not in good
    }
    try:
        return model(**good, **required)
    except ValidationError:
        return None


def _is_union_branch(part: str, location: tuple[Any, ...]) -> bool:
    # pydantic adds the branch of a union to the location: ('lora_targets', 'list[str]').
    return (
        len(location) > 1
        and bool(re.match(r"(list|dict|literal|str|float|int|bool)\b", part))
        and part != str(location[0])
    )


def _value_at(values: Any, names: Sequence[str]) -> Any:
    for name in names:
        if isinstance(values, dict) and name in values:
            values = values[name]
        elif isinstance(values, list) and name.isdigit() and int(name) < len(values):
            values = values[int(name)]
        else:
            return values
    return values


def shortened(value: Any) -> str:
    """The value as a person would type it, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


_WORDS = {
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "list_type": "must be a list",
    "dict_type": "must be an object",
    "model_type": "must be an object with keys",
    "model_attributes_type": "must be an object with keys",
    "finite_number": "must be a finite number",
    "missing": "is missing",
}


def in_words(problem: Any, known: Sequence[str], hint: str | None) -> str:
    """What is allowed, for one of pydantic's errors.

    Args:
        problem: One entry of `ValidationError.errors()`.
        known: Names an unknown key is compared with.
        hint: What the keys belong to.
    """
    kind, context = problem["type"], problem.get("ctx", {})
    if kind == "extra_forbidden":
        return unknown_key(
            str(problem["loc"][-1]), known, kind=f"key of {hint}" if hint else "key", bare=True
        )
    limits = {
        "greater_than": ("gt", "must be greater than"),
        "greater_than_equal": ("ge", "must be at least"),
        "less_than": ("lt", "must be less than"),
        "less_than_equal": ("le", "must be at most"),
        "literal_error": ("expected", "must be"),
        "too_short": ("min_length", "must have this many values:"),
        "too_long": ("max_length", "must have this many values:"),
    }
    if kind in limits:
        key, words = limits[kind]
        suggestion = ""
        if kind == "literal_error" and isinstance(problem["input"], str):
            close = nearest(problem["input"], re.findall(r"'([^']*)'", str(context[key])))
            suggestion = f"; did you mean {close!r}?" if close else ""
        return f"{words} {context[key]}{suggestion}"
    return _WORDS.get(kind, str(problem["msg"]))
