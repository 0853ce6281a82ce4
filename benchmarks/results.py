"""The one form of a measurement: raw rounds in JSON, tables in Markdown, sections of RESULTS.md."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from cytodino_hf import files

from .machine import describe_machine, describe_versions
from .rounds import Ratio, Round, Spread, speed_up, spread

_MIB = 2**20


class Part(BaseModel):
    """Base of what a result holds: nothing unknown, nothing changed later."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Row(Part):
    """One cell of a benchmark.

    Args:
        table: Which table it stands in, such as `training images`.
        name: What was timed.
        against: Name of the row of the same table it is compared with; None where it is compared with none.
        unit: What is counted (`image`, `process`, ...).
        units: How many of them one round holds.
        flops_per_unit: Floating-point operations of one unit, by torch's flop counter; None where none are counted.
        peak: Which matrix multiplication (`float32`, `bfloat16`) is the ceiling.
        memory_bytes: Greatest memory of a process that does this alone; on a GPU the greatest allocated there.
        rounds: The raw times.
        failed: Why it was not timed.
    """

    table: str
    name: str
    against: str | None = None
    unit: str = "image"
    units: int = Field(ge=1)
    flops_per_unit: float | None = None
    peak: str | None = None
    memory_bytes: int | None = None
    rounds: list[Round] = []
    failed: str | None = None


class MatrixMultiply(Part):
    """The machine's own matrix multiplication, timed in the same rounds."""

    flops: float
    rounds: list[Round]


class Images(Part):
    """Which images were read."""

    name: str
    is_drawn: bool
    count: int


class Result(Part):
    """One benchmark as it was run."""

    format: Literal[1] = 1  # another number when the form of the file changes
    benchmark: str
    title: str
    date: str
    command: str
    clock: Literal["cpu_s", "device_s"]
    settings: dict[str, Any]
    machine: dict[str, str | int | float]
    versions: dict[str, str]
    images: Images | None
    matrix_multiply: dict[str, MatrixMultiply] = {}
    rows: list[Row]
    notes: list[str]

    def seconds_per_unit(self, row: Row) -> list[float]:
        """Seconds for one unit in each round, by this result's clock."""
        return [_seconds(r, self.clock) / row.units for r in row.rounds]

    def row(self, table: str, name: str) -> Row:
        """The row of a table by its name."""
        return next(row for row in self.rows if (row.table, row.name) == (table, name))

    def speed_up(self, row: Row) -> Ratio | None:
        """How many times faster than the row it is compared with."""
        if row.against is None or row.failed or row.against == row.name:
            return None
        reference = self.row(row.table, row.against)
        if reference.failed:
            return None
        return speed_up(self.seconds_per_unit(reference), self.seconds_per_unit(row))

    def share_of_peak(self, row: Row) -> Spread | None:
        """Share of the machine's matrix-multiply rate that the row's own operations reach, round by round."""
        if row.flops_per_unit is None or row.peak not in self.matrix_multiply or row.failed:
            return None
        product = self.matrix_multiply[row.peak]
        rates = [product.flops / _seconds(r, self.clock) for r in product.rounds]
        own = [row.flops_per_unit / seconds for seconds in self.seconds_per_unit(row)]
        return spread([rate / ceiling for rate, ceiling in zip(own, rates, strict=True)])


def _seconds(timed: Round, clock: str) -> float:
    value = getattr(timed, clock)
    assert isinstance(value, float)
    return value


def new_result(benchmark: str, title: str, **values: Any) -> Result:
    """A result that says when and on what it was measured."""
    return Result(
        benchmark=benchmark,
        title=title,
        date=datetime.now(UTC).strftime("%Y-%m-%d"),
        machine=describe_machine(),
        versions=describe_versions(),
        **values,
    )


def to_markdown(result: Result) -> str:
    """The tables of a result with what a reader needs to judge them."""
    lines = [f"### {result.title}", "", f"`{result.command}`", ""]
    for table in dict.fromkeys(row.table for row in result.rows):
        lines += _table(result, table, [row for row in result.rows if row.table == table])
    lines += [f"- {line}" for line in _circumstances(result)]
    return "\n".join(lines)


