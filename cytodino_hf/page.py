"""Self-contained pages: one HTML file, no script, no request to anywhere, every value escaped.

Templates begin their head with `{% include "page_head.html" %}` (policy, style; needs `page_title`).
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from markupsafe import Markup


def render_template(template: Path, filters: Mapping[str, Callable[..., Any]], **values: Any) -> str:
    """A page from a Jinja template beside the module that asks.

    Args:
        template: The file.
        filters: Besides `flat` (nested entries for a table), `show` (a value as a person writes it) and `breakable`
            (a dotted name that is broken at its joints).
        values: What the template names; a name it does not know is an error.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader([template.parent, Path(__file__).parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update({"flat": _flat, "show": _show, "breakable": _breakable, **filters})
    return environment.get_template(template.name).render(**values)


def data_address(content: bytes, kind: str) -> str:
    """Bytes as a `data:` address, for a page that needs no other file.

    Args:
        content: The bytes.
        kind: MIME type, such as "image/jpeg".
    """
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def duration(seconds: float) -> str:
    """Seconds as a person says them: "3 h 12 min", "4 min 7 s", "9 s"."""
    whole = round(seconds)
    hours, minutes = whole // 3600, whole % 3600 // 60
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {whole % 60} s" if minutes else f"{whole} s"


def plain(value: Any) -> Any:
    """The value as JSON knows it: numpy and paths turned into plain values, what is not finite into null."""
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, set | frozenset):
        return sorted((plain(entry) for entry in value), key=str)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(entry) for entry in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def _flat(value: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Nested entries as (dotted name, value), for tables."""
    rows: list[tuple[str, Any]] = []
    for key, entry in value.items():
        if isinstance(entry, Mapping) and entry:
            rows += _flat(entry, f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", entry))
    return rows


def _breakable(name: str) -> Markup:
    """A name whose line breaks stand after a dot or an underscore, where there is room for the parts."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"([._])(?=.)", r"\1<wbr>", str(escape(name))))


def _show(value: Any) -> str:
    """One value of a recipe or environment as a person writes it."""
    if value is None or isinstance(value, bool):
        return {None: "-", True: "yes", False: "no"}[value]
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
