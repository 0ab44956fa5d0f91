"""An array that comes in blocks along one axis, handed on in blocks along another, through a temporary file.

Frames of a stack stored as (H, W, n) or in Fortran order are not contiguous. Memory stays at one incoming block;
the file holds the array once: each incoming block is one tile, laid out so that what is asked for is contiguous.
The file has no name, so that nothing of it is left however the process ends.
"""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import EnvironmentFault
from pipeline.scan.npy import raw_bytes

TILE_BYTES = 32 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Tiles:
    """Tiles in a temporary file: each holds all of `out_axis` for some of axis `in_axis`."""

    handle: int
    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    in_axis: int
    out_axis: int
    extents: tuple[int, ...]

    def blocks(self, rows: int) -> Iterator[NDArray[np.generic]]:
        """Blocks of `rows` along `out_axis`, axes in the order of `shape`."""
        for start in range(0, self.shape[self.out_axis], rows):
            yield self._block(start, min(start + rows, self.shape[self.out_axis]))

    def _block(self, start: int, stop: int) -> NDArray[np.generic]:
        pieces, offset = [], 0
        for extent in self.extents:
            tile_shape = [extent if axis == self.in_axis else n for axis, n in enumerate(self.shape)]
            tile_shape.insert(0, tile_shape.pop(self.out_axis))
            row_bytes = math.prod(tile_shape[1:]) * self.dtype.itemsize
            piece = np.empty((stop - start, *tile_shape[1:]), self.dtype)
            _pread(self.handle, piece, offset + start * row_bytes)
            pieces.append(np.moveaxis(piece, 0, self.out_axis))
            offset += self.shape[self.out_axis] * row_bytes
        return np.concatenate(pieces, axis=self.in_axis, dtype=self.dtype)  # else big-endian would become native


def _pread(handle: int, out: NDArray[np.generic], offset: int) -> None:
    view = raw_bytes(out)
    done = 0
    while done < len(view):
        step = os.preadv(handle, [view[done:]], offset + done)
        assert step > 0, "our own temporary file ended early"
        done += step


@contextmanager
def retiled(
    incoming: Iterable[NDArray[np.generic]],
    shape: tuple[int, ...],
    dtype: np.dtype[np.generic],
    *,
    in_axis: int,
    out_axis: int,
    beside: Path,
) -> Iterator[Tiles]:
    """Write the incoming blocks (cut along `in_axis`) to a temporary file in the folder of `beside`.

    Raises
    ------
    EnvironmentFault
        The folder's disk has no room for the array.
    """
    needed = math.prod(shape) * dtype.itemsize
    free = shutil.disk_usage(beside.parent).free
    if needed > free:
        raise EnvironmentFault(
            f"{beside.parent}: frames are not contiguous in the source: {needed} bytes are needed beside the target, "
            f"{free} are free",
            code="environment.no_space",
        )
    with tempfile.TemporaryFile(dir=beside.parent) as file:
        extents = []
        for block in incoming:
            extents.append(block.shape[in_axis])
            file.write(raw_bytes(np.moveaxis(block, out_axis, 0)))
        file.flush()
        yield Tiles(
            handle=file.fileno(),
            shape=shape,
            dtype=dtype,
            in_axis=in_axis,
            out_axis=out_axis,
            extents=tuple(extents),
        )
