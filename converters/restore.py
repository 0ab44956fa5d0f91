"""A store back to the NPZ it came from, each member compared with the digest taken when it was read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import IntegrityError, PipelineError
from pipeline.scan.npz import MemberReader, ReadDigest, open_npz, sha256_file
from pipeline.scan.npz_write import write_npz
from pipeline.scan.record import StoreRecord, open_record
from pipeline.scan.restore import member_entries, plain_members, source_members
from pipeline.scan.staging import refuse_target, staged_file


@dataclass(frozen=True, kw_only=True, slots=True)
class RestoreReport:
    """What was written, or was there already (`unchanged`); `cast` names members that come back cast, and why."""

    status: str
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
    ConfigError
        The target is no NAME.npz, or lies inside the store.
    TargetExistsError
        Something else is at `target` and `overwrite` is false.
    """
    refuse_target(target, suffix=".npz", source=store)
    record = open_record(store)
    from_source = bool(member_entries(record))
    if not overwrite and _holds_the_source(target, record):
        names = tuple(entry["name"] for entry in member_entries(record))
        return _report(record, target, status="unchanged", members=names, cast=())
    with staged_file(target, overwrite=overwrite) as stage:
        members = source_members(record, beside=target) if from_source else plain_members(record)
        written = write_npz(stage, members)
        cast = _compare(record, written) if from_source else ()
    return _report(record, target, status="written", members=tuple(written), cast=tuple(cast))


def _report(
    record: StoreRecord, target: Path, *, status: str, members: tuple[str, ...], cast: tuple[str, ...]
) -> RestoreReport:
    sha256 = sha256_file(target)
    return RestoreReport(
        status=status,
        store=record.path,
        target=target,
        members=members,
        cast=cast,
        sha256=sha256,
        same_file=sha256 == record.attrs["provenance"].get("source", {}).get("sha256"),
        from_source=bool(member_entries(record)),
    )


def _holds_the_source(target: Path, record: StoreRecord) -> bool:
    """Whether the file at `target` holds exactly the source's members, bit for bit."""
    entries = {entry["name"]: entry for entry in member_entries(record)}
    try:
        npz = open_npz(target)
        if not entries or list(npz.members) != list(entries):
            return False
        for name, member in npz.members.items():
            with MemberReader(npz, member) as reader:
                if reader.finish().sha256 != entries[name]["sha256"]:
                    return False
    except PipelineError:  # nothing there, or no whole NPZ: other content
        return False
    return True


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
