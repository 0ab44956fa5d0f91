"""The verbs of `python -m catalogs`: metadata only, one row or one page per store or run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click

from pipeline.cli import EXIT_FINDINGS, Outcome, command


@command("ptychozarr.catalog-list/1")
@click.argument("roots", nargs=-1, required=True, type=click.Path(path_type=Path))
def list_items(*, roots: Sequence[Path]) -> Outcome:
    """List every store and every run at or below ROOTS, one row each.

    A run that is not finished says how to go on with it; its own stores are part of it. Exit 3: a store or run is
    broken; its row says why.
    """
    from catalogs.index import list_entries
    from catalogs.table import table

    entries = list_entries(roots)
    broken = [entry for entry in entries if entry.problem is not None]
    data = {"entries": [{**asdict(entry), "path": str(entry.path)} for entry in entries]}
    return Outcome(data=data, text=table(entries), exit_code=EXIT_FINDINGS if broken else 0)


@command("ptychozarr.catalog-show/1")
@click.argument("roots", nargs=-1, required=True, type=click.Path(path_type=Path))
def show_items(*, roots: Sequence[Path]) -> Outcome:
    """Show each store and run at or below ROOTS.

    Of a store: variables, units, evidence, provenance. Of a run: what it was made from and how, losses, digests, the
    command that repeats it or goes on with it. Exit 3: a store or run is broken.
    """
    from catalogs import page, run_page
    from catalogs.index import find_items, is_run_folder

    told: dict[str, list[object]] = {"stores": [], "runs": []}
    texts, broken = [], False
    for path in find_items(roots):
        is_run = is_run_folder(path)
        data = run_page.page_data(path) if is_run else page.page_data(path)
        told["runs" if is_run else "stores"].append(data)
        texts.append(run_page.page(data) if is_run else page.page(data))
        broken |= data["problem"] is not None
    text = "\n\n".join(texts) or "no stores and no runs"
    return Outcome(data=told, text=text, exit_code=EXIT_FINDINGS if broken else 0)
