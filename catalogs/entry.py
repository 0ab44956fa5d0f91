"""One store in a list, a scan or a reconstruction: what its metadata says, or why it cannot be used. Reads no array."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import PipelineError
from pipeline.scan.record import StoreRecord, open_record
from pipeline.scan.schema import RECONSTRUCTION_FORMAT


@dataclass(frozen=True, kw_only=True, slots=True)
class CatalogEntry:
    """A store's row. Where `problem` is set nothing else but path and name is known; unknown facts are None.

    kind : "scan", or "reconstruction" with `quantity` "object", `frame_shape` that of the frames it was found from,
        `made_from` their store's digest, and name that of its run.
    """

    path: Path
    name: str
    problem: str | None = None
    kind: str | None = None
    frames: int | None = None
    frame_shape: tuple[int, int] | None = None
    quantity: str | None = None
    dtype: str | None = None
    photons_per_frame: float | None = None
    probe_modes: int | None = None
    has_object: bool | None = None
    stored_bytes: int | None = None
    verdict: str | None = None
    source_name: str | None = None
    source_sha256: str | None = None
    store_sha256: str | None = None
    made_from: str | None = None
    loss: float | None = None


def entry_of(path: Path) -> CatalogEntry:
    """The row of the store at `path`; a broken store is a row that says why."""
    try:
        record = open_record(path)
        is_object = record.attrs.get("ptychozarr_format") == RECONSTRUCTION_FORMAT
        return _of_reconstruction(record) if is_object else _of_scan(record)
    except PipelineError as exc:  # a list of many stores goes on; the reason is in the row
        return CatalogEntry(path=path, name=path.stem, problem=str(exc))


def _of_scan(record: StoreRecord) -> CatalogEntry:
    variables, attrs = record.variables, record.attrs
    if "diffraction" not in variables or not isinstance(attrs.get("photons_per_frame"), dict):
        return CatalogEntry(path=record.path, name=record.path.stem, problem="no scan: no diffraction or no attributes")
    frames, height, width = variables["diffraction"].layout.shape
    source: dict[str, Any] = attrs.get("provenance", {}).get("source", {})
    broken = [rule for rule, verdict in attrs.get("validation", {}).items() if verdict != "pass"]
    probe = variables.get("probe")
    photons = attrs["photons_per_frame"]
    return CatalogEntry(
        path=record.path,
        name=record.path.stem,
        kind="scan",
        frames=frames,
        frame_shape=(height, width),
        quantity=variables["diffraction"].attrs.get("quantity"),
        dtype=variables["diffraction"].dtype.name,
        photons_per_frame=photons.get("measured") or photons.get("declared"),
        probe_modes=probe.layout.shape[0] if probe else 0,
        has_object="object" in variables,
        stored_bytes=record.stored_bytes,
        verdict=f"breaks {', '.join(broken)}" if broken else "pass",
        source_name=source.get("name"),
        source_sha256=source.get("sha256"),
        store_sha256=record.store_sha256,
    )


def _of_reconstruction(record: StoreRecord) -> CatalogEntry:
    probe, obj, attrs = record.variables["probe"], record.variables["object"], record.attrs
    return CatalogEntry(
        path=record.path,
        name=record.path.absolute().parent.name,
        kind="reconstruction",
        frames=record.variables["frame_index"].layout.shape[0],
        frame_shape=(probe.layout.shape[1], probe.layout.shape[2]),
        quantity="object {} x {}".format(*obj.layout.shape),
        dtype=obj.dtype.name,
        probe_modes=probe.layout.shape[0],
        has_object=True,
        stored_bytes=record.stored_bytes,
        verdict="pass",
        store_sha256=record.store_sha256,
        made_from=attrs["store_sha256"],
        loss=attrs["nll"]["solver"],
    )
