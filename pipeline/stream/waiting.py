"""How long a consumer waited for batches, and reading processes that end and fail like the one that asked for them."""

from __future__ import annotations

import os
import signal
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from torch.utils.data import DataLoader, IterableDataset

from pipeline.errors import EnvironmentFault, PipelineError
from pipeline.stream.scan_stream import Batch, ScanStream


class TimedBatches:
    """The batches of a stream, with or without DataLoader workers, and how long each was waited for.

    waited_s : seconds in all; not for the first batch, which nothing can be read ahead of.
    """

    def __init__(self, stream: ScanStream, *, num_workers: int = 0) -> None:
        """Nothing is read before the first batch is asked for."""
        self._workers = num_workers
        with warnings.catch_warnings():  # so many were asked for; torch doubts more than the cores
            warnings.filterwarnings("ignore", message="This DataLoader will create")
            self._batches: Iterator[Batch | PipelineError] = iter(
                DataLoader(_Told(stream), batch_size=None, num_workers=num_workers, worker_init_fn=_obey)
                if num_workers
                else stream
            )
        self._begun = False
        self.waited_s = 0.0

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        """The next batch.

        Raises
        ------
        IntegrityError
            A chunk is damaged; the same error with and without workers.
        EnvironmentFault
            A reading process died (see also `faults_of_workers`).
        """
        began = time.perf_counter()
        batch = self._delivered()
        if isinstance(batch, PipelineError):
            raise batch
        if self._begun:
            self.waited_s += time.perf_counter() - began
        self._begun = True
        return batch

    def _delivered(self) -> Batch | PipelineError:
        if not self._workers:
            return next(self._batches)
        try:
            return next(self._batches)
        except (ConnectionError, EOFError) as exc:
            raise _ended(exc) from exc

    def close(self) -> None:
        """End the readers."""
        # A generator has the public one. Left to its finalizer, the other tells of dead workers once more, on stderr.
        close = getattr(self._batches, "close", None) or self._batches._shutdown_workers  # type: ignore[attr-defined]
        with suppress(RuntimeError):
            close()


@contextmanager
def faults_of_workers() -> Iterator[None]:
    """Make a fault of the machine of what torch raises wherever the program is when a reading process dies.

    Raises
    ------
    EnvironmentFault
        A reading process died.
    """
    try:
        yield
    except RuntimeError as exc:
        if "DataLoader worker" not in str(exc):
            raise
        raise _ended(exc) from exc


def _ended(exc: Exception) -> EnvironmentFault:
    return EnvironmentFault(
        f"a reading process ended before its work: {exc}",
        code="stream.worker",
        hint="was it killed for its memory? fewer --num-workers",
    )


class _Told(IterableDataset[Batch | PipelineError]):
    """The batches of a stream and, as the last item, the error that ended it.

    Raised in a worker, an error would lose all but its text, and that to a traceback.
    """

    def __init__(self, stream: ScanStream) -> None:
        super().__init__()
        self._stream = stream

    def __iter__(self) -> Iterator[Batch | PipelineError]:
        try:
            yield from self._stream
        except PipelineError as exc:
            yield exc


def _obey(worker: int) -> None:
    """Let a worker go when a signal is sent to the whole group; the process that asked for it tells the story."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda signum, frame: os._exit(0))
