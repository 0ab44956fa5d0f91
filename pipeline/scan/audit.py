"""Every file of a store read again and compared with its manifest; unlisted and missing files named."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import IntegrityError, SourceError
from pipeline.scan import manifest as mf
from pipeline.scan.record import open_record, parse_arrays, where_is


@dataclass(frozen=True, kw_only=True, slots=True)
class Damage:
    """One file that is not as promised: its store path, which frames or metadata it holds, what is wrong."""

    path: str
    holds: str
    found: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Audit:
    """What was compared and what differs."""

    store_sha256: str | None
    n_files: int
    n_bytes: int
    damages: tuple[Damage, ...]


def audit_store(root: Path, *, progress: Callable[[int], None] = lambda n: None) -> Audit:
    """Re-hash everything that the store at `root` claims. Damage is returned, not raised.

    Raises
    ------
    NotFoundError, SourceError
        Nothing is there, or it is no store of ours.
    """
    files = mf.listing(root)
    try:
        data = _manifest_bytes(root / mf.MANIFEST_NAME)
        manifest = mf.decode(data, where=mf.MANIFEST_NAME)
    except IntegrityError as exc:
        damage = Damage(path=mf.MANIFEST_NAME, holds="the manifest", found=str(exc))
        return Audit(store_sha256=None, n_files=len(files), n_bytes=0, damages=(damage,))
    arrays = parse_arrays(root, [p for p in manifest if not mf.is_chunk(p) and files.get(p, -1) >= 0])
    damages: list[Damage] = []
    n_bytes = 0
    for path in sorted(manifest):
        found = _damage(root, path, manifest[path], files.get(path))
        if found is not None:
            damages.append(Damage(path=path, holds=where_is(arrays, path), found=found))
        n_bytes += manifest[path].size
        progress(manifest[path].size)
    for path in sorted(set(files) - set(manifest)):
        damages.append(Damage(path=path, holds=path, found="not in the manifest"))
    damages.extend(_inconsistency(root) if not damages else ())
    return Audit(store_sha256=mf.store_sha256(data), n_files=len(manifest), n_bytes=n_bytes, damages=tuple(damages))


def _manifest_bytes(path: Path) -> bytes:
    """The manifest, never through a link or out of a pipe that nobody fills."""
    if path.is_symlink() or not path.is_file():
        found = "a link or special file, not a plain one" if path.is_symlink() or path.exists() else "missing"
        raise IntegrityError(found, code="store.manifest")
    return path.read_bytes()


def _damage(root: Path, path: str, promised: mf.FileDigest, size: int | None) -> str | None:
    if size is None:
        return "missing"
    if size < 0:
        return "a link or special file, not a plain one"
    return mf.damage_of(path, (root / path).read_bytes(), promised)


def _inconsistency(root: Path) -> Iterator[Damage]:
    """What only the whole tells: manifest and root attributes that do not vouch for each other."""
    try:
        open_record(root)
    except (IntegrityError, SourceError) as exc:
        yield Damage(path=mf.MANIFEST_NAME, holds="the manifest", found=exc.message)
