"""Rows of a catalog as a table for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from catalogs.entry import CatalogEntry

_HEADINGS = ("name", "frames", "size", "stored as", "photons/frame", "probe", "bytes", "store_sha256", "source")
_RIGHT = {"frames", "photons/frame", "probe", "bytes"}
UNKNOWN = "-"


def table(entries: Sequence[CatalogEntry]) -> str:
    """One line per store; a broken one gives its reason instead of its facts."""
    if not entries:
        return "no stores"
    rows = [_cells(entry) for entry in entries]
    whole = [row for row in rows if len(row) == len(_HEADINGS)]
    widths = [max(len(cell) for cell in column) for column in zip(_HEADINGS, *whole, strict=True)]
    widths[0] = max(widths[0], *(len(row[0]) for row in rows))
    return "\n".join(_line(row, widths) for row in (_HEADINGS, *rows))


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    if len(row) != len(_HEADINGS):
        return f"{row[0]:<{widths[0]}}  BROKEN: {row[1]}"
    padded = (
        f"{cell:>{w}}" if heading in _RIGHT else f"{cell:<{w}}"
        for cell, w, heading in zip(row, widths, _HEADINGS, strict=True)
    )
    return "  ".join(padded).rstrip()


def _cells(entry: CatalogEntry) -> tuple[str, ...]:
    if entry.problem is not None:
        return entry.name, entry.problem
    assert entry.frame_shape is not None
    assert entry.store_sha256 is not None
    photons = UNKNOWN if entry.photons_per_frame is None else f"{entry.photons_per_frame:.3g}"
    return (
        entry.name,
        str(entry.frames),
        "{} x {}".format(*entry.frame_shape),
        str(entry.quantity) if entry.kind == "reconstruction" else f"{entry.quantity} {entry.dtype}",
        photons,
        str(entry.probe_modes),
        f"{entry.stored_bytes:,}",
        entry.store_sha256[:12],
        f"store {entry.made_from[:12]}" if entry.made_from else entry.source_name or UNKNOWN,
    )
