"""What one NPZ is and would become: a plan, or the refusal and what settles it, and advice from a sample."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from converters.telling import aligned, member_rows, plan_rows
from pipeline.cli import EXIT_FINDINGS
from pipeline.errors import IntegrityError, NotFoundError, PipelineError, SourceError
from pipeline.scan.declaration import STACK_KEYS, Declaration
from pipeline.scan.geometry import disc_overlap, nearest_step, probe_diameter
from pipeline.scan.ingest import SAMPLE_BYTES, IngestPlan, plan_ingest
from pipeline.scan.npz import MemberReader, Npz, disk_blocks, open_npz, read_array

CONVERTIBLE = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """A file looked at. `refusal` is None where it can be converted; `advice` is never a verdict."""

    path: Path
    plan: IngestPlan | None
    npz: Npz | None
    refusal: PipelineError | None
    advice: tuple[str, ...]

    @property
    def exit_code(self) -> int:
        """0 convertible, 3 needs an option, 4 never, 5 not there."""
        if self.refusal is None:
            return CONVERTIBLE
        if isinstance(self.refusal, NotFoundError):
            return NotFoundError.exit_code
        return EXIT_FINDINGS if self.refusal.code.startswith("npz.ambiguous_") else SourceError.exit_code


def examine(path: Path, declaration: Declaration) -> Finding:
    """Look at one file.

    Raises
    ------
    ConfigError
        The declaration contradicts itself.
    """
    npz = None
    try:
        npz = open_npz(path)
        plan = plan_ingest(path, declaration)
    except (SourceError, IntegrityError, NotFoundError) as refusal:  # a refusal is what inspection is there to tell
        return Finding(path=path, plan=None, npz=npz, refusal=refusal, advice=tuple(_values_advice(npz)))
    return Finding(path=path, plan=plan, npz=npz, refusal=None, advice=tuple(_geometry_advice(plan)))


def _values_advice(npz: Npz | None) -> list[str]:
    """What the first values of a float stack look like."""
    member = next((npz.members[key] for key in STACK_KEYS if key in npz.members), None) if npz else None
    if npz is None or member is None or member.header.dtype.kind != "f" or 0 in member.header.disk_shape:
        return []
    count = min(math.prod(member.header.shape), SAMPLE_BYTES // member.header.dtype.itemsize)
    try:
        with MemberReader(npz, member) as reader:
            sample = next(disk_blocks(reader, (count,), member.header.dtype, count)).astype(np.float64)
    except IntegrityError:
        return []
    if not np.isfinite(sample).all():
        return []
    whole = np.mean(sample == np.rint(sample))
    return [
        f"first values of {member.name!r}: min {sample.min():.4g}, mean {sample.mean():.4g}, max {sample.max():.4g}, "
        f"{100 * whole:.0f} % whole numbers" + (" (counts often look so)" if whole == 1 else "")
    ]


def _geometry_advice(plan: IngestPlan) -> list[str]:
    """What is odd about the file; step and overlap of the scan, where positions are pixels."""
    lines = list(plan.layout.warnings)
    if plan.declaration.position_origin is None:
        lines.append(
            "no file tells whether a coordinate means pixel n/2 of a frame's window or its exact middle; ptychodus "
            "1.7.0 wrote the middle (--position-origin n/2-0.5, see docs/conventions.md)"
        )
    if plan.layout.position_unit != "pixel":
        return lines
    coordinates = [read_array(plan.npz, plan.npz.members[key])[0].astype(np.float64) for key in ("ycoords", "xcoords")]
    step = nearest_step(np.stack(coordinates, axis=1))
    if step is None:
        return lines
    lines.append(f"median step to the nearest position {step:.2f} px")
    probe = plan.layout.roles.kind.get("probe")
    if probe is not None:
        values, _ = read_array(plan.npz, plan.npz.members[probe])
        frame = plan.layout.roles.frame_shape
        diameter = probe_diameter(values.reshape(-1, *frame).astype(np.complex64))
        lines.append(
            f"probe {diameter:.1f} px wide at half maximum: neighbours overlap by "
            f"{100 * disc_overlap(step, diameter):.0f} % of the disc"
        )
    return lines


def finding_text(finding: Finding) -> str:
    """A finding for people."""
    if finding.plan is not None:
        parts = [
            f"{finding.path}: convertible",
            aligned(plan_rows(finding.plan)),
            "  members",
            aligned(member_rows(finding.plan), "    "),
        ]
    else:
        assert finding.refusal is not None
        verdict = "needs an option" if finding.exit_code == EXIT_FINDINGS else "cannot be converted"
        parts = [f"{finding.path}: {verdict}", f"  {finding.refusal.message}"]
        if finding.refusal.hint:
            parts.append(f"  hint: {finding.refusal.hint}")
        if finding.npz is not None and finding.npz.members:
            parts += ["  members", aligned([(n, m.describe()) for n, m in finding.npz.members.items()], "    ")]
    return "\n".join([*parts, *([aligned([("advice", line) for line in finding.advice])] if finding.advice else [])])


def finding_data(finding: Finding) -> Mapping[str, Any]:
    """A finding for programs."""
    data: dict[str, Any] = {
        "path": str(finding.path),
        "convertible": finding.refusal is None,
        "advice": list(finding.advice),
        "members": {
            n: {"shape": list(m.header.shape), "dtype": m.header.dtype.str, "bytes": m.size}
            for n, m in (finding.npz.members.items() if finding.npz else ())
        },
    }
    if finding.plan is not None:
        layout = finding.plan.layout
        return {
            **data,
            "frames": layout.roles.n_frames,
            "frame_shape": list(layout.roles.frame_shape),
            "quantity": layout.quantity,
            "evidence": dict(layout.evidence),
        }
    assert finding.refusal is not None
    return {**data, "code": finding.refusal.code, "reason": finding.refusal.message, "hint": finding.refusal.hint}
