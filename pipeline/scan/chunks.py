"""One chunk of a store, read and checked: size, trailer and manifest must agree before it is decoded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import IntegrityError, SourceError
from pipeline.scan import codec
from pipeline.scan import manifest as mf
from pipeline.scan.quantity import AmplitudeFormula, amplitude_from_counts
from pipeline.scan.record import StoreRecord, place

SIDE_ARRAY_BYTES: Final = 8 << 20
"""Arrays under legacy/ of at most this stored size are checked when a store is opened; larger ones by verify."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ChunkRef:
    """Everything that reading one chunk needs, small enough to send to another process.

    `where` is for messages; `chunk` the decoded shape, `rows` the shape without the padding of a last chunk.
    """

    path: Path
    where: str
    promised: mf.FileDigest
    chain: codec.Chain
    dtype: np.dtype[Any]
    chunk: tuple[int, ...]
    rows: tuple[int, ...]


def chunk_ref(record: StoreRecord, name: str, index: int) -> ChunkRef:
    """Where chunk `index` of array `name` is and what was promised of it.

    Raises
    ------
    SourceError
        The array's codecs are none of ours.
    """
    array = record.arrays[name]
    chain = codec.chain_of(array.codecs)
    if chain is None:
        raise SourceError(f"{record.path}: array {name!r} has foreign codecs {array.codecs}", code="store.foreign")
    path = array.chunk_path(index)
    start, stop = array.layout.rows(index) if array.layout.shape else (0, 1)
    return ChunkRef(
        path=record.path / path,
        where=f"{record.path}: {place(array, index)}",
        promised=record.manifest[path],
        chain=chain,
        dtype=array.dtype,
        chunk=array.layout.chunk,
        rows=(stop - start, *array.layout.shape[1:]) if array.layout.shape else (),
    )


def read_ref(ref: ChunkRef) -> NDArray[Any]:
    """The rows of a chunk in the stored dtype: (k, *row shape).

    Raises
    ------
    IntegrityError
        The file is missing, or its size, CRC-32C or content are not those promised; names array, chunk, frames.
    """
    data = _checked_bytes(ref)
    out = np.empty(ref.chunk, ref.dtype)
    try:
        codec.decode(memoryview(data)[: -mf.TRAILER_BYTES], ref.chain, out)
    except IntegrityError as exc:
        raise IntegrityError(f"{ref.where}: {exc.message}", code=exc.code) from exc
    return out[tuple(map(slice, ref.rows))] if ref.rows else out


def _checked_bytes(ref: ChunkRef) -> bytes:
    try:
        data = ref.path.read_bytes()
    except FileNotFoundError as exc:
        raise IntegrityError(f"{ref.where}: missing", code="store.missing_file") from exc
    if len(data) != ref.promised.size:
        raise IntegrityError(
            f"{ref.where}: {len(data)} bytes, the manifest says {ref.promised.size}", code="store.chunk"
        )
    found = google_crc32c.value(data[: -mf.TRAILER_BYTES])
    if found != mf.trailer(data) or found != ref.promised.crc32c:
        raise IntegrityError(
            f"{ref.where}: CRC-32C is {found:08x}; the file itself says {mf.trailer(data):08x}, the manifest "
            f"{ref.promised.crc32c:08x}",
            code="store.chunk",
        )
    return data


def read_chunk(record: StoreRecord, name: str, index: int) -> NDArray[Any]:
    """The rows of chunk `index` of array `name`; see `read_ref`."""
    return read_ref(chunk_ref(record, name, index))


def read_all(record: StoreRecord, name: str) -> NDArray[Any]:
    """A whole (small) array, checked, in its stored dtype and shape."""
    array = record.arrays[name]
    if not array.layout.shape:
        return read_chunk(record, name, 0)
    return np.concatenate([read_chunk(record, name, i) for i in range(array.layout.n_chunks)])


def read_amplitude_ref(ref: ChunkRef, *, quantity: str, formula: AmplitudeFormula | None) -> NDArray[np.float32]:
    """Frames of a chunk of `diffraction` as float32 amplitude in the source's gauge: (k, detector_y, detector_x)."""
    stored = read_ref(ref)
    if quantity == "counts":
        assert formula is not None, "the schema asks for a formula where counts are stored"
        return amplitude_from_counts(stored, formula)
    return np.sqrt(stored) if quantity == "intensity" else stored


def check_side_arrays(record: StoreRecord) -> None:
    """Read every array outside the root group that is at most `SIDE_ARRAY_BYTES` large, to notice damage there."""
    for name, array in record.arrays.items():
        stored = sum(record.manifest[path].size for path in array.chunk_paths())
        if "/" in name and stored <= SIDE_ARRAY_BYTES:
            for index in range(array.layout.n_chunks):
                _checked_bytes(chunk_ref(record, name, index))
