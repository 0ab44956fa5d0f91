"""Where stores and runs are: all of them below some folders, in one order."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from catalogs.entry import CatalogEntry, entry_of_run, entry_of_store
from pipeline.errors import NotFoundError, SourceError
from pipeline.scan.audit_run import PARTS, holds_run
from pipeline.scan.record import is_store


def find_items(roots: Iterable[Path]) -> list[Path]:
    """Stores and folders of runs at or below each root, sorted within a root.

    Folders of a store, a run's own stores and hidden folders are not entered.

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


def is_run_folder(path: Path) -> bool:
    """Whether an item that was found is a run; else it is a store."""
    return not _looks_like_store(path) and holds_run([inside.name for inside in path.iterdir()])


def list_entries(roots: Iterable[Path]) -> list[CatalogEntry]:
    """The row of every store and run at or below the roots."""
    return [entry_of_run(path) if is_run_folder(path) else entry_of_store(path) for path in find_items(roots)]


def _below(root: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(root):
        here, own = Path(folder), frozenset[str]()
        if _looks_like_store(here):
            folders.clear()
            yield here
        elif holds_run([*folders, *files]):
            own = PARTS
            yield here
        inside = (name for name in folders if not name.startswith(".") and name not in own)
        folders[:] = sorted(inside, key=lambda name: Path(name).stem)


def _looks_like_store(path: Path) -> bool:
    return path.suffix == ".zarr" or is_store(path)