def _table(result: Result, table: str, rows: list[Row]) -> list[str]:
    unit = rows[0].unit
    scale, small = (1e6, "us") if unit == "image" else (1e3, "ms")
    if result.benchmark in ("step", "predict"):
        scale, small = 1e3, "ms"
    has_peak = any(row.flops_per_unit for row in rows)
    has_memory = any(row.memory_bytes for row in rows)
    clock = {"cpu_s": f"{unit}s/s/core", "device_s": f"{unit}s/s"}[result.clock]
    head = [table, f"{small}/{unit}: median (quartiles) [range]", clock, "times as fast (95 %)"]
    head += ["of matrix peak"] * has_peak + ["peak MiB"] * has_memory
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row in rows:
        cells = [row.name, *_cells(result, row, scale)]
        if has_peak:
            share = result.share_of_peak(row)
            cells.append("" if share is None else f"{share.median:.0%}")
        if has_memory:
            cells.append("" if row.memory_bytes is None else f"{row.memory_bytes / _MIB:,.0f}")
        lines.append("| " + " | ".join(cells) + " |")
    return [*lines, ""]


def _cells(result: Result, row: Row, scale: float) -> list[str]:
    if row.failed:
        return [row.failed, "", ""]
    seconds = result.seconds_per_unit(row)
    s = spread([value * scale for value in seconds])
    number = _number
    time = (
        f"{number(s.median)} ({number(s.lower_quartile)} to {number(s.upper_quartile)}) "
        f"[{number(s.least)} to {number(s.greatest)}]"
    )
    ratio = result.speed_up(row)
    faster = "" if ratio is None else f"{ratio.value:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"
    if row.against == row.name:
        faster = "1"
    return [time, number(1 / spread(seconds).median), faster]


def _number(value: float) -> str:
    """Three figures that count, or all before the point."""
    decimals = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:,.{decimals}f}"


def _circumstances(result: Result) -> list[str]:
    machine, versions = result.machine, dict(result.versions)
    where = f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB"
    if result.clock == "device_s":
        where = f"{machine['gpu']}, {machine['gpu_memory_gib']} GiB; {where}"
    lines = [f"{result.date}; {where}; load at the start {machine['load_at_start']}."]
    clock = "CPU time of the process" if result.clock == "cpu_s" else "time between two events on the GPU"
    threads = result.settings.get("threads")
    count = len(result.rows[0].rounds)
    lines.append(f"{count} rounds, {clock}" + (f", threads: {threads}." if threads else "."))
    if result.images is not None:
        lines.append(f"Images: {result.images.name}; {result.images.count:,} of them in each round.")
    for name, product in result.matrix_multiply.items():
        rate = spread([product.flops / _seconds(r, result.clock) / 1e9 for r in product.rounds])
        lines.append(
            f"Matrix peak {name}: {_number(rate.median)} GFLOP/s [{_number(rate.least)} to {_number(rate.greatest)}]."
        )
    lines += result.notes
    lines.append(", ".join(f"{name} {number}" for name, number in versions.items()) + ".")
    return lines


def section_name(result: Result) -> str:
    """What a result is called in RESULTS.md: a later one of the same name takes its place."""
    about = [result.benchmark, str(result.settings.get("backbone", ""))]
    if result.images is not None and result.benchmark == "data":
        about.append("drawn" if result.images.is_drawn else "real")
    if result.settings.get("files"):
        about.append("files")
    about.append("gpu" if result.clock == "device_s" else "cpu")
    return " ".join(filter(None, about))


def update_results(path: Path, result: Result) -> None:
    """Put the tables of a result into a Markdown file, in place of the earlier ones of the same name."""
    replace_section(path, section_name(result), to_markdown(result))


def replace_section(path: Path, name: str, markdown: str) -> None:
    """Put a section into a Markdown file, in place of the earlier one of the same name; a new one at its end."""
    begin, end = f"<!-- benchmark {name} -->", f"<!-- end of benchmark {name} -->"
    section = f"{begin}\n{markdown}\n{end}"
    text = path.read_text(encoding="utf-8") if path.is_file() else "# Results\n"
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    if not pattern.search(text):
        text = text.rstrip("\n") + f"\n\n{begin}{end}\n"
    text = pattern.sub(lambda _: section, text)
    path.write_text(text, encoding="utf-8")


def write_json(path: Path, result: Result) -> None:
    """Every raw round and all circumstances, as JSON."""
    files.write_json(path, result.model_dump(mode="json"))
