"""The verbs of `python -m catalogs`: metadata only, one row or one page per store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click

from pipeline.cli import EXIT_FINDINGS, Outcome, command


@command("ptychozarr.catalog-list/1")
@click.argument("roots", nargs=-1, required=True, type=click.Path(path_type=Path))
def list_stores(*, roots: Sequence[Path]) -> Outcome:
    """List every store at or below ROOTS, one row each. Exit 3: a store is broken; its row says why."""
    from catalogs.index import list_entries
    from catalogs.table import table

    entries = list_entries(roots)
    broken = [entry for entry in entries if entry.problem is not None]
    data = {"entries": [{**asdict(entry), "path": str(entry.path)} for entry in entries]}
    return Outcome(data=data, text=table(entries), exit_code=EXIT_FINDINGS if broken else 0)


@command("ptychozarr.catalog-show/1")
@click.argument("roots", nargs=-1, required=True, type=click.Path(path_type=Path))
def show_stores(*, roots: Sequence[Path]) -> Outcome:
    """Show each store at or below ROOTS: variables, units, evidence, provenance. Exit 3: a store is broken."""
    from catalogs.index import find_stores
    from catalogs.page import page, page_data

    pages = [page_data(path) for path in find_stores(roots)]
    broken = any(one["problem"] is not None for one in pages)
    return Outcome(
        data={"stores": pages},
        text="\n\n".join(page(one) for one in pages) or "no stores",
        exit_code=EXIT_FINDINGS if broken else 0,
    )
