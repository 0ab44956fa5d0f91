"""One chunk of a store, read and checked: size, trailer and manifest must agree before it is decoded."""

from __future__ import annotations

from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import IntegrityError, SourceError
from pipeline.scan import codec
from pipeline.scan import manifest as mf
from pipeline.scan.quantity import AmplitudeFormula, amplitude_from_counts
from pipeline.scan.record import StoreRecord, place

SIDE_ARRAY_BYTES = 8 << 20
"""Arrays under legacy/ of at most this stored size are checked when a store is opened; larger ones by verify."""


def read_chunk(record: StoreRecord, name: str, index: int) -> NDArray[Any]:
    """The rows of chunk `index` of array `name`, in the stored dtype: (k, *row shape).

    Raises
    ------
    IntegrityError
        The file is missing, or its size, CRC-32C or content are not those promised; names array, chunk, frames.
    """
    array = record.arrays[name]
    data = _checked_bytes(record, name, index)
    chain = codec.chain_of(array.codecs)
    if chain is None:
        raise SourceError(f"{record.path}: array {name!r} has foreign codecs {array.codecs}", code="store.foreign")
    out = np.empty(array.layout.chunk, array.dtype)
    try:
        codec.decode(memoryview(data)[: -mf.TRAILER_BYTES], chain, out)
    except IntegrityError as exc:
        raise IntegrityError(f"{record.path}: {place(array, index)}: {exc.message}", code=exc.code) from exc
    if not array.layout.shape:
        return out
    start, stop = array.layout.rows(index)
    return out[(slice(stop - start), *map(slice, array.layout.shape[1:]))]


def _checked_bytes(record: StoreRecord, name: str, index: int) -> bytes:
    array = record.arrays[name]
    path = array.chunk_path(index)
    promised = record.manifest[path]
    try:
        data = (record.path / path).read_bytes()
    except FileNotFoundError as exc:
        raise IntegrityError(f"{record.path}: {place(array, index)}: missing", code="store.missing_file") from exc
    if len(data) != promised.size:
        raise IntegrityError(
            f"{record.path}: {place(array, index)}: {len(data)} bytes, the manifest says {promised.size}",
            code="store.chunk",
        )
    found = google_crc32c.value(data[: -mf.TRAILER_BYTES])
    if found != mf.trailer(data) or found != promised.crc32c:
        raise IntegrityError(
            f"{record.path}: {place(array, index)}: CRC-32C is {found:08x}; the file itself says "
            f"{mf.trailer(data):08x}, the manifest {promised.crc32c:08x}",
            code="store.chunk",
        )
    return data


def read_all(record: StoreRecord, name: str) -> NDArray[Any]:
    """A whole (small) array, checked, in its stored dtype and shape."""
    array = record.arrays[name]
    if not array.layout.shape:
        return read_chunk(record, name, 0)
    return np.concatenate([read_chunk(record, name, i) for i in range(array.layout.n_chunks)])


def read_amplitude(record: StoreRecord, index: int, *, formula: AmplitudeFormula | None) -> NDArray[np.float32]:
    """Frames of chunk `index` as float32 amplitude in the source's gauge: (k, detector_y, detector_x)."""
    stored = read_chunk(record, "diffraction", index)
    quantity = record.arrays["diffraction"].attrs["quantity"]
    if quantity == "counts":
        assert formula is not None
        return amplitude_from_counts(stored, formula)
    return np.sqrt(stored) if quantity == "intensity" else stored


def check_side_arrays(record: StoreRecord) -> None:
    """Read every array outside the root group that is at most `SIDE_ARRAY_BYTES` large, to notice damage there."""
    for name, array in record.arrays.items():
        stored = sum(record.manifest[path].size for path in array.chunk_paths())
        if "/" in name and stored <= SIDE_ARRAY_BYTES:
            for index in range(array.layout.n_chunks):
                _checked_bytes(record, name, index)
