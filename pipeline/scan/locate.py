"""Where a scan is: a path to a store or an NPZ, or the name of a catalog's item.

A catalog is a `catalog.json` (STAC Catalog) whose links of relation `item` lead to items; an item's asset `data` leads
to the store. Names are looked up in the given catalog, else in $PTYCHOZARR_CATALOG, else in ./catalog.json.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from pipeline.errors import NotFoundError, SourceError
from pipeline.scan.record import is_store

CATALOG_VARIABLE: Final = "PTYCHOZARR_CATALOG"
CATALOG_NAME: Final = "catalog.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Located:
    """A scan's place and what is there."""

    path: Path
    kind: Literal["store", "npz"]


def locate(source: Path | str, *, catalog: Path | None = None) -> Located:
    """The store or NPZ that `source` names.

    Raises
    ------
    NotFoundError
        Neither a path nor a name in the catalog; near names are suggested.
    SourceError
        A folder that is no store, or a catalog that cannot be read.
    """
    path = Path(source)
    if path.is_file():
        return Located(path=path, kind="npz")
    if path.is_dir():
        if not is_store(path):
            raise SourceError(f"{path}: a folder, but not a ptychozarr store", code="store.foreign")
        return Located(path=path, kind="store")
    place = catalog or Path(os.environ.get(CATALOG_VARIABLE, CATALOG_NAME))
    if not place.is_file():
        if catalog is not None:
            raise NotFoundError(f"{catalog}: no such catalog", code="catalog.not_found")
        raise NotFoundError(f"{source}: no such file or store", code="source.not_found")
    names = dict(_items(place))
    if str(source) not in names:
        near = difflib.get_close_matches(str(source), names, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else None
        raise NotFoundError(f"{source}: neither a path nor a name in {place}", code="source.not_found", hint=hint)
    return locate(_data_of(names[str(source)]))


def _items(place: Path) -> Iterator[tuple[str, Path]]:
    for link in _json(place).get("links", []):
        if link.get("rel") == "item":
            item = place.parent / str(link.get("href"))
            yield str(link.get("title") or item.stem), item


def _data_of(item: Path) -> Path:
    href = _json(item).get("assets", {}).get("data", {}).get("href")
    if not isinstance(href, str):
        raise SourceError(f"{item}: has no asset 'data'", code="catalog.item")
    return item.parent / href


def _json(path: Path) -> Mapping[str, Any]:
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError) as exc:
        raise SourceError(f"{path}: cannot be read: {exc}", code="catalog.json") from exc
    if not isinstance(document, dict):
        raise SourceError(f"{path}: not a JSON object", code="catalog.json")
    return document
