"""The members of a source NPZ from its store, byte by byte, as provenance recorded them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import SourceError
from pipeline.scan.chunks import read_all, read_chunk
from pipeline.scan.frames import to_disk_order
from pipeline.scan.npy import NpyHeader, npy_prefix, parse_header, raw_bytes
from pipeline.scan.npz_write import OutMember
from pipeline.scan.record import StoreRecord
from pipeline.scan.store import formula_of
from pipeline.scan.storing import source_block

_PLAIN_NAMES: Final = {
    "diffraction": "diffraction",
    "position_x": "xcoords",
    "position_y": "ycoords",
    "probe": "probeGuess",
    "object": "objectGuess",
    "label": "label",
    "frame_index": "scan_index",
}

Entry = Mapping[str, Any]


def member_entries(record: StoreRecord) -> Sequence[Entry]:
    """What provenance says of each member of the source, in the order of the file; empty if there was no NPZ."""
    entries: Sequence[Entry] = record.attrs["provenance"].get("members", ())
    return entries


def source_members(record: StoreRecord, *, beside: Path) -> Iterator[OutMember]:
    """The members of the source in its order, ready to be written; values are read when their turn comes.

    Temporary files, where frames are not contiguous in the source, go to the folder of `beside`.

    Raises
    ------
    SourceError
        The store was not made from an NPZ; see `plain_members`.
    """
    entries = member_entries(record)
    if not entries:
        raise SourceError(
            f"{record.path}: was not converted from an NPZ, so there is none to give back", code="store.no_source"
        )
    by_name = {entry["name"]: entry for entry in entries}
    for entry in entries:
        content = by_name[entry["twin_of"]] if entry["twin_of"] else entry
        header = parse_header(entry["npy_header"].encode("latin1"))
        yield OutMember(
            name=entry["name"],
            prefix=header.prefix,
            deflated=entry["deflated"],
            blocks=_bytes_of(record, content, header, beside),
        )


def plain_members(record: StoreRecord) -> Iterator[OutMember]:
    """The scan under the usual legacy names, for a store that was not made from an NPZ."""
    for variable, name in _PLAIN_NAMES.items():
        if variable in record.arrays:
            array = record.arrays[variable]
            yield OutMember(
                name=name,
                prefix=npy_prefix(array.layout.shape, array.dtype),
                deflated=False,
                blocks=map(raw_bytes, _chunks(record, variable)),
            )
    if "valid" in record.arrays:
        bad = ~read_all(record, "valid")
        yield OutMember(
            name="bad_pixels", prefix=npy_prefix(bad.shape, bad.dtype), deflated=False, blocks=[raw_bytes(bad)]
        )


def _bytes_of(record: StoreRecord, entry: Entry, header: NpyHeader, beside: Path) -> Iterator[memoryview]:
    if entry["legacy"] is not None:
        dtype = np.dtype(np.uint8) if entry["raw"] else header.dtype
        yield from (raw_bytes(block.astype(dtype, copy=False)) for block in _chunks(record, entry["legacy"]))
    elif entry["variable"] in ("diffraction", "label"):
        yield from map(raw_bytes, _frames(record, entry["variable"], header, beside))
    elif header.fortran_order:
        yield raw_bytes(read_all(record, entry["variable"]).astype(header.dtype).reshape(header.shape).T)
    else:
        yield from (raw_bytes(block.astype(header.dtype)) for block in _chunks(record, entry["variable"]))


def _frames(record: StoreRecord, variable: str, header: NpyHeader, beside: Path) -> Iterator[NDArray[Any]]:
    dialect = record.attrs["provenance"]["dialect"]
    frames, height, width = record.arrays[variable].layout.shape
    blocks: Iterator[NDArray[Any]] = _chunks(record, variable)
    axes = "fyx"
    if variable == "diffraction":
        axes, formula = dialect["axes"], formula_of(record)
        amplitude = dialect["quantity"] == "amplitude"
        native = header.dtype.newbyteorder("=")
        blocks = (source_block(block, native, formula, amplitude=amplitude) for block in blocks)
    return to_disk_order(blocks, header, axes=axes, shape=(frames, height, width), beside=beside)


def _chunks(record: StoreRecord, name: str) -> Iterator[NDArray[Any]]:
    return (read_chunk(record, name, index) for index in range(record.arrays[name].layout.n_chunks))
