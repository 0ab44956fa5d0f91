"""A store back to the NPZ it came from, each member compared with the digest taken when it was read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import IntegrityError
from pipeline.scan.npz import ReadDigest, sha256_file, write_npz
from pipeline.scan.record import StoreRecord, open_record
from pipeline.scan.restore import member_entries, plain_members, source_members
from pipeline.scan.staging import staged_file


@dataclass(frozen=True, kw_only=True, slots=True)
class RestoreReport:
    """What was written; `cast` names each member that could not be given back bit for bit, and why."""

    store: Path
    target: Path
    members: tuple[str, ...]
    cast: tuple[str, ...]
    sha256: str
    same_file: bool
    from_source: bool


def restore(store: Path, target: Path, *, overwrite: bool = False) -> RestoreReport:
    """Write the source NPZ of a store to `target`, whole or not at all.

    A store that was not converted from an NPZ is written under the usual legacy names (`from_source` is false).

    Raises
    ------
    IntegrityError
        The store is damaged, or a member does not have the SHA-256 that was recorded when it was read.
    TargetExistsError
        Something is at `target` and `overwrite` is false.
    """
    record = open_record(store)
    from_source = bool(member_entries(record))
    with staged_file(target, overwrite=overwrite) as stage:
        members = source_members(record, beside=target) if from_source else plain_members(record)
        written = write_npz(stage, members)
        cast = _compare(record, written) if from_source else ()
        sha256 = sha256_file(stage)
    source_sha256 = record.attrs["provenance"].get("source", {}).get("sha256")
    return RestoreReport(
        store=store,
        target=target,
        members=tuple(written),
        cast=tuple(cast),
        sha256=sha256,
        same_file=sha256 == source_sha256,
        from_source=from_source,
    )


def _compare(record: StoreRecord, written: dict[str, ReadDigest]) -> Sequence[str]:
    cast = []
    for entry in member_entries(record):
        if entry["dropped"] is not None:
            cast.append(f"{entry['name']}: {entry['dropped']}")
        elif written[entry["name"]].sha256 != entry["sha256"]:
            raise IntegrityError(
                f"{record.path}: member {entry['name']!r} comes back with SHA-256 "
                f"{written[entry['name']].sha256[:12]}…, the source had {entry['sha256'][:12]}…",
                code="restore.member",
            )
    return cast
