"""Small scans and legacy files, made the way real writers make them."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Mapping
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
        "objectGuess": make_probe(20, 21, seed=3)[0],
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


def write_zip(path: Path, files: list[tuple[str, bytes]], *, deflated: bool = False) -> Path:
    """A zip of raw members in this order; duplicate names are written as asked."""
    method = zipfile.ZIP_DEFLATED if deflated else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in files:
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), data, compress_type=method)
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
