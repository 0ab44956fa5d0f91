"""The chunks of a window, decoded by one small dask graph: a task per group of chunks, none per frame."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final

import dask.threaded
import numpy as np
from numpy.typing import NDArray

from pipeline.sampling.plan import EpochPlan
from pipeline.scan.chunks import ChunkRef, read_ref

DECODE_THREADS: Final = 2
_TASK_BYTES: Final = 1 << 20

Chunks = Mapping[int, NDArray[Any]]

_pools: dict[int, ThreadPoolExecutor] = {}
_lock = threading.Lock()


def _pool() -> ThreadPoolExecutor:
    """The decoding threads of this process: a forked child must not inherit its parent's."""
    with _lock:
        pid = os.getpid()
        if pid not in _pools:
            _pools.clear()
            _pools[pid] = ThreadPoolExecutor(DECODE_THREADS)
        return _pools[pid]


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


def decode_chunks(refs: Mapping[int, ChunkRef]) -> dict[int, NDArray[Any]]:
    """The decoded chunks, (k, y, x) in the stored dtype, by their number.

    Raises
    ------
    IntegrityError
        A chunk is damaged; names array, chunk and frames.
    """
    graph = window_graph(refs)
    if not graph:
        return {}
    parts = dask.threaded.get(graph, list(graph), pool=_pool())
    return {number: block for part in parts for number, block in part.items()}


class Residents:
    """The chunks of the windows that are open at a step, and the next window on its way.

    Counts how many chunks were decoded.
    """

    def __init__(self, refs: Sequence[ChunkRef], plan: EpochPlan) -> None:
        self._refs, self._windows = refs, plan.windows
        self._next = 0
        self._open: list[int] = []
        self._chunks: dict[int, NDArray[Any]] = {}
        self._coming: tuple[int, Future[dict[int, NDArray[Any]]]] | None = None
        self._ahead = ThreadPoolExecutor(1)
        self.n_decoded = 0

    def at(self, step: int, also: Sequence[int] = ()) -> Chunks:
        """The chunks that a step reads; `also` names more that no window promised (free neighbours)."""
        while self._next < len(self._windows) and self._windows[self._next].first_step <= step:
            if self._windows[self._next].last_step >= step:
                self._chunks |= self._take(self._next)
                self._open.append(self._next)
            self._next += 1
        self._open = [i for i in self._open if self._windows[i].last_step >= step]
        wanted = {c for i in self._open for c in self._windows[i].chunks}
        if self._coming is not None:  # what it left out because it was there has to stay
            wanted |= set(self._windows[self._coming[0]].chunks)
        self._chunks = {c: block for c, block in self._chunks.items() if c in wanted}
        self._fetch_next()
        extra = [c for c in dict.fromkeys(also) if c not in self._chunks]
        return {**self._chunks, **self._read(extra)} if extra else self._chunks

    def close(self) -> None:
        """Let go of the thread that reads ahead."""
        self._ahead.shutdown(wait=True, cancel_futures=True)

    def _take(self, index: int) -> dict[int, NDArray[Any]]:
        if self._coming is not None and self._coming[0] == index:
            chunks = self._coming[1].result()
            self._coming = None
            return chunks
        return self._read([c for c in self._windows[index].chunks if c not in self._chunks])

    def _fetch_next(self) -> None:
        if self._coming is None and self._next < len(self._windows):
            missing = [c for c in self._windows[self._next].chunks if c not in self._chunks]
            self._coming = (self._next, self._ahead.submit(self._read, missing))

    def _read(self, chunks: Sequence[int]) -> dict[int, NDArray[Any]]:
        self.n_decoded += len(chunks)
        return decode_chunks({c: self._refs[c] for c in chunks})
