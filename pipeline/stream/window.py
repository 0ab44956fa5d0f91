"""The chunks in memory: windows in one time line, read ahead by small dask graphs (a task per group of chunks)."""

from __future__ import annotations

import threading
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final

import dask.threaded
import numpy as np
from numpy.typing import NDArray

from pipeline.sampling.plan import EpochPlan, Window
from pipeline.scan.chunks import ChunkRef, read_ref

DECODE_THREADS: Final = 2
_TASK_BYTES: Final = 1 << 20
_THREAD_NAME: Final = "ptychozarr-stream"

Chunks = Mapping[int, NDArray[Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Threads:
    """The threads of one iteration: one makes batches, one waits for windows, two decode."""

    making: ThreadPoolExecutor
    reading: ThreadPoolExecutor
    decoding: ThreadPoolExecutor


@contextmanager
def threads() -> Iterator[Threads]:
    """Threads for the length of a `with`, which at its end drops what is left to do and leaves none running."""
    pools = [ThreadPoolExecutor(n, thread_name_prefix=_THREAD_NAME) for n in (1, 1, DECODE_THREADS)]
    making, reading, decoding = pools
    try:
        yield Threads(making=making, reading=reading, decoding=decoding)
    finally:
        for pool in pools:  # all are told before any is waited for: they wait for one another
            pool.shutdown(wait=False, cancel_futures=True)
        # An iterator left in a cycle is closed by whichever thread collects garbage: these cannot wait for themselves.
        if not threading.current_thread().name.startswith(_THREAD_NAME):
            for pool in pools:
                pool.shutdown(wait=True)


def window_graph(refs: Mapping[int, ChunkRef]) -> dict[str, tuple[Any, ...]]:
    """A graph whose tasks decode at least 1 MiB each: key -> (function, chunk numbers, refs)."""
    graph: dict[str, tuple[Any, ...]] = {}
    group: list[int] = []
    n_bytes = 0
    for number, ref in refs.items():
        group.append(number)
        n_bytes += int(np.prod(ref.chunk)) * ref.dtype.itemsize
        if n_bytes >= _TASK_BYTES:
            graph[f"chunks-{group[0]}"] = (_decode, tuple(group), tuple(refs[n] for n in group))
            group, n_bytes = [], 0
    if group:
        graph[f"chunks-{group[0]}"] = (_decode, tuple(group), tuple(refs[n] for n in group))
    return graph


def _decode(numbers: Sequence[int], refs: Sequence[ChunkRef]) -> dict[int, NDArray[Any]]:
    return {number: read_ref(ref) for number, ref in zip(numbers, refs, strict=True)}


def decode_chunks(refs: Mapping[int, ChunkRef], pool: ThreadPoolExecutor) -> dict[int, NDArray[Any]]:
    """The decoded chunks, (k, y, x) in the stored dtype, by their number.

    Raises
    ------
    IntegrityError
        A chunk is damaged; names array, chunk and frames.
    """
    graph = window_graph(refs)
    if not graph:
        return {}
    parts = dask.threaded.get(graph, list(graph), pool=pool)
    return {number: block for part in parts for number, block in part.items()}


def by_epoch(steps: range, n_steps: int) -> Iterator[tuple[int, range]]:
    """The epochs of `n_steps` in which some of the steps lie, each with these steps."""
    while steps:
        epoch = steps[0] // n_steps
        here = _between(steps, steps[0], (epoch + 1) * n_steps - 1)
        yield epoch, here
        steps = steps[len(here) :]


def windows_in_line(plan_of: Callable[[int], EpochPlan], steps: range, n_steps: int) -> Iterator[Window]:
    """The windows that some of the steps read, of all epochs in one time line: step = epoch * n_steps + step in it.

    An epoch is planned when its first window is asked for.
    """
    for epoch, here in by_epoch(steps, n_steps):
        start = epoch * n_steps
        for window in plan_of(epoch).windows:
            reads = _between(here, start + window.first_step, start + window.last_step)
            if reads:
                yield replace(window, first_step=reads[0], last_step=reads[-1])


def _between(steps: range, first: int, last: int) -> range:
    """Those of the steps that are `first` or later and `last` or earlier."""
    return steps[bisect_left(steps, first) : bisect_right(steps, last)]


class Residents:
    """The chunks of the windows that are open at a step, and the next windows on their way.

    `windows` come in the order of their first step. With `lanes` of them open at a time, as many more are read ahead;
    in the steps where a lane goes over from one to the next, both are open and fewer are ahead. So two windows of the
    plan (all lanes together) are the most that is held. Counts how many chunks were decoded or are being decoded.
    """

    def __init__(self, refs: Sequence[ChunkRef], windows: Iterator[Window], *, lanes: int, threads: Threads) -> None:
        self._refs, self._windows, self._threads = refs, windows, threads
        self._most = 2 * lanes
        self._next = next(windows, None)
        self._coming: deque[tuple[Window, Future[dict[int, NDArray[Any]]]]] = deque()
        self._open: list[Window] = []
        self._chunks: dict[int, NDArray[Any]] = {}
        self.n_decoded = 0

    def held(self) -> set[int]:
        """The chunks that are in memory or on their way."""
        return self._chunks.keys() | {c for window, _ in self._coming for c in window.chunks}

    def at(self, step: int, also: Sequence[int] = ()) -> Chunks:
        """The chunks that a step reads; `also` names more that no window promised (free neighbours).

        Steps are asked for in rising order.

        Raises
        ------
        IntegrityError
            A chunk of a window that begins here is damaged; names array, chunk and frames.
        """
        self._open = [window for window in self._open if window.last_step >= step]
        # What the windows ahead left out because it was there has to stay for them.
        wanted = {c for window in (*self._open, *(ahead for ahead, _ in self._coming)) for c in window.chunks}
        self._chunks = {c: block for c, block in self._chunks.items() if c in wanted}
        self._read_ahead(step)
        while self._coming and self._coming[0][0].first_step <= step:
            window, chunks = self._coming.popleft()
            self._chunks |= chunks.result()
            self._open.append(window)
        extra = [c for c in dict.fromkeys(also) if c not in self._chunks]
        self.n_decoded += len(extra)
        return {**self._chunks, **self._decoded(extra)} if extra else self._chunks

    def _read_ahead(self, step: int) -> None:
        """Start to read what this step needs in any case, then more windows until two a lane are held."""
        while self._next is not None and (
            self._next.first_step <= step or len(self._open) + len(self._coming) < self._most
        ):
            missing = [c for c in self._next.chunks if c not in self.held()]
            self.n_decoded += len(missing)
            self._coming.append((self._next, self._threads.reading.submit(self._decoded, missing)))
            self._next = next(self._windows, None)

    def _decoded(self, chunks: Sequence[int]) -> dict[int, NDArray[Any]]:
        return decode_chunks({c: self._refs[c] for c in chunks}, self._threads.decoding)
