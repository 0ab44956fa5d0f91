"""A stream run for its own sake: what it delivers, what it costs, and the hashes that prove its order."""

from __future__ import annotations

import hashlib
import resource
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass

from pipeline.stream.scan_stream import Batch, ScanStream
from pipeline.stream.waiting import TimedBatches


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """What was delivered and what it cost; `cpu_s` counts this process and finished workers.

    `wait_s` is how long the consumer waited for all batches but the first. `chunks_decoded` is known for `num_workers`
    0 only, else None.
    """

    order_sha256: str
    content_sha256: str | None
    batches: int
    frames: int
    seconds: float
    wait_s: float
    cpu_s: float
    peak_bytes: int
    chunks_decoded: int | None

    @property
    def frames_per_s(self) -> float:
        """Frames a second of wall time."""
        return self.frames / self.seconds

    def cpu_s_per_gb(self, frame_bytes: int) -> float:
        """CPU-seconds per GB (1e9 bytes) of float32 delivered."""
        return self.cpu_s / (self.frames * frame_bytes / 1e9)


def iterate(
    stream: ScanStream, *, num_workers: int = 0, content: bool = False, progress: Callable[[int], None] = lambda n: None
) -> Measured:
    """Go through all epochs of a stream once.

    `content` adds the chain over the bytes of every batch, h_i = SHA-256(h_(i-1) + d_i), where d_i is the SHA-256 over
    the SHA-256s of the frames of batch i.
    """
    digest, n_batches, n_frames = bytes(32), 0, 0
    began, cpu = time.perf_counter(), _cpu_seconds()
    with closing(TimedBatches(stream, num_workers=num_workers)) as batches:
        for batch in batches:
            if content:
                digest = hashlib.sha256(digest + _digest_of(batch)).digest()
            n_batches += 1
            n_frames += batch.indices.numel()
            progress(batch.indices.numel())
    seconds, cpu = time.perf_counter() - began, _cpu_seconds() - cpu
    return Measured(
        order_sha256=stream.order_sha256(),
        content_sha256=digest.hex() if content else None,
        batches=n_batches,
        frames=n_frames,
        seconds=seconds,
        wait_s=batches.waited_s,
        cpu_s=cpu,
        peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        chunks_decoded=None if num_workers else stream.chunks_decoded,
    )


def _digest_of(batch: Batch) -> bytes:
    frames = batch.diffraction.flatten(0, 1).numpy()
    return hashlib.sha256(b"".join(hashlib.sha256(frame.tobytes()).digest() for frame in frames)).digest()


def _cpu_seconds() -> float:
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime
