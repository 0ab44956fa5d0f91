"""Where stores are: every store below some folders, in one order."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from catalogs.entry import CatalogEntry, entry_of
from pipeline.errors import NotFoundError, SourceError
from pipeline.scan.record import is_store


def find_stores(roots: Iterable[Path]) -> list[Path]:
    """Stores at or below each root, sorted within a root; folders of a store and hidden folders are not entered.

    Raises
    ------
    NotFoundError, SourceError
        A root does not exist, or is a file.
    """
    found: dict[Path, None] = {}
    for root in roots:
        if not root.exists():
            raise NotFoundError(f"{root}: no such folder", code="catalog.not_found")
        if not root.is_dir():
            raise SourceError(f"{root}: a file; a list looks into folders for stores", code="catalog.not_a_folder")
        found.update(dict.fromkeys(_below(root)))
    return list(found)


def _below(root: Path) -> Iterator[Path]:
    for folder, folders, _ in os.walk(root):
        here = Path(folder)
        if is_store(here) or here.suffix == ".zarr":
            folders.clear()
            yield here
        folders[:] = sorted((name for name in folders if not name.startswith(".")), key=lambda n: Path(n).stem)


def list_entries(roots: Iterable[Path]) -> list[CatalogEntry]:
    """The row of every store at or below the roots."""
    return [entry_of(path) for path in find_stores(roots)]
