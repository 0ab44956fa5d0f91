"""What a store says about itself, checked against its manifest. Reads JSON only: no zarr, no array data.

Checked on opening: the manifest is canonical, it and the root's attributes vouch for each other, every zarr.json
has its promised bytes, every listed file is there in its promised size. Chunks are checked when they are read
(`chunks`), unlisted files by `pipeline.verify`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from pipeline.errors import IntegrityError, NotFoundError, SourceError
from pipeline.scan import manifest as mf
from pipeline.scan.layout import ChunkLayout

_DTYPES: Final = frozenset(
    {
        "bool",
        "int8",
        "int16",
        "int32",
        "int64",
        "uint8",
        "uint16",
        "uint32",
        "uint64",
        "float16",
        "float32",
        "float64",
        "complex64",
        "complex128",
    }
)
_MAX_METADATA_BYTES: Final = 64 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class ArrayRecord:
    """One array of a store, as its zarr.json describes it."""

    name: str
    dims: tuple[str, ...]
    dtype: np.dtype[Any]
    layout: ChunkLayout
    codecs: tuple[Mapping[str, Any], ...]
    attrs: Mapping[str, Any]

    @property
    def nbytes(self) -> int:
        """Decoded size in bytes."""
        return math.prod(self.layout.shape) * self.dtype.itemsize

    def chunk_path(self, index: int) -> str:
        """Store path of chunk `index`."""
        return f"{self.name}/{self.layout.key(index)}"

    def chunk_paths(self) -> Iterator[str]:
        """Store paths of all chunks in order."""
        return (self.chunk_path(i) for i in range(self.layout.n_chunks))


@dataclass(frozen=True, kw_only=True, slots=True)
class StoreRecord:
    """A store whose metadata were checked: its arrays (by store path), root attributes and identity."""

    path: Path
    arrays: Mapping[str, ArrayRecord]
    attrs: Mapping[str, Any]
    manifest: mf.Manifest
    store_sha256: str

    @property
    def variables(self) -> dict[str, ArrayRecord]:
        """The arrays of the root group."""
        return {name: array for name, array in self.arrays.items() if "/" not in name}

    @property
    def stored_bytes(self) -> int:
        """Size of all listed files."""
        return sum(d.size for d in self.manifest.values())


def is_store(path: Path) -> bool:
    """True where a folder holds a store's root metadata or its manifest."""
    return (path / mf.ROOT_METADATA).is_file() or (path / mf.MANIFEST_NAME).is_file()


def open_record(path: Path) -> StoreRecord:
    """The record of the store at `path`.

    Raises
    ------
    NotFoundError
        Nothing is there.
    SourceError
        A folder is there, but no store of ours.
    IntegrityError
        Metadata differ from the manifest, or a listed file is missing or has another size.
    """
    if not path.exists():
        raise NotFoundError(f"{path}: no such store", code="store.not_found")
    if not is_store(path):
        raise SourceError(f"{path}: not a ptychozarr store (no zarr.json, no manifest.json)", code="store.foreign")
    data = _read(path, mf.MANIFEST_NAME)
    manifest = mf.decode(data, where=str(path / mf.MANIFEST_NAME))
    documents = {p: _checked_json(path, p, manifest) for p in manifest if not mf.is_chunk(p)}
    attrs = _root_attributes(path, documents, manifest)
    arrays = _arrays(path, documents)
    _check_files(path, manifest, arrays)
    return StoreRecord(path=path, arrays=arrays, attrs=attrs, manifest=manifest, store_sha256=mf.store_sha256(data))


def _read(root: Path, name: str) -> bytes:
    try:
        if (root / name).stat().st_size > _MAX_METADATA_BYTES:
            raise IntegrityError(f"{root / name}: larger than any metadata of ours", code="store.metadata")
        return (root / name).read_bytes()
    except FileNotFoundError as exc:
        raise IntegrityError(f"{root / name}: missing", code="store.missing_file") from exc


def _checked_json(root: Path, name: str, manifest: mf.Manifest) -> Mapping[str, Any]:
    data = _read(root, name)
    damage = mf.damage_of(name, data, manifest[name])
    if damage is not None:
        raise IntegrityError(f"{root / name}: {damage}", code="store.metadata")
    document = json.loads(data)
    assert isinstance(document, dict), name
    return document


