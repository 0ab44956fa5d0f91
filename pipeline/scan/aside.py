"""Work done beside its caller: a few items in flight in two threads, results in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_THREADS: Final = 2
_IN_FLIGHT: Final = 4


def beside(work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """`map(work, items)` with at most four items in flight, so that memory stays bounded.

    Reading, hashing, encoding and decoding let go of the interpreter lock. The first exception is raised when its
    turn comes.
    """
    with ThreadPoolExecutor(_THREADS) as pool:
        running: deque[Future[Result]] = deque()
        for item in items:
            running.append(pool.submit(work, item))
            if len(running) >= _IN_FLIGHT:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()
