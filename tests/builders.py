"""Small scans and legacy files, made the way real writers make them."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from pipeline.scan.quantity import DIVIDE_F64
from pipeline.scan.schema import root_attributes

Array = NDArray[Any]


def make_counts(n_frames: int = 7, height: int = 8, width: int = 8, *, mean: float = 3.0, seed: int = 0) -> Array:
    """Poisson counts, (n, H, W) uint16."""
    return np.random.default_rng(seed).poisson(mean, (n_frames, height, width)).astype(np.uint16)


def make_probe(height: int = 8, width: int = 8, *, modes: int = 1, seed: int = 1) -> Array:
    """A complex64 probe, (mode, H, W)."""
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(modes, height, width)) + 1j * rng.normal(size=(modes, height, width))).astype(np.complex64)


def legacy_members(counts: Array | None = None, *, key: str = "diffraction", **more: Array) -> dict[str, Array]:
    """The members of a plain legacy file; `more` adds or replaces, None removes."""
    counts = make_counts() if counts is None else counts
    n, height, width = counts.shape[:3]
    rng = np.random.default_rng(2)
    members: dict[str, Any] = {
        key: counts,
        "xcoords": rng.uniform(10, 50, n),
        "ycoords": rng.uniform(10, 50, n),
        "probeGuess": make_probe(height, width)[0],
        "objectGuess": make_probe(64, 65, seed=3)[0],
        "scan_index": np.zeros(n, np.int64),
    }
    members |= more
    return {name: np.asarray(value) for name, value in members.items() if value is not None}


def write_legacy_npz(path: Path, members: Mapping[str, Array], *, deflated: bool = False) -> Path:
    """Write members with NumPy, as legacy tools did; object arrays become pickles, as theirs did."""
    (np.savez_compressed if deflated else np.savez)(path, **members)
    return path


def object_metadata(content: object) -> Array:
    """A 0-d object array around JSON text, the encoding of `_metadata` that needs a pickle to write."""
    array = np.empty((), dtype=object)
    array[()] = json.dumps(content)
    return array


def npy_bytes(array: Array, *, pickle_protocol: int = 4) -> bytes:
    """The .npy bytes of an array; objects are pickled with the given protocol."""
    buffer = io.BytesIO()
    if not array.dtype.hasobject:
        np.lib.format.write_array(buffer, array, allow_pickle=False)
        return buffer.getvalue()
    header = {"descr": "|O", "fortran_order": False, "shape": array.shape}
    np.lib.format.write_array_header_1_0(buffer, header)
    return buffer.getvalue() + pickle.dumps(array, protocol=pickle_protocol)


def npy_with_header(fields: object, data: bytes = b"", *, version: int = 1, length: int | None = None) -> bytes:
    """A .npy file whose header says `fields` (a dict, or the text itself), padded with blanks to `length` bytes."""
    text = (fields if isinstance(fields, str) else repr(fields)).encode("utf-8" if version == 3 else "latin1")
    text = text.ljust((length or len(text) + 1) - 1) + b"\n"
    return b"\x93NUMPY" + bytes([version, 0]) + len(text).to_bytes(2 if version == 1 else 4, "little") + text + data


def npy_files(members: Mapping[str, Array]) -> list[tuple[str, bytes]]:
    """File name and .npy bytes of each member, for `write_zip`."""
    return [(f"{name}.npy", npy_bytes(array)) for name, array in members.items()]


def write_zip(path: Path, files: list[tuple[str, bytes]], *, deflated: bool = False) -> Path:
    """A zip of raw members in this order; duplicate names are written as asked."""
    method = zipfile.ZIP_DEFLATED if deflated else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in files:
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), data, compress_type=method)
    return path


@dataclass(frozen=True, kw_only=True)
class ZipEntry:
    """A member of a hand-made zip: `data` as it lies in the file, `plain` what it inflates to.

    `local` and `listed` replace fields of the record's header and of the directory's entry: name, flags, method, crc,
    packed, size. `at` points the directory elsewhere (no record is written), `hidden` leaves it out of the directory.
    """

    name: bytes
    data: bytes = b""
    plain: bytes | None = None
    method: int = zipfile.ZIP_STORED
    local: Mapping[str, Any] = field(default_factory=dict)
    listed: Mapping[str, Any] = field(default_factory=dict)
    after: bytes = b""
    at: int | None = None
    hidden: bool = False

    def fields(self) -> dict[str, Any]:
        """What an honest header says."""
        plain = self.data if self.plain is None else self.plain
        return {
            "name": self.name,
            "flags": 0,
            "method": self.method,
            "crc": zlib.crc32(plain),
            "packed": len(self.data),
            "size": len(plain),
        }


def deflated(data: bytes) -> bytes:
    """Raw deflate, as zip members hold it."""
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(data) + packer.flush()


def craft_zip(path: Path, entries: Sequence[ZipEntry], *, counted: int | None = None) -> Path:
    """A zip made byte by byte, so that it can lie."""
    body, directory, n_listed = b"", b"", 0
    for entry in entries:
        at = len(body) if entry.at is None else entry.at
        if entry.at is None:
            f = entry.fields() | entry.local
            numbers = (20, f["flags"], f["method"], 0, 33, f["crc"], f["packed"], f["size"], len(f["name"]), 0)
            body += struct.pack("<4sHHHHHLLLHH", b"PK\x03\x04", *numbers) + f["name"] + entry.data + entry.after
        if not entry.hidden:
            f = entry.fields() | entry.listed
            numbers = (20, 20, f["flags"], f["method"], 0, 33, f["crc"], f["packed"], f["size"], len(f["name"]))
            directory += struct.pack("<4sHHHHHHLLLHHHHHLL", b"PK\x01\x02", *numbers, 0, 0, 0, 0, 0, at) + f["name"]
            n_listed += 1
    n = n_listed if counted is None else counted
    end = struct.pack("<4sHHHHLLH", b"PK\x05\x06", 0, 0, n, n, len(directory), len(body), 0)
    path.write_bytes(body + directory + end)
    return path


def read_members(path: Path) -> dict[str, bytes]:
    """Each member's raw .npy bytes."""
    with zipfile.ZipFile(path) as archive:
        return {name.removesuffix(".npy"): archive.read(name) for name in archive.namelist()}


def make_scan(
    n_frames: int = 7, side: int = 8, *, modes: int = 1, quantity: str = "counts", **attrs: object
) -> xr.Dataset:
    """A small scan in stored form."""
    rng = np.random.default_rng(4)
    counts = make_counts(n_frames, side, side)
    frames = counts if quantity == "counts" else np.sqrt(counts, dtype=np.float32) * np.float32(0.37)
    unit = "photon" if quantity == "counts" else "1"
    known = {"photons_scale": 1.0, "amplitude_formula": DIVIDE_F64} if quantity == "counts" else {}
    return xr.Dataset(
        {
            "diffraction": (("frame", "detector_y", "detector_x"), frames, {"quantity": quantity, "units": unit}),
            "position_y": (("frame",), rng.uniform(10, 50, n_frames), {"units": "pixel"}),
            "position_x": (("frame",), rng.uniform(10, 50, n_frames), {"units": "pixel"}),
            "frame_index": (("frame",), np.arange(n_frames, dtype=np.int64)),
            "probe": (("probe_mode", "probe_y", "probe_x"), make_probe(side, side, modes=modes)),
        },
        attrs=root_attributes(**known, **attrs),
    )


def tree_bytes(root: Path) -> dict[str, bytes]:
    """Every file of a folder by its relative path."""
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}
