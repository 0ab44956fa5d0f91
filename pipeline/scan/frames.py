"""Per-frame arrays of an NPZ, in canonical order (frame, y, x) and back to theirs, in blocks, in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.scan.npy import NpyHeader
from pipeline.scan.npz import Member, MemberReader, Npz, ReadDigest, disk_blocks
from pipeline.scan.retile import TILE_BYTES, Tiles, retiled


def disk_axes(header: NpyHeader, axes: str) -> str:
    """The order of the axes in which the bytes lie, slowest first; `axes` are those of the array's shape."""
    return axes[::-1] if header.fortran_order else axes


def _shape_along(axes: str, shape: tuple[int, int, int]) -> tuple[int, ...]:
    """`shape` (frame, y, x) in the order of `axes`."""
    return tuple(shape["fyx".index(axis)] for axis in axes)


class StackSource:
    """A per-frame member of an NPZ; `blocks` may be asked for as often as needed, `digest` is known after once.

    Frames that lie one after the other are streamed from the file each time. Others are spooled once to a
    temporary file in the folder of `beside`.

    Parameters
    ----------
    axes
        The axes of the member's shape, a trailing 1 left out, e.g. "yxf".
    shape
        (frame, y, x).
    """

    def __init__(self, npz: Npz, member: Member, *, axes: str, shape: tuple[int, int, int], beside: Path) -> None:
        self._npz, self._shape, self._beside = npz, shape, beside
        self.member = member
        self.dtype: np.dtype[Any] = member.header.dtype.newbyteorder("=")
        self.frame_bytes = math.prod(shape[1:]) * self.dtype.itemsize
        self.digest: ReadDigest | None = None
        self._axes = disk_axes(member.header, axes)
        self._tiles: Tiles | None = None
        self._cleanup = ExitStack()

    def __enter__(self) -> StackSource:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._cleanup.close()

    def blocks(self, rows: int) -> Iterator[NDArray[Any]]:
        """Blocks of `rows` frames, (k, y, x), in the source's dtype and native byte order."""
        return map(self._canonical, self._disk_order_blocks(rows))

    def _canonical(self, block: NDArray[Any]) -> NDArray[Any]:
        order = tuple(self._axes.index(axis) for axis in "fyx")
        return np.ascontiguousarray(block.transpose(order), dtype=self.dtype)

    def head(self, n_bytes: int) -> NDArray[Any]:
        """The first frames, (k, y, x), about `n_bytes` of them and at least one: a look before all is read.

        Writes nothing: frames that are not contiguous are picked from one reading of the whole member.
        """
        rows = min(max(1, n_bytes // self.frame_bytes), self._shape[0])
        if self._axes[0] == "f" or self._tiles is not None:
            return next(self.blocks(rows))
        first = (slice(None),) * self._axes.index("f") + (slice(rows),)
        slabs = self._read(slab_rows(_shape_along(self._axes, self._shape), self.dtype))
        return self._canonical(np.concatenate([slab[first].copy() for slab in slabs]))

    def _disk_order_blocks(self, rows: int) -> Iterator[NDArray[Any]]:
        if self._axes[0] == "f":
            yield from self._read(rows)
            return
        if self._tiles is None:
            shape = _shape_along(self._axes, self._shape)
            self._tiles = self._cleanup.enter_context(
                retiled(
                    self._read(slab_rows(shape, self.dtype)),
                    shape,
                    self.member.header.dtype,
                    in_axis=0,
                    out_axis=self._axes.index("f"),
                    beside=self._beside,
                )
            )
        yield from self._tiles.blocks(rows)

    def _read(self, rows: int) -> Iterator[NDArray[Any]]:
        shape = _shape_along(self._axes, self._shape)
        with MemberReader(self._npz, self.member) as reader:
            yield from disk_blocks(reader, shape, self.member.header.dtype, rows)
            self.digest = reader.finish()


def slab_rows(shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    """How many rows of the first axis make about `TILE_BYTES`, at least one."""
    return max(1, TILE_BYTES // (math.prod(shape[1:]) * dtype.itemsize))


def to_disk_order(
    blocks: Iterable[NDArray[Any]], header: NpyHeader, *, axes: str, shape: tuple[int, int, int], beside: Path
) -> Iterator[NDArray[Any]]:
    """Canonical blocks (k, y, x) as blocks along the slowest axis of `header`'s bytes, in its dtype.

    The inverse of `StackSource.blocks`; spools like it where frames are not contiguous.
    """
    order = disk_axes(header, axes)
    permutation = tuple("fyx".index(axis) for axis in order)
    disk_blocks = (block.transpose(permutation).astype(header.dtype, copy=False) for block in blocks)
    if order[0] == "f":
        yield from disk_blocks
        return
    disk_shape = _shape_along(order, shape)
    with retiled(disk_blocks, disk_shape, header.dtype, in_axis=order.index("f"), out_axis=0, beside=beside) as tiles:
        yield from tiles.blocks(slab_rows(disk_shape, header.dtype))
