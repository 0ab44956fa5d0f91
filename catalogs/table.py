"""Rows of a catalog as tables for a terminal: stores first, then runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from catalogs.entry import CatalogEntry

UNKNOWN = "-"

Cells = tuple[str, ...]

_STORES: Cells = (
    "name", "kind", "verdict", "frames", "size", "stored as", "photons/frame", "probe", "bytes", "store_sha256",
    "source",
)  # fmt: skip
_RUNS: Cells = (
    "run", "kind", "verdict", "frames", "size", "made", "bytes", "loss, solver", "network", "bundle", "reconstruction",
    "from store",
)  # fmt: skip
_RIGHT = {"frames", "photons/frame", "probe", "bytes", "loss, solver", "network"}


def table(entries: Sequence[CatalogEntry]) -> str:
    """One line per store or run; one that is broken or not finished says so in place of its facts."""
    if not entries:
        return "no stores and no runs"
    runs = [entry for entry in entries if is_run(entry)]
    stores = [entry for entry in entries if not is_run(entry)]
    parts = [_block(_STORES, stores, _store_cells), _block(_RUNS, runs, _run_cells)]
    return "\n\n".join(part for part in parts if part)


def is_run(entry: CatalogEntry) -> bool:
    """Whether a row belongs among the runs, as a reconstruction whose folder has gone does."""
    return entry.kind in ("run", "training", "reconstruction")


def _block(headings: Cells, entries: Sequence[CatalogEntry], cells: Callable[[CatalogEntry], Cells]) -> str:
    if not entries:
        return ""
    rows = [(entry.name, told) if (told := _in_words(entry)) else cells(entry) for entry in entries]
    whole = [row for row in rows if len(row) == len(headings)]
    widths = [max(len(cell) for cell in column) for column in zip(headings, *whole, strict=True)]
    widths[0] = max(widths[0], *(len(row[0]) for row in rows))
    return "\n".join(_line(row, headings, widths) for row in (headings, *rows))


def _in_words(entry: CatalogEntry) -> str | None:
    """What stands in place of facts that are not there."""
    if entry.problem is not None:
        return f"BROKEN: {entry.problem}"
    if entry.resume is not None:
        return f"{entry.kind}, incomplete; go on with: {entry.resume}"
    return None


def _line(row: Cells, headings: Cells, widths: Sequence[int]) -> str:
    if len(row) != len(headings):
        return f"{row[0]:<{widths[0]}}  {row[1]}"
    padded = (
        f"{cell:>{w}}" if heading in _RIGHT else f"{cell:<{w}}"
        for cell, w, heading in zip(row, widths, headings, strict=True)
    )
    return "  ".join(padded).rstrip()


def _store_cells(entry: CatalogEntry) -> Cells:
    return (
        entry.name,
        str(entry.kind),
        str(entry.verdict),
        str(entry.frames),
        _size(entry),
        f"{entry.quantity} {entry.dtype}",
        UNKNOWN if entry.photons_per_frame is None else f"{entry.photons_per_frame:.3g}",
        str(entry.probe_modes),
        f"{entry.stored_bytes:,}",
        _short(entry.store_sha256),
        entry.source_name or UNKNOWN,
    )


def _run_cells(entry: CatalogEntry) -> Cells:
    return (
        entry.name,
        str(entry.kind),
        str(entry.verdict),
        UNKNOWN if entry.frames is None else str(entry.frames),
        _size(entry),
        entry.quantity or UNKNOWN,
        UNKNOWN if entry.stored_bytes is None else f"{entry.stored_bytes:,}",
        _loss(entry.nll_solver),
        _loss(entry.nll_network),
        _short(entry.bundle_sha256),
        _short(entry.store_sha256),
        _short(entry.made_from),
    )


def _size(entry: CatalogEntry) -> str:
    return UNKNOWN if entry.frame_shape is None else "{} x {}".format(*entry.frame_shape)


def _short(digest: str | None) -> str:
    return UNKNOWN if digest is None else digest[:12]


def _loss(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.4f}"
