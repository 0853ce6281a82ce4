"""Work in processes: every item once, and an item that kills its process is named."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cytodino_hf.data import parallel
from cytodino_hf.data.parallel import Died, work_through
from cytodino_hf.errors import DataError

DEADLY = (5, 40, 41, 399)


def square(number: int) -> int:
    return number * number


def square_or_die(number: int) -> int:
    if number in DEADLY:
        os.kill(os.getpid(), signal.SIGKILL)
    return square(number)


def die_once(path: str) -> str:
    """Kill the process at the first call for a path that ends in `once`."""
    mark = Path(path)
    if mark.name == "once" and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return mark.name


def fail(number: int) -> int:
    if number == 300:
        raise ValueError("item 300")
    return number


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("count", [0, 1, 255, 256, 500])
def test_every_item_comes_back_once(count: int, workers: int) -> None:
    results = list(work_through(square, list(range(10, 10 + count)), workers=workers))
    assert sorted(results) == [(place, (10 + place) ** 2) for place in range(count)]


def test_an_item_that_kills_its_process_is_named_and_costs_no_other() -> None:
    results = dict(work_through(square_or_die, list(range(400)), workers=2))
    assert sorted(results) == list(range(400))
    died = {place: result.item for place, result in results.items() if isinstance(result, Died)}
    assert died == {place: place for place in DEADLY}
    assert all(results[place] == place**2 for place in range(400) if place not in DEADLY)


def test_an_item_gets_a_second_chance(tmp_path: Path) -> None:
    """A process may be killed for what others did, such as taking all memory."""
    items = [str(tmp_path / f"{i}") for i in range(299)] + [str(tmp_path / "once")]
    results = dict(work_through(die_once, items, workers=2))
    assert results[299] == "once"
    assert not any(isinstance(result, Died) for result in results.values())


def test_processes_that_die_before_they_begin_are_an_error_and_not_tried_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def die(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(parallel, "_begin", die)
    with pytest.raises(DataError, match="die before they begin"):
        list(work_through(square, list(range(500)), workers=2))


def test_an_error_reaches_the_caller() -> None:
    with pytest.raises(ValueError, match="item 300"):
        dict(work_through(fail, list(range(400)), workers=2))


def test_processes_end_with_a_parent_that_was_killed(tmp_path: Path) -> None:
    code = (
        "import os, sys, time; from pathlib import Path; from cytodino_hf.data.parallel import work_through\n"
        "def slow(number):\n"
        "    (Path(sys.argv[1]) / str(os.getpid())).touch(); time.sleep(0.02); return number\n"
        "for place, _ in work_through(slow, list(range(2000)), workers=2):\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    (tmp_path / "run.py").write_text(code)
    marks = tmp_path / "marks"
    marks.mkdir()
    done = subprocess.run([sys.executable, str(tmp_path / "run.py"), str(marks)], timeout=60)
    assert done.returncode == -signal.SIGKILL
    workers = [int(mark.name) for mark in marks.iterdir()]
    assert workers
    deadline = time.monotonic() + 20
    while any(map(_is_running, workers)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(_is_running, workers))


def _is_running(pid: int) -> bool:
    try:
        # A process that ended but was not collected yet has the state Z.
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
