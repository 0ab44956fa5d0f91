"""What a conversion or an inspection found, as JSON values and as lines for people."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Mapping, Sequence

from converters.convert import ConversionReport
from pipeline.scan.ingest import IngestPlan


def megabytes(n_bytes: int) -> str:
    """A size for people."""
    return f"{n_bytes / 1e6:.1f} MB" if n_bytes >= 1e5 else f"{n_bytes / 1e3:.1f} kB"


def aligned(rows: Sequence[tuple[str, str]], indent: str = "  ") -> str:
    """Label and text in two columns, long texts wrapped to the terminal (100 columns where there is none)."""
    width = max(len(label) for label, _ in rows)
    columns = shutil.get_terminal_size((100, 24)).columns
    hanging = indent + " " * (width + 2)
    return "\n".join(
        textwrap.fill(
            text, max(columns, len(hanging) + 20), initial_indent=f"{indent}{label:<{width}}  ",
            subsequent_indent=hanging, break_long_words=False, break_on_hyphens=False,
        )
        for label, text in rows
    )  # fmt: skip


def plan_rows(plan: IngestPlan) -> list[tuple[str, str]]:
    """What a source means, a row each, with the evidence."""
    roles = plan.layout.roles
    height, width = roles.frame_shape
    rows = [("frames", f"{roles.n_frames} of {height} x {width}, {plan.stack.header.dtype.str} in {roles.stack!r}")]
    rows += [(name.replace("_", " "), line) for name, line in plan.layout.evidence.items() if name != "key"]
    if plan.declaration.given():
        rows.append(("declared", ", ".join(f"{k}={v}" for k, v in plan.declaration.given().items())))
    return rows


def member_rows(plan: IngestPlan) -> list[tuple[str, str]]:
    """Each member and where it goes."""
    return [
        (
            p.member,
            f"{plan.npz.members[p.member].describe()} -> "
            + (p.variable or (f"the bytes of {p.twin_of}" if p.twin_of else "legacy/")),
        )
        for p in plan.layout.roles.placements
    ]


def report_text(report: ConversionReport) -> str:
    """A conversion for people."""
    rows = plan_rows(report.plan)
    if report.record is None:
        head = f"{report.plan.npz.path} would become {report.target} (nothing was written)"
        return "\n".join([head, aligned(rows), "  members", aligned(member_rows(report.plan), "    ")])
    made_of = report.record.attrs["provenance"]
    members, photons = made_of["accounting"]["members"], report.record.attrs["photons_per_frame"]["measured"]
    decoded = sum(member["bytes"] for member in made_of["members"])
    checked = "read back and compared" if report.status == "converted" else "unchanged, every byte re-hashed"
    before, after = made_of["source"]["bytes"], report.record.stored_bytes
    total = f", {made_of['counts_total']} photons in all" if photons is not None else ""
    rows += [
        ("stored", made_of["evidence"]["stored"].removeprefix("stored as ") + total),
        ("members", f"{members['kept']} kept, {len(members['dropped'])} dropped, {members['total']} in the source"),
        ("size", f"{megabytes(before)} ({megabytes(decoded)} decoded) -> {megabytes(after)}, {checked}"),
        ("store_sha256", report.record.store_sha256),
    ]
    done = {"converted": "is now", "unchanged": "is already"}[report.status]
    return "\n".join([f"{report.plan.npz.path} {done} {report.target}", aligned(rows)])


def report_data(report: ConversionReport) -> Mapping[str, object]:
    """A conversion for programs."""
    layout = report.plan.layout
    data: dict[str, object] = {
        "status": report.status,
        "source": str(report.plan.npz.path),
        "target": str(report.target),
        "frames": layout.roles.n_frames,
        "frame_shape": list(layout.roles.frame_shape),
        "source_quantity": layout.quantity,
        "evidence": dict(layout.evidence),
        "options": report.plan.declaration.given(),
    }
    if report.record is None:
        return {**data, "members": {p.member: p.variable or "legacy" for p in layout.roles.placements}}
    made_of, frames = report.record.attrs["provenance"], report.record.arrays["diffraction"]
    return {
        **data,
        "store_sha256": report.record.store_sha256,
        "source_sha256": made_of["source"]["sha256"],
        "stored_quantity": frames.attrs["quantity"],
        "stored_dtype": frames.dtype.name,
        "photons_scale": report.record.attrs["photons_scale"],
        "counts_total": made_of["counts_total"],
        "photons_per_frame": report.record.attrs["photons_per_frame"],
        "source_bytes": made_of["source"]["bytes"],
        "stored_bytes": report.record.stored_bytes,
        "accounting": made_of["accounting"],
        "evidence": made_of["evidence"],
    }
