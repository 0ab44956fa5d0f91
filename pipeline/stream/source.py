"""A source as a store: a store as it is, a legacy NPZ converted to a temporary one first."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.scan.declaration import Declaration
from pipeline.scan.ingest import ingest, plan_ingest
from pipeline.scan.locate import locate


@contextmanager
def opened_store(source: Path, said: Declaration, *, catalog: Path | None = None) -> Iterator[Path]:
    """The store of a source for the length of a `with`; a temporary one is removed at its end.

    Raises
    ------
    NotFoundError, SourceError, IntegrityError, ConfigError
        See `locate` and `plan_ingest`.
    """
    there = locate(source, catalog=catalog)
    if there.kind == "store":
        yield there.path
        return
    with tempfile.TemporaryDirectory(prefix="ptychozarr-") as folder:
        store = Path(folder) / f"{there.path.stem}.zarr"
        logging.getLogger(__name__).info("%s: a legacy NPZ, converted to a temporary store first", there.path)
        ingest(plan_ingest(there.path, said), store)
        yield store
