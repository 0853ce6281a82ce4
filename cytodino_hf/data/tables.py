"""Read the small tables a user brings (CSV or Parquet): text columns, nothing guessed, mistakes named."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from pathlib import Path

from ..errors import DataError

#: How many of many mistakes a message names.
MAX_NAMED = 5


def first_few(names: Iterable[str]) -> str:
    """The first few of many names, for a message."""
    names = list(names)
    return ", ".join(names[:MAX_NAMED]) + (", ..." if len(names) > MAX_NAMED else "")


def read_table(path: Path) -> dict[str, list[str | None]]:
    """Columns of a CSV (comma, UTF-8, header line) or Parquet file.

    Returns:
        Column name -> text of each row; names in lower case with `_` for spaces; empty cells are None.

    Raises:
        DataError: Missing, unreadable or without rows; a column twice; rows of another length (with line
            numbers).
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    header, rows = _read_parquet(path) if path.suffix.lower() == ".parquet" else _read_csv(path)
    names = [name.strip().lower().replace(" ", "_") for name in header]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"{path}: columns occur twice: {', '.join(twice)}")
    if not rows:
        raise DataError(f"{path}: has no rows")
    columns = {name: list(values) for name, values in zip(names, zip(*rows, strict=True), strict=True)}
    # A file's name may begin with a space; nothing else may.
    return {name: values if name == "path" else _stripped(values) for name, values in columns.items()}


def _stripped(values: list[str | None]) -> list[str | None]:
    return [value and value.strip() for value in values]


def read_lines(path: Path) -> list[str]:
    """Lines of a UTF-8 text file without the empty ones and those that begin with `#`.

    Raises:
        DataError: The file cannot be read as UTF-8 text.
    """
    lines = (line.strip() for line in _read_text(path).split("\n"))
    return [line for line in lines if line and not line.startswith("#")]


def _read_text(path: Path) -> str:
    try:
        # "utf-8-sig" also takes the mark that Excel puts in front.
        with open(path, encoding="utf-8-sig", newline="") as file:
            return file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 text ({error})") from error


def _read_csv(path: Path) -> tuple[list[str], list[list[str | None]]]:
    reader = csv.reader(io.StringIO(_read_text(path), newline=""), strict=True)
    rows: list[list[str | None]] = []
    odd = []
    try:
        header = next(reader, [])
        for row in reader:
            if len(row) == len(header):
                rows.append([cell if cell.strip() else None for cell in row])
            elif row:
                odd.append(f"line {reader.line_num} ({len(row)})")
    except csv.Error as error:
        raise DataError(f"{path}: line {reader.line_num}: no valid CSV ({error})") from error
    if odd:
        hint = " Columns must be separated by commas." if len(header) == 1 and ";" in header[0] else ""
        raise DataError(f"{path}: {len(odd)} rows do not have {len(header)} columns: {first_few(odd)}.{hint}")
    return header, rows


def _read_parquet(path: Path) -> tuple[list[str], list[list[str | None]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        columns = pq.read_table(path).to_pydict()
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: cannot be read as Parquet ({error})") from error
    texts = [
        [None if v is None or not str(v).strip() else str(v) for v in column] for column in columns.values()
    ]
    return list(columns), [list(row) for row in zip(*texts, strict=True)]
