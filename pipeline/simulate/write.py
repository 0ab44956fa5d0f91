"""A simulated scan on disk: as a canonical store, or as a legacy NPZ in one of the main dialects."""

from __future__ import annotations

import functools
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from pipeline.errors import ConfigError, IntegrityError, PipelineError
from pipeline.scan.audit import audit_store
from pipeline.scan.frames import to_disk_order
from pipeline.scan.layout import plan_chunks
from pipeline.scan.npy import npy_prefix, parse_header, raw_bytes
from pipeline.scan.npz_write import OutMember, array_member, write_npz
from pipeline.scan.provenance import library_versions
from pipeline.scan.quantity import DIVIDE_F64
from pipeline.scan.record import StoreRecord, open_record
from pipeline.scan.schema import SCAN_SCHEMA, root_attributes
from pipeline.scan.staging import staged_file
from pipeline.scan.store import variable_attrs, write_scan
from pipeline.simulate.scan import BLOCK_FRAMES, Simulation

METADATA_SCHEMA = "1.0.0"


@dataclass(frozen=True, kw_only=True, slots=True)
class Dialect:
    """How a legacy file spells a scan.

    `quantity` is counts, amplitude (sqrt of counts) or scaled-amplitude (divided by sqrt(photons)/(N/2) too);
    `dtype` that of the stack; `axes` fyx, yxf, or fyx1 with a trailing 1; `probe_axes` yx, myx or yx1;
    `labelled` with what each frame sees of the object, under `Y`.
    """

    key: str = "diffraction"
    axes: str = "fyx"
    quantity: str = "counts"
    dtype: str = "uint16"
    probe_axes: str = "yx"
    complex_dtype: str = "complex64"
    deflated: bool = True
    labelled: bool = False

    def __post_init__(self) -> None:
        if np.dtype(self.dtype).kind in "iu" and self.quantity != "counts":
            raise ConfigError(
                f"{self.quantity} cannot be held as {self.dtype}",
                code="simulate.dialect",
                hint="--dtype float32 or float64",
            )


def dataset_of(simulation: Simulation, *, provenance: Mapping[str, Any], labelled: bool = False) -> xr.Dataset:
    """The simulated scan in stored form; frames are computed when they are asked for.

    Parameters
    ----------
    labelled : with what each frame sees of the object, the variable `label`.
    """
    positions = simulation.positions
    values: dict[str, tuple[Any, dict[str, Any]]] = {
        "diffraction": (
            _lazy(simulation.counts, simulation.shape, simulation.dtype, name="simulated-frames"),
            {"quantity": "counts", "units": "photon"},
        ),
        "position_y": (positions[:, 0], {}),
        "position_x": (positions[:, 1], {}),
        "frame_index": (simulation.frames, {}),
        "probe": (simulation.geometry.probe, {}),
        "object": (simulation.object, {"role": "truth"}),
    }
    if labelled:
        patches = _lazy(simulation.labels, simulation.shape, np.dtype(np.complex64), name="simulated-labels")
        values["label"] = (patches, {})
    variables = {
        name: (SCAN_SCHEMA[name].dims, array, variable_attrs(name, **attrs)) for name, (array, attrs) in values.items()
    }
    return xr.Dataset(
        variables,
        attrs=root_attributes(
            photons_scale=1.0,
            amplitude_formula=DIVIDE_F64,
            provenance=provenance,
            photons_per_frame={"measured": None, "declared": simulation.photons_per_frame},
        ),
    )


def _lazy(
    block: Callable[[int, int], NDArray[Any]], shape: tuple[int, int, int], dtype: np.dtype[Any], *, name: str
) -> da.Array:
    """A stack whose chunks are computed when they are asked for, cut as it is stored."""
    layout = plan_chunks(shape, dtype.itemsize)
    cuts = tuple(stop - start for start, stop in map(layout.rows, range(layout.n_chunks)))
    graph = {(name, i, 0, 0): (functools.partial(block, *layout.rows(i)),) for i in range(layout.n_chunks)}
    return da.Array(graph, name, (cuts, (shape[1],), (shape[2],)), dtype=dtype)  # type: ignore[no-untyped-call]


def provenance_of(simulation: Simulation) -> dict[str, Any]:
    """How a simulated store came about: everything that decides its bytes, but the hardware."""
    return {"simulation": dict(simulation.about), "versions": library_versions()}


def write_store(simulation: Simulation, target: Path, *, overwrite: bool = False) -> tuple[str, str]:
    """Write the canonical store; its `store_sha256` and whether it was `written`, `unchanged` or `kept`.

    `kept`: the target holds the same recipe, intact by its own manifest, whose bytes this machine does not
    reproduce. Processors differ in the last bit of exp and FFT, so it was made on other hardware; it is no damage.

    Raises
    ------
    TargetExistsError
        The target holds something else and `overwrite` is false.
    IntegrityError
        The target holds the same recipe, but is damaged.
    """
    there = None if overwrite else _same_recipe(simulation, target)
    if there is None:
        return write_scan(_whole(simulation), target, overwrite=overwrite), "written"
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".again", dir=target.parent))
    try:
        again = write_scan(_whole(simulation), scratch / target.name)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return there.store_sha256, "unchanged" if again == there.store_sha256 else "kept"


