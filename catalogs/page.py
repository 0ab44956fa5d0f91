"""One store in full, from its metadata alone, for a terminal and for programs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import PipelineError
from pipeline.scan.record import open_record
from pipeline.scan.schema import RECONSTRUCTION_FORMAT

_FACTS = (
    "photons_scale",
    "photons_per_frame",
    "pixel_size_m",
    "wavelength_m",
    "energy_eV",
    "detector_distance_m",
    "position_origin",
)
_FACTS_OF_OBJECT = ("origin_px", "prior", "refine", "loss", "nll", "r_factor", "photons_scale", "store_sha256")


def page_data(path: Path) -> Mapping[str, Any]:
    """What the metadata of a store says; `problem` says why where it cannot be read."""
    try:
        record = open_record(path)
    except PipelineError as exc:  # the page of a broken store says why
        return {"path": str(path), "problem": str(exc)}
    arrays = {
        name: {
            "dims": list(a.dims),
            "shape": list(a.layout.shape),
            "dtype": a.dtype.name,
            "chunks": a.layout.n_chunks,
            "units": a.attrs.get("units"),
            "quantity": a.attrs.get("quantity"),
        }
        for name, a in record.arrays.items()
    }
    return {
        "path": str(path),
        "problem": None,
        "store_sha256": record.store_sha256,
        "stored_bytes": record.stored_bytes,
        "arrays": arrays,
        "attributes": dict(record.attrs),
    }


def page(data: Mapping[str, Any]) -> str:
    """The page of a store for people."""
    if data["problem"] is not None:
        return f"{data['path']}\n  BROKEN: {data['problem']}"
    attributes = data["attributes"]
    lines = [
        data["path"],
        f"  store_sha256  {data['store_sha256']}",
        f"  bytes         {data['stored_bytes']:,}",
        "",
        "  arrays",
    ]
    for name, a in data["arrays"].items():
        sizes = ", ".join(f"{dim}: {n}" for dim, n in zip(a["dims"], a["shape"], strict=True))
        unit = "".join(f", {a[key]}" for key in ("quantity", "units") if a[key])
        lines.append(f"    {name:<22} {a['dtype']:<10} ({sizes}){unit}")
    facts = _FACTS if attributes.get("ptychozarr_format") != RECONSTRUCTION_FORMAT else _FACTS_OF_OBJECT
    lines += ["", "  facts"]
    lines += [f"    {name:<22} {_fact(attributes.get(name))}" for name in facts]
    lines += _provenance(attributes.get("provenance", {}))
    if "validation" in attributes:
        broken = [f"{rule}: {found}" for rule, found in attributes["validation"].items() if found != "pass"]
        passed = f"{len(attributes['validation'])} rules pass"
        lines += ["", f"  validation  {'; '.join(broken) or passed}"]
    return "\n".join(lines)


def _fact(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_fact(item)}" for name, item in value.items())
    return "unknown" if value is None else str(value)


def _provenance(made_of: Mapping[str, Any]) -> list[str]:
    if not made_of.get("source"):
        return []
    source, counts = made_of["source"], made_of["accounting"]["members"]
    lines = [
        "",
        "  made from",
        f"    {source['name']}, {source['bytes']:,} bytes, sha256 {source['sha256']}",
        f"    {counts['kept']} members kept, {len(counts['dropped'])} dropped, {counts['total']} in all",
    ]
    lines += [f"    {name:<22} {line}" for name, line in made_of["evidence"].items()]
    return lines