def _root_attributes(
    root: Path, documents: Mapping[str, Mapping[str, Any]], manifest: mf.Manifest
) -> Mapping[str, Any]:
    if mf.ROOT_METADATA not in documents:
        raise IntegrityError(f"{root / mf.MANIFEST_NAME}: does not list {mf.ROOT_METADATA}", code="store.manifest")
    attrs = documents[mf.ROOT_METADATA].get("attributes", {})
    if attrs.get("files_sha256") != mf.files_sha256(manifest):
        raise IntegrityError(
            f"{root / mf.MANIFEST_NAME}: was changed; its entries are not those that the store was written with",
            code="store.manifest",
        )
    return {name: value for name, value in attrs.items() if name != "files_sha256"}


def parse_arrays(root: Path, paths: Sequence[str]) -> Mapping[str, ArrayRecord]:
    """The arrays that these zarr.json files describe, as far as they can be read: for naming what is damaged."""
    arrays: dict[str, ArrayRecord] = {}
    for path in paths:
        try:
            arrays |= _arrays(root, {path: json.loads((root / path).read_bytes())})
        except (OSError, ValueError, AttributeError):
            continue
    return arrays


def _arrays(root: Path, documents: Mapping[str, Mapping[str, Any]]) -> dict[str, ArrayRecord]:
    found = [
        _array(root, path.removesuffix(f"/{mf.ROOT_METADATA}"), document)
        for path, document in sorted(documents.items())
        if document.get("node_type") == "array"
    ]
    return {array.name: array for array in found}


def _array(root: Path, name: str, document: Mapping[str, Any]) -> ArrayRecord:
    try:
        shape = tuple(int(n) for n in document["shape"])
        chunk = tuple(int(n) for n in document["chunk_grid"]["configuration"]["chunk_shape"])
        ours = (
            document["zarr_format"] == 3
            and document["chunk_grid"]["name"] == "regular"
            and document["chunk_key_encoding"]["configuration"]["separator"] == "."
            and document["data_type"] in _DTYPES
            and all(n >= 0 for n in shape)
            and all(n >= 1 for n in chunk)
            and len(chunk) == len(shape)
            and chunk[1:] == tuple(max(1, n) for n in shape[1:])
        )
        if ours:
            return ArrayRecord(
                name=name,
                dims=tuple(document.get("dimension_names") or ()),
                dtype=np.dtype(document["data_type"]),
                layout=ChunkLayout(shape=shape, chunk=chunk),
                codecs=tuple(document["codecs"]),
                attrs=document.get("attributes", {}),
            )
    except (KeyError, TypeError, ValueError, AttributeError) as exc:
        raise SourceError(f"{root}: {name}/zarr.json: {exc!r}", code="store.foreign") from exc
    raise SourceError(
        f"{root}: array {name!r} is not laid out as ours (whole rows per chunk, plain numbers)", code="store.foreign"
    )


def _check_files(root: Path, manifest: mf.Manifest, arrays: Mapping[str, ArrayRecord]) -> None:
    for array in arrays.values():
        for index, path in enumerate(array.chunk_paths()):
            if path not in manifest:
                raise IntegrityError(f"{root}: {place(array, index)}: not in the manifest", code="store.missing_file")
    for path, promised in manifest.items():
        try:
            size = (root / path).stat().st_size
        except FileNotFoundError as exc:
            raise IntegrityError(f"{root}: {where_is(arrays, path)}: missing", code="store.missing_file") from exc
        if size != promised.size:
            raise IntegrityError(
                f"{root}: {where_is(arrays, path)}: {size} bytes, the manifest says {promised.size}", code="store.chunk"
            )


def place(array: ArrayRecord, index: int) -> str:
    """Array, chunk and rows of a chunk, for messages: `diffraction chunk 3 (frames 192-255), file ...`."""
    start, stop = array.layout.rows(index) if array.layout.shape else (0, 1)
    rows = "frames" if array.dims[:1] == ("frame",) else "rows"
    return f"{array.name} chunk {index} ({rows} {start}-{stop - 1}), file {array.chunk_path(index)}"


def where_is(arrays: Mapping[str, ArrayRecord], path: str) -> str:
    """What a store path holds, for messages."""
    folder, _, key = path.rpartition("/")
    parts: Sequence[str] = key.split(".")
    if folder in arrays and parts[0] == "c":
        index = int(parts[1]) if len(parts) > 1 and parts[1].isdigit() else 0
        if index < arrays[folder].layout.n_chunks:
            return place(arrays[folder], index)
    return path
