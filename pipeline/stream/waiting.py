"""How long a consumer waited for batches."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

from torch.utils.data import DataLoader

from pipeline.stream.scan_stream import Batch, ScanStream


class TimedBatches:
    """The batches of a stream, with or without DataLoader workers, and how long each was waited for.

    waited_s : seconds in all; not for the first batch, which nothing can be read ahead of.
    """

    def __init__(self, stream: ScanStream, *, num_workers: int = 0) -> None:
        """Nothing is read before the first batch is asked for."""
        loader: Iterable[Batch] = stream
        if num_workers:
            loader = DataLoader(stream, batch_size=None, num_workers=num_workers)
        self._batches = iter(loader)
        self._begun = False
        self.waited_s = 0.0

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        began = time.perf_counter()
        batch = next(self._batches)
        if self._begun:
            self.waited_s += time.perf_counter() - began
        self._begun = True
        return batch

    def close(self) -> None:
        """End the readers."""
        close = getattr(self._batches, "close", None)  # a generator has one, an iterator over workers ends when dropped
        del self._batches
        if close is not None:
            close()