def _whole(simulation: Simulation) -> xr.Dataset:
    return dataset_of(simulation, provenance=provenance_of(simulation))


def _same_recipe(simulation: Simulation, target: Path) -> StoreRecord | None:
    try:
        record = open_record(target)
    except IntegrityError:
        raise
    except PipelineError:  # nothing there, or no store: `write_scan` decides
        return None
    if record.attrs["provenance"] != json.loads(json.dumps(provenance_of(simulation))):
        return None
    damages = audit_store(target).damages
    if damages:
        raise IntegrityError(
            f"{target}: {damages[0].holds}: {damages[0].found}", code="store.chunk", hint="--overwrite makes it anew"
        )
    return record


def write_legacy(simulation: Simulation, target: Path, dialect: Dialect, *, overwrite: bool = False) -> None:
    """Write the scan as a legacy NPZ, frames streamed; fixed dates, so the same scan gives the same bytes.

    Raises
    ------
    TargetExistsError
        Something is at the target and `overwrite` is false.
    ConfigError
        Counts exceed the dialect's dtype.
    """
    with staged_file(target, overwrite=overwrite) as stage:
        write_npz(stage, _members(simulation, dialect, beside=target))


def _members(simulation: Simulation, dialect: Dialect, *, beside: Path) -> Iterator[OutMember]:
    y, x = simulation.positions.T
    small = {"xcoords": x, "ycoords": y, "xcoords_start": x, "ycoords_start": y}
    for name, values in small.items():
        yield array_member(name, values, deflated=dialect.deflated)
    yield _stack_member(simulation, dialect, beside)
    probe = (simulation.geometry.probe / _amplitude_scale(simulation, dialect)).astype(dialect.complex_dtype)
    if len(probe) == 1 and dialect.probe_axes != "myx":
        probe = probe[0] if dialect.probe_axes == "yx" else probe[0][..., np.newaxis]
    yield array_member("probeGuess", probe, deflated=dialect.deflated)
    yield array_member("objectGuess", simulation.object.astype(dialect.complex_dtype), deflated=dialect.deflated)
    if dialect.labelled:
        rows = range(0, len(x), BLOCK_FRAMES)
        patches = (simulation.labels(row, min(row + BLOCK_FRAMES, len(x))) for row in rows)
        prefix = npy_prefix(simulation.shape, np.dtype(np.complex64))
        yield OutMember(name="Y", prefix=prefix, blocks=map(raw_bytes, patches), deflated=dialect.deflated)
    yield array_member("scan_index", np.zeros(len(x), np.int64), deflated=dialect.deflated)
    metadata = {
        "schema_version": METADATA_SCHEMA,
        "physics_parameters": {"nphotons": simulation.photons_per_frame, "N": simulation.shape[1]},
        "additional_parameters": provenance_of(simulation)["simulation"],
    }
    yield array_member("_metadata", np.array(json.dumps(metadata, sort_keys=True)), deflated=dialect.deflated)


def _stack_member(simulation: Simulation, dialect: Dialect, beside: Path) -> OutMember:
    n, height, width = simulation.shape
    shape = {"fyx": (n, height, width), "yxf": (height, width, n), "fyx1": (n, height, width, 1)}[dialect.axes]
    prefix = npy_prefix(shape, np.dtype(dialect.dtype))
    blocks = (
        _spelled(simulation.counts(start, min(start + BLOCK_FRAMES, n)), simulation, dialect)
        for start in range(0, n, BLOCK_FRAMES)
    )
    header, axes = parse_header(prefix), dialect.axes[:3]
    ordered = to_disk_order(blocks, header, axes=axes, shape=(n, height, width), beside=beside)
    return OutMember(name=dialect.key, prefix=prefix, blocks=map(raw_bytes, ordered), deflated=dialect.deflated)


def _spelled(counts: NDArray[Any], simulation: Simulation, dialect: Dialect) -> NDArray[Any]:
    """A block of counts in the dialect's quantity and dtype."""
    if dialect.quantity == "counts":
        spelled = counts.astype(dialect.dtype)
        if np.any(spelled != counts):
            raise ConfigError(
                f"a count of {counts.max()} does not fit {dialect.dtype}",
                code="simulate.dialect",
                hint="a wider --dtype, or lower --photons-per-frame",
            )
        return spelled
    amplitude = np.sqrt(counts.astype(np.float64)) / _amplitude_scale(simulation, dialect)
    return np.asarray(amplitude.astype(dialect.dtype))


def _amplitude_scale(simulation: Simulation, dialect: Dialect) -> float:
    """What scaled amplitudes, and the probe in their gauge, are divided by: sqrt(photons per frame) / (N/2)."""
    if dialect.quantity != "scaled-amplitude":
        return 1.0
    return float(np.sqrt(simulation.photons_per_frame) / (simulation.shape[1] / 2))
