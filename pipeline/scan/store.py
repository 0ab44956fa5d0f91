"""Canonical stores: written whole or not at all, opened lazily and checked.

`write_scan` and `open_stored` speak the stored form (counts stay counts). `open_scan` hands out float32 amplitude
in the gauge of the source, whatever is stored.
"""

from __future__ import annotations

import functools
import itertools
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import dask.array as da
import numpy as np
import numpy.typing as npt
import xarray as xr
import zarr
from numpy.typing import NDArray

from pipeline.errors import IntegrityError, SchemaError, TargetExistsError
from pipeline.scan import codec
from pipeline.scan import manifest as mf
from pipeline.scan.aside import beside
from pipeline.scan.chunks import ChunkRef, check_side_arrays, chunk_ref, read_amplitude_ref, read_chunk, read_ref
from pipeline.scan.layout import ChunkLayout, plan_chunks
from pipeline.scan.npy import raw_bytes
from pipeline.scan.npz import crc32
from pipeline.scan.quantity import AmplitudeFormula
from pipeline.scan.record import ArrayRecord, StoreRecord, is_store, open_record, place
from pipeline.scan.schema import SCAN_SCHEMA, validate_scan, verdicts
from pipeline.scan.staging import staged_folder

_TRIAL_FRAMES: Final = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class ArraySpec:
    """An array to write: store path, dims, dtype, cut, codec chain and attributes."""

    name: str
    dims: tuple[str, ...]
    dtype: np.dtype[Any]
    layout: ChunkLayout
    chain: codec.Chain
    attrs: Mapping[str, Any]


def spec_of(
    name: str,
    dims: tuple[str, ...],
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    *,
    attrs: Mapping[str, Any],
    chain: codec.Chain | None = None,
) -> ArraySpec:
    """The spec of an array with the standard cut and, unless one is given, the standard chain of its dtype."""
    return ArraySpec(
        name=name,
        dims=dims,
        dtype=dtype,
        layout=plan_chunks(shape, dtype.itemsize),
        attrs=attrs,
        chain=chain or codec.chain_for(dtype),
    )


def variable_attrs(name: str, **extra: Any) -> dict[str, Any]:
    """Attributes of a schema variable: its long name, its unit where it has only one, and `extra`."""
    variable = SCAN_SCHEMA[name]
    units = {"units": variable.units[0]} if variable.units != (None,) and len(variable.units) == 1 else {}
    return {"long_name": variable.long_name, **units, **extra}


class StoreWriter:
    """Writes a store into a staging folder: chunks first, metadata and manifest last."""

    def __init__(self, stage: Path) -> None:
        self._stage = stage
        self._specs: dict[str, ArraySpec] = {}
        self._files: dict[str, mf.FileDigest] = {}
        self._decoded: dict[str, int] = {}
        self._totals: dict[str, int] = {}

    def add(self, spec: ArraySpec, blocks: Iterable[NDArray[Any]]) -> None:
        """Write an array from `blocks`, one per chunk in order, each the rows of that chunk.

        An array of the same name that was begun before (and given up) is replaced.
        """
        self._forget(spec.name)
        (self._stage / spec.name).mkdir(parents=True, exist_ok=True)
        n_written = sum(1 for _ in beside(functools.partial(self._write_chunk, spec), enumerate(blocks)))
        assert n_written == spec.layout.n_chunks, (spec.name, n_written)
        self._specs[spec.name] = spec

    def _write_chunk(self, spec: ArraySpec, numbered: tuple[int, NDArray[Any]]) -> None:
        index, block = numbered
        path = f"{spec.name}/{spec.layout.key(index)}"
        data = codec.encode(_padded(block, spec), spec.chain)
        (self._stage / path).write_bytes(data)
        self._files[path] = mf.digest(path, data)
        self._decoded[path] = crc32(raw_bytes(block))
        if spec.name == "diffraction" and spec.dtype.kind == "u":
            self._totals[path] = int(block.sum(dtype=np.uint64))

    def _forget(self, name: str) -> None:
        for path in [p for p in self._files if p.startswith(f"{name}/")]:
            (self._stage / path).unlink()
            del self._files[path], self._decoded[path]
            self._totals.pop(path, None)
        self._specs.pop(name, None)

    @property
    def counts_total(self) -> int | None:
        """The sum of all counts of `diffraction`; None where amplitude or intensity is stored."""
        return sum(self._totals.values()) if self._totals else None

    def legacy_name(self, member: str) -> str:
        """A free store path under legacy/ for a member of the source, whose name is never used as a path."""
        plain = re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,99}", member) is not None
        taken = {name.lower() for name in self._specs}
        if plain and member.lower() != "c" and f"legacy/{member}".lower() not in taken:
            return f"legacy/{member}"
        return next(n for n in (f"legacy/member-{i}" for i in itertools.count()) if n not in taken)

    def finish_scan(self, attrs: Mapping[str, Any]) -> StoreRecord:
        """Write metadata and manifest of a scan, proven to be one; the record of the staged store, re-read from disk.

        Raises
        ------
        SchemaError
            What was written is no scan; lists every violation.
        """
        described = self._described(attrs)
        return self.finish({**validate_scan(described).attrs, "validation": verdicts(described)})

    def finish(self, attrs: Mapping[str, Any]) -> StoreRecord:
        """Write metadata and manifest of any store; the record of the staged store, re-read from disk."""
        root = zarr.create_group(store=str(self._stage), zarr_format=3)
        if any(name.startswith("legacy/") for name in self._specs):
            note = "members of the source that the schema does not hold bit for bit"
            root.create_group("legacy", attributes={"description": note})
        for spec in self._specs.values():
            _create_array(root, spec)
        for path in sorted(self._stage.rglob(mf.ROOT_METADATA)):
            name = path.relative_to(self._stage).as_posix()
            if name != mf.ROOT_METADATA:
                self._files[name] = mf.digest(name, path.read_bytes())
        root.update_attributes({**attrs, "files_sha256": mf.files_sha256(self._files)})
        with warnings.catch_warnings():  # readers without consolidated metadata warn; writers that add it are warned
            warnings.filterwarnings("ignore", message="Consolidated metadata is currently not part")
            zarr.consolidate_metadata(str(self._stage))
        metadata = (self._stage / mf.ROOT_METADATA).read_bytes()
        self._files[mf.ROOT_METADATA] = mf.digest(mf.ROOT_METADATA, metadata)
        (self._stage / mf.MANIFEST_NAME).write_bytes(mf.encode(self._files))
        return open_record(self._stage)

    def _described(self, attrs: Mapping[str, Any]) -> xr.Dataset:
        """The root group as a dataset without values, for the schema to look at."""
        variables = {
            name: (spec.dims, np.broadcast_to(spec.dtype.type(0), spec.layout.shape), dict(spec.attrs))
            for name, spec in self._specs.items()
            if "/" not in name
        }
        return xr.Dataset(variables, attrs=dict(attrs))

    def check(self, record: StoreRecord, *, skip: Sequence[str] = ()) -> None:
        """Decode every chunk that was written, but those of `skip`, and compare it with what was to be written.

        Raises
        ------
        IntegrityError
            A chunk on disk is not the block that was handed to `add`.
        """
        for name, array in record.arrays.items():
            for index in range(0 if name in skip else array.layout.n_chunks):
                if crc32(raw_bytes(read_chunk(record, name, index))) != self._decoded[array.chunk_path(index)]:
                    raise IntegrityError(
                        f"{record.path}: {place(array, index)}: read back, it differs from what was written",
                        code="store.read_back",
                    )


