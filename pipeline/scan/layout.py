"""How an array is cut into chunks. Pure: sizes and a byte budget in, shapes out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

CHUNK_BYTES = 2 << 20
"""Target size of a decoded chunk, in bytes of the stored dtype (2 MiB: measured optimum, docs/decisions/002)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ChunkLayout:
    """An array cut along its first axis only, so that a chunk is always whole frames."""

    shape: tuple[int, ...]
    chunk: tuple[int, ...]

    @property
    def n_chunks(self) -> int:
        """Number of chunks; a scalar or an empty array has one."""
        return max(1, math.ceil(self.shape[0] / self.chunk[0])) if self.shape else 1

    def rows(self, index: int) -> tuple[int, int]:
        """First and one past the last row (frame) of chunk `index`."""
        start = index * self.chunk[0]
        return start, min(start + self.chunk[0], self.shape[0])

    def key(self, index: int) -> str:
        """Zarr's chunk key of chunk `index`, e.g. `c.3.0.0`: all chunks of an array lie in one folder."""
        return ".".join(["c", str(index), *("0" for _ in self.shape[1:])]) if self.shape else "c"


def plan_chunks(shape: Sequence[int], itemsize: int, *, chunk_bytes: int = CHUNK_BYTES) -> ChunkLayout:
    """Whole rows of the first axis, as many as fit `chunk_bytes`, at least one and at most all.

    >>> plan_chunks((516, 128, 128), 2).chunk
    (64, 128, 128)
    """
    if not shape:
        return ChunkLayout(shape=(), chunk=())
    row_bytes = itemsize * math.prod(max(1, n) for n in shape[1:])
    rows = min(max(1, chunk_bytes // row_bytes), max(1, shape[0]))
    return ChunkLayout(shape=tuple(shape), chunk=(rows, *(max(1, n) for n in shape[1:])))
