"""Where a store's bytes come from: the root attributes that account for every member of the source."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pipeline import __version__
from pipeline.scan import embedded
from pipeline.scan.declaration import Declaration
from pipeline.scan.legacy import LegacyLayout
from pipeline.scan.npz import Member, ReadDigest
from pipeline.scan.schema import root_attributes
from pipeline.scan.storing import StoredStack


@dataclass(frozen=True, kw_only=True, slots=True)
class KeptMember:
    """A member of the source and where its bytes are now.

    `variable` names the scan's variable it became, `legacy` the array that keeps it verbatim (`raw`: as bytes),
    `twin_of` another member with the same bytes, `dropped` why it cannot be given back exactly.
    """

    member: Member
    digest: ReadDigest
    variable: str | None = None
    legacy: str | None = None
    raw: bool = False
    twin_of: str | None = None
    dropped: str | None = None


def root_attributes_of(
    layout: LegacyLayout,
    declaration: Declaration,
    stack: StoredStack,
    members: Sequence[KeptMember],
    *,
    source: Path,
    source_sha256: str,
    source_bytes: int,
    metadata_text: str | None,
) -> dict[str, object]:
    """All root attributes of a converted store: JSON values, no path, time, host or worker count."""
    dropped = [{"member": k.member.name, "reason": k.dropped} for k in members if k.dropped is not None]
    n_frames = layout.roles.n_frames
    measured = None if stack.total is None else stack.total / n_frames
    provenance = {
        "source": {"name": source.name, "sha256": source_sha256, "bytes": source_bytes},
        "members": [_member_entry(k) for k in members],
        "dialect": {
            "key": layout.roles.stack,
            "axes": layout.roles.axes,
            "quantity": layout.quantity,
            "position_unit": layout.position_unit,
        },
        "evidence": {**layout.evidence, "stored": stack.evidence},
        "options": {**declaration.given(), **({"drop_original": True} if dropped else {})},
        "metadata": _metadata(metadata_text),
        "counts_total": stack.total,
        "accounting": {
            "members": {"kept": len(members) - len(dropped), "dropped": dropped, "total": len(members)},
            "frames": {"kept": n_frames, "dropped": 0, "total": n_frames},
        },
        "versions": library_versions(),
    }
    return root_attributes(
        photons_scale=stack.formula.photons_scale if stack.formula else None,
        amplitude_formula=stack.formula.name if stack.formula else None,
        photons_per_frame={"measured": measured, "declared": layout.photons_declared},
        pixel_size_m=layout.pixel_size_m,
        position_origin=layout.position_origin,
        provenance=provenance,
    )


def library_versions() -> dict[str, str]:
    """Versions of everything that decides the bytes of a store."""
    return {"ptychozarr": __version__, **{name: version(name) for name in ("numpy", "numcodecs", "zarr")}}


def _member_entry(kept: KeptMember) -> dict[str, Any]:
    header = kept.member.header
    return {
        "name": kept.member.name,
        "shape": list(header.shape),
        "dtype": header.dtype.str,
        "fortran_order": header.fortran_order,
        "npy_header": header.prefix.decode("latin1"),
        "bytes": kept.member.size,
        "deflated": kept.member.deflated,
        "crc32": f"{kept.digest.crc32:08x}",
        "sha256": kept.digest.sha256,
        "variable": kept.variable,
        "legacy": kept.legacy,
        "raw": kept.raw,
        "twin_of": kept.twin_of,
        "dropped": kept.dropped,
    }


def _metadata(text: str | None) -> Mapping[str, object] | str | None:
    """The source's metadata: its JSON object, or its text where it is none."""
    if text is None:
        return None
    parsed = embedded.json_of(text)
    return json.loads(json.dumps(parsed)) if parsed is not None else text