def _padded(block: NDArray[Any], spec: ArraySpec) -> NDArray[Any]:
    """The block as a whole chunk of the stored dtype; Zarr stores the last chunk at full size."""
    assert block.dtype == spec.dtype, (spec.name, block.dtype, spec.dtype)
    if block.shape == spec.layout.chunk:
        return block
    whole = np.zeros(spec.layout.chunk, spec.dtype)
    whole[tuple(map(slice, block.shape))] = block
    return whole


def _create_array(root: zarr.Group, spec: ArraySpec) -> None:
    root.create_array(
        spec.name,
        shape=spec.layout.shape,
        chunks=spec.layout.chunk,
        dtype=spec.dtype,
        compressors=codec.zarr_chain(spec.chain, spec.dtype.itemsize),
        filters=None,
        fill_value=spec.dtype.type(0),
        chunk_key_encoding={"name": "default", "separator": "."},
        dimension_names=spec.dims,
        attributes=dict(spec.attrs),
    )


def refuse_foreign(target: Path) -> None:
    """Refuse to overwrite anything but a store: a file, another folder, a store with files of somebody else's inside.

    Raises
    ------
    TargetExistsError
    """
    if not target.exists() and not target.is_symlink():
        return
    if target.is_symlink() or not (target.is_dir() and is_store(target)):
        raise TargetExistsError(
            f"{target}: is no store, so it is not overwritten", code="target.foreign", hint="another name"
        )
    ours = (mf.ROOT_METADATA, mf.MANIFEST_NAME)
    strange = [p for p in mf.listing(target) if p.rsplit("/", 1)[-1] not in ours and not mf.looks_like_chunk(p)]
    if strange:
        raise TargetExistsError(
            f"{target}: holds {strange[0]}, which is no part of a store, so it is not overwritten",
            code="target.foreign",
            hint="another name",
        )


