"""Work done ahead of its reader, on threads, in order.

Threads suffice where the work leaves Python: numpy's comparisons, reading files, libjpeg.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def map_ahead(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    workers: int | None = None,
    depth: int | None = None,
) -> Generator[Result, None, None]:
    """`map` on `workers` threads (as many as cores), in the order of `items`.

    Unlike an executor's own map it takes only `depth` items ahead of its reader (a prefetch; by
    default four for each worker), so an endless or heavy stream of them does not fill the memory.
    What `function` raises is raised in its place.
    """
    workers = workers or cores()
    items = iter(items)
    with ThreadPoolExecutor(workers) as pool:
        running: deque[Future[Result]] = deque()
        try:
            for item in islice(items, depth or 4 * workers):
                running.append(pool.submit(function, item))
            while running:
                result = running.popleft().result()
                for item in islice(items, 1):
                    running.append(pool.submit(function, item))
                yield result
        finally:
            for future in running:
                future.cancel()
