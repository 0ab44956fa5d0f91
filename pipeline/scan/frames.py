"""The frames of a legacy stack in canonical order (frame, y, x), in blocks, in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.scan.legacy import Roles
from pipeline.scan.npz import Member, MemberReader, Npz, ReadDigest, disk_blocks
from pipeline.scan.retile import TILE_BYTES, Tiles, retiled


def disk_axes(member: Member, axes: str) -> str:
    """The order of the axes in which the bytes lie, slowest first; `axes` are those of the array's shape."""
    return axes[::-1] if member.header.fortran_order else axes


class StackSource:
    """The stack member of an NPZ; `blocks` may be asked for as often as needed, `digest` is known after once.

    Frames that lie one after the other are streamed from the file each time. Others are spooled once to a
    temporary file in the folder of `beside`.
    """

    def __init__(self, npz: Npz, roles: Roles, *, beside: Path) -> None:
        self._npz, self._roles, self._beside = npz, roles, beside
        self.member = npz.members[roles.stack]
        self.dtype: np.dtype[Any] = self.member.header.dtype.newbyteorder("=")
        self.frame_bytes = math.prod(roles.frame_shape) * self.dtype.itemsize
        self.digest: ReadDigest | None = None
        self._axes = disk_axes(self.member, roles.axes)
        self._tiles: Tiles | None = None
        self._cleanup = ExitStack()

    def __enter__(self) -> StackSource:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._cleanup.close()

    def blocks(self, rows: int) -> Iterator[NDArray[Any]]:
        """Blocks of `rows` frames, (k, y, x), in the source's dtype and native byte order."""
        order = tuple(self._axes.index(axis) for axis in "fyx")
        for block in self._disk_order_blocks(rows):
            yield np.ascontiguousarray(block.transpose(order), dtype=self.dtype)

    def head(self, rows: int) -> NDArray[Any]:
        """The first `rows` frames, (k, y, x), for a look before anything is decided."""
        return next(self.blocks(min(rows, self._roles.n_frames)))

    def _disk_order_blocks(self, rows: int) -> Iterator[NDArray[Any]]:
        if self._axes[0] == "f":
            yield from (self._squeezed(block) for block in self._read(rows))
            return
        if self._tiles is None:
            sizes = dict(zip("fyx", (self._roles.n_frames, *self._roles.frame_shape), strict=True))
            shape = tuple(sizes[axis] for axis in self._axes)
            slab = max(1, TILE_BYTES * shape[0] // max(1, self.member.size))
            incoming = (self._squeezed(block) for block in self._read(slab))
            self._tiles = self._cleanup.enter_context(
                retiled(incoming, shape, self.member.header.dtype, in_axis=0, out_axis=self._axes.index("f"),
                        beside=self._beside)
            )
        yield from self._tiles.blocks(rows)

    def _read(self, rows: int) -> Iterator[NDArray[Any]]:
        lead = self.member.header.disk_shape[0]
        with MemberReader(self._npz, self.member) as reader:
            if lead == 1 and self._leading_one():  # Fortran order puts the trailing 1 of (n, y, x, 1) first
                yield from self._rows_behind_one(reader, rows)
            else:
                yield from disk_blocks(reader, self.member, rows)
            self.digest = reader.finish()

    def _leading_one(self) -> bool:
        return self.member.header.fortran_order and len(self.member.header.shape) == 4

    def _rows_behind_one(self, reader: MemberReader, rows: int) -> Iterator[NDArray[Any]]:
        shape = self.member.header.disk_shape[1:]
        for start in range(0, shape[0], rows):
            block = np.empty((min(rows, shape[0] - start), *shape[1:]), self.member.header.dtype)
            reader.readinto(memoryview(block.reshape(-1).view(np.uint8)))
            yield block

    def _squeezed(self, block: NDArray[Any]) -> NDArray[Any]:
        return block[..., 0] if block.ndim == 4 else block
