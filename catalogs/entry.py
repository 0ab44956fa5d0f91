"""One store or run in a list: what its small files say, or why it cannot be used. Reads no array and no weight."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.errors import PipelineError
from pipeline.scan.audit_run import open_run_record
from pipeline.scan.record import StoreRecord, open_record
from pipeline.scan.schema import RECONSTRUCTION_FORMAT


@dataclass(frozen=True, kw_only=True, slots=True)
class CatalogEntry:
    """A row. Where `problem` is set nothing else but path, name and kind is known; unknown facts are None.

    kind : "scan"; "training" or "reconstruction", a run, named after its folder; "run" where it cannot be told which.
        A reconstruction's store that lies alone is one too, named after the folder it lies in.
    verdict : of a scan "pass" or the rules it breaks; of a run "finished" or "incomplete" (`resume` goes on).
    frame_shape : of a reconstruction or training that of the frames it is about. quantity : what is stored or was made.
    stored_bytes, store_sha256 : of the store, or of what the run made. bundle_sha256 : made by a training, used by a
        reconstruction. made_from : the digest of the store behind a run.
    nll_solver, nll_network : loss per good pixel on held-out frames.
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
    bundle_sha256: str | None = None
    nll_solver: float | None = None
    nll_network: float | None = None
    resume: str | None = None


def entry_of_store(path: Path) -> CatalogEntry:
    """The row of the store at `path`; a broken store is a row that says why."""
    return _row(_store_entry, path, CatalogEntry(path=path, name=path.stem))


def entry_of_run(path: Path) -> CatalogEntry:
    """The row of the run at `path`; one that is damaged is a row that says why."""
    return _row(_run_entry, path, CatalogEntry(path=path, name=path.absolute().name, kind="run"))


def _row(read: Callable[[Path], CatalogEntry], path: Path, broken: CatalogEntry) -> CatalogEntry:
    try:
        return read(path)
    except (PipelineError, OSError) as exc:  # a list of many goes on; the reason is in the row
        return replace(broken, problem=str(exc))
    except (AttributeError, KeyError, TypeError, ValueError) as exc:  # something of a stranger under our names
        return replace(broken, problem=f"not as it was written: {exc!r}")


KINDS = {"train": "training", "reconstruct": "reconstruction"}
"""What a run is called by what it does."""


def _run_entry(path: Path) -> CatalogEntry:
    run = open_run_record(path)
    about = CatalogEntry(
        path=path,
        name=path.absolute().name,
        kind=KINDS[run.kind],
        verdict="finished" if run.finished else "incomplete",
        source_name=run.source["name"],
        source_sha256=run.source["sha256"],
        made_from=run.store_sha256,
        bundle_sha256=run.bundle_sha256,
        nll_solver=run.losses["solver"],
        nll_network=run.losses["network"],
        resume=run.resume,
    )
    if not run.finished:
        return about
    if run.result is not None:
        return replace(about, **_object_facts(run.result))
    shape, fit = run.report.get("frame_shape"), run.report.get("fit") or {}
    return replace(
        about,
        frames=run.report.get("frames"),
        frame_shape=None if shape is None else (int(shape[0]), int(shape[1])),
        quantity=f"{fit['model']}, {int(fit['steps'])} steps" if fit else None,
        stored_bytes=(run.path / run.last).stat().st_size,
    )


def _store_entry(path: Path) -> CatalogEntry:
    record = open_record(path)
    is_object = record.attrs.get("ptychozarr_format") == RECONSTRUCTION_FORMAT
    return _of_reconstruction(record) if is_object else _of_scan(record)


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
    return CatalogEntry(
        path=record.path,
        name=record.path.absolute().parent.name,
        kind="reconstruction",
        verdict="pass",
        made_from=record.attrs["store_sha256"],
        bundle_sha256=record.attrs["bundle_sha256"],
        nll_solver=record.attrs["nll"]["solver"],
        nll_network=record.attrs["nll"]["network"],
        **_object_facts(record),
    )


def _object_facts(record: StoreRecord) -> dict[str, Any]:
    """What the arrays of a reconstruction tell."""
    probe, obj = record.variables["probe"], record.variables["object"]
    return {
        "frames": record.variables["frame_index"].layout.shape[0],
        "frame_shape": (probe.layout.shape[1], probe.layout.shape[2]),
        "quantity": "object {} x {}".format(*obj.layout.shape),
        "dtype": obj.dtype.name,
        "probe_modes": probe.layout.shape[0],
        "has_object": True,
        "stored_bytes": record.stored_bytes,
        "store_sha256": record.store_sha256,
    }
