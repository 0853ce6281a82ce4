"""Work through many files in processes, and know which file a process died of."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from itertools import pairwise
from multiprocessing.connection import wait
from typing import Any, Generic, TypeVar

from ..errors import DataError

Item = TypeVar("Item")
Result = TypeVar("Result")

# Below this many items the start of processes costs more than it saves.
_FEWEST_FOR_PROCESSES = 256
_CHUNK = 32
_IDLE = -1
# Set in a worker by `_begin`: the shared table of what each worker is at, and this worker's place in it.
_at_work: Any = None
_place = 0


class Died(Generic[Item]):
    """In place of a result: the process that worked on this item was killed, twice."""

    def __init__(self, item: Item) -> None:
        self.item = item


def usable_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def work_through(
    function: Callable[[Item], Result], items: Sequence[Item], *, workers: int | None = None
) -> Iterator[tuple[int, Result | Died[Item]]]:
    """Call a function for every item, in processes where there are many items.

    A process may die of an item (a decoder that crashes, memory that runs out). What it was at is then tried once
    more, alone; only an item that kills its process again is given up.

    Args:
        function: At the top of a module, so that it can be sent to a process.
        items: What to call it with.
        workers: Processes; as many as there are cores by default. 1 works in this process.

    Yields:
        Place of the item in `items` and its result, in no order; `Died` for an item given up.
    """
    workers = min(workers or usable_cores(), -(-len(items) // _CHUNK))
    if workers <= 1 or len(items) < _FEWEST_FOR_PROCESSES:
        for place, item in enumerate(items):
            yield place, function(item)
        return
    chunks = [range(start, min(start + _CHUNK, len(items))) for start in range(0, len(items), _CHUNK)]
    while chunks:
        done: set[range] = set()
        suspects: set[int] = set()
        for chunk, results in _run(function, items, chunks, workers, suspects):
            done.add(chunk)
            yield from zip(chunk, results, strict=True)
        if not done and not suspects:
            raise DataError(
                "the processes that read images die before they begin: too little memory, or a limit on processes; "
                "free some, or work with one (`--workers 1` of `cytodino data check`)"
            )
        for place in sorted(suspects):
            alone = list(_run(function, items, [range(place, place + 1)], 1, set()))
            yield place, alone[0][1][0] if alone else Died(items[place])
        chunks = [part for chunk in chunks if chunk not in done for part in _without(chunk, suspects)]


def _without(chunk: range, places: set[int]) -> list[range]:
    """A chunk without some of its places, as ranges."""
    edges = [chunk.start - 1, *sorted(place for place in places if place in chunk), chunk.stop]
    parts = [range(low + 1, high) for low, high in pairwise(edges)]
    return [part for part in parts if part]


def _run(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    chunks: Sequence[range],
    workers: int,
    suspects: set[int],
) -> Iterator[tuple[range, list[Result]]]:
    """Chunks with their results until all are done or a process dies; `suspects` then receives what was in work."""
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else None)
    at_work = context.Array("q", [_IDLE] * workers)
    started = context.Value("q", 0)
    with ProcessPoolExecutor(workers, context, _begin, (at_work, started)) as pool:
        try:
            futures: dict[Future[list[Result]], range] = {
                pool.submit(_call, function, chunk, items[chunk.start : chunk.stop]): chunk
                for chunk in chunks
            }
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool:
            suspects.update(place for place in at_work[:] if place != _IDLE)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # the caller stops early, or an item raised
            raise


def _begin(at_work: Any, started: Any) -> None:
    import cv2

    global _at_work, _place
    cv2.setNumThreads(0)  # one process per core already; a forked thread pool would hang
    _at_work = at_work
    with started.get_lock():
        _place = started.value % len(at_work)
        started.value += 1
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A pool's process would wait for ever for work from a parent that was killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _call(function: Callable[[Item], Result], chunk: range, items: Sequence[Item]) -> list[Result]:
    results = []
    for place, item in zip(chunk, items, strict=True):
        _at_work[_place] = place
        results.append(function(item))
    _at_work[_place] = _IDLE
    return results