def write_scan(ds: xr.Dataset, path: Path | str, *, overwrite: bool = False) -> str:
    """Write a scan in stored form to `path`, whole or not at all; its `store_sha256`.

    Computes the dataset chunk by chunk, and reads every chunk back. `schema.root_attributes` makes the attributes;
    `photons_per_frame` is measured where counts are stored.

    Raises
    ------
    SchemaError
        The dataset breaks the schema, or frames hold negative or non-finite values.
    TargetExistsError
        Something is at `path` and `overwrite` is false, or it is no store of ours.
    """
    validate_scan(ds)
    if overwrite:
        refuse_foreign(Path(path))
    with staged_folder(Path(path), overwrite=overwrite) as stage:
        writer = StoreWriter(stage)
        for name, variable in ds.variables.items():
            spec = spec_of(
                str(name),
                tuple(map(str, variable.dims)),
                variable.shape,
                variable.dtype,
                attrs=variable.attrs,
                chain=_trial_chain(str(name), variable),
            )
            writer.add(spec, _computed_blocks(spec, variable))
        attrs = {str(name): value for name, value in ds.attrs.items()}
        attrs["provenance"] = _as_derived(attrs["provenance"])
        if writer.counts_total is not None:
            measured = writer.counts_total / ds.sizes["frame"]
            attrs["photons_per_frame"] = {**attrs["photons_per_frame"], "measured": measured}
        record = writer.finish_scan(attrs)
        writer.check(record)
    return record.store_sha256


def _as_derived(provenance: Mapping[str, Any]) -> Mapping[str, Any]:
    """Provenance of a dataset that was opened and is written anew: the source's members are not in it any more."""
    return {"derived_from": provenance} if "members" in provenance else provenance


def _trial_chain(name: str, variable: xr.Variable) -> codec.Chain | None:
    if name != "diffraction" or variable.dtype != np.float32:
        return None
    return codec.smaller_chain(np.asarray(variable[:_TRIAL_FRAMES]))


def _computed_blocks(spec: ArraySpec, variable: xr.Variable) -> Iterable[NDArray[Any]]:
    for index in range(spec.layout.n_chunks):
        start, stop = spec.layout.rows(index)
        block = np.asarray(variable[start:stop])
        if spec.name == "diffraction" and not (np.isfinite(block).all() and (block >= 0).all()):
            raise SchemaError(f"frames {start}-{stop - 1} hold negative or non-finite values", code="scan.values")
        if spec.name in ("position_y", "position_x") and not np.isfinite(block).all():
            raise SchemaError(f"{spec.name} holds values that are not finite", code="scan.values")
        yield block


def open_stored(path: Path | str) -> xr.Dataset:
    """The scan as it is stored, lazily (dask, one block per chunk); every read is checked. Reads no frame.

    Raises
    ------
    NotFoundError, SourceError, IntegrityError
        See `record.open_record`; later reads raise IntegrityError naming array, chunk and frames.
    """
    return _dataset(_opened(path), diffraction=None)


def open_scan(path: Path | str) -> xr.Dataset:
    """The scan with `diffraction` as float32 amplitude in the source's gauge; otherwise like `open_stored`.

    The attribute `quantity` of `diffraction` is then "amplitude", `stored_quantity` says what the store holds.
    Amplitudes times `photons_scale` are sqrt(photon); the scale is None where the source does not tell it.
    """
    record = _opened(path)
    array = record.arrays["diffraction"]
    read = functools.partial(read_amplitude_ref, quantity=array.attrs["quantity"], formula=formula_of(record))
    frames = _lazy(record, array, read, np.float32)
    attrs = {
        **array.attrs,
        "quantity": "amplitude",
        "stored_quantity": array.attrs["quantity"],
        "units": "sqrt(photon)" if record.attrs["photons_scale"] == 1.0 else "1",
    }
    return _dataset(record, diffraction=xr.Variable(array.dims, frames, attrs))


def _opened(path: Path | str) -> StoreRecord:
    record = open_record(Path(path).absolute())
    check_side_arrays(record)
    return record


def _dataset(record: StoreRecord, *, diffraction: xr.Variable | None) -> xr.Dataset:
    variables = {
        name: (
            array.dims,
            _lazy(record, array, read_ref, array.dtype),
            dict(array.attrs),
        )
        for name, array in record.variables.items()
    }
    stored = validate_scan(xr.Dataset(variables, attrs=dict(record.attrs)))
    return stored if diffraction is None else stored.assign(diffraction=diffraction)


def formula_of(record: StoreRecord) -> AmplitudeFormula | None:
    """How amplitudes follow from the stored counts; None where amplitude or intensity is stored."""
    name = record.attrs.get("amplitude_formula")
    if name is None:
        return None
    return AmplitudeFormula(name=name, photons_scale=float(record.attrs["photons_scale"]))


def _lazy(
    record: StoreRecord, array: ArrayRecord, read: Callable[[ChunkRef], NDArray[Any]], dtype: npt.DTypeLike
) -> da.Array:
    """A dask array of one task per chunk, which holds what that chunk needs and no more."""
    shape, n_chunks = array.layout.shape, array.layout.n_chunks
    token = f"{array.name}-{np.dtype(dtype).name}-{record.store_sha256}"
    rows = tuple(stop - start for start, stop in map(array.layout.rows, range(n_chunks)))
    graph = {(token, i, *(0 for _ in shape[1:])): (read, chunk_ref(record, array.name, i)) for i in range(n_chunks)}
    chunks = (rows, *((n,) for n in shape[1:]))
    return da.Array(graph, token, chunks, dtype=dtype)  # type: ignore[no-untyped-call]  # dask has no types
