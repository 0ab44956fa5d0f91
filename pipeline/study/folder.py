"""The root folder of a stage: one process at work, its manifest always whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from pipeline.errors import IntegrityError, InterruptedRun, TargetExistsError, TerminatedRun
from pipeline.scan.audit import audit_store
from pipeline.scan.record import StoreRecord, is_store, open_record
from pipeline.scan.staging import only_here, sweep

LOCK_NAME: Final = ".lock"


@contextmanager
def root_at_work(root: Path, *, again: str) -> Iterator[None]:
    """Make the root folder of a stage where there is none, and keep others away from it.

    Parameters
    ----------
    again : the command that goes on with the stage, for whoever stops it.

    Raises
    ------
    TargetExistsError
        A file is there.
    LockedError
        Another process is at work there.
    InterruptedRun, TerminatedRun
        A signal stopped the work inside.
    """
    if root.exists() and not root.is_dir():
        raise TargetExistsError(f"{root}: a file; expected a folder", code="target.foreign", hint="another name")
    root.mkdir(parents=True, exist_ok=True)
    (root / LOCK_NAME).touch()
    hint = f"the same command goes on: {again}"
    with only_here(root / LOCK_NAME, place=root):
        sweep(root)
        try:
            yield
        except (KeyboardInterrupt, InterruptedRun) as exc:
            raise InterruptedRun(f"{root}: interrupted, what is done is kept", code="interrupted", hint=hint) from exc
        except (SystemExit, TerminatedRun) as exc:
            raise TerminatedRun(f"{root}: terminated, what is done is kept", code="terminated", hint=hint) from exc


def store_there(target: Path, provenance: Mapping[str, Any]) -> StoreRecord | None:
    """The store at `target` if it was made in this way and is whole; None where nothing is.

    Raises
    ------
    TargetExistsError
        Something else is there.
    IntegrityError
        It is damaged.
    """
    if not target.exists():
        return None
    record = open_record(target) if is_store(target) else None
    if record is None or record.attrs.get("provenance") != provenance:
        raise TargetExistsError(
            f"{target}: exists already, made in another way", code="target.exists", hint="another --output-root"
        )
    damages = audit_store(target).damages
    if damages:
        raise IntegrityError(
            f"{target}: {damages[0].holds}: {damages[0].found}",
            code="store.chunk",
            hint="remove it to have it made anew",
        )
    return record


def now() -> str:
    """The time for a manifest: UTC to the second, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")
