"""What a store's files are: path -> size, SHA-256, CRC-32C, as canonical bytes, and what differs from them.

Chunk files end in the CRC-32C of all their other bytes (Zarr's crc32c codec). For them `crc32c` is that number:
over the whole file it would be one constant. For any other file it is the CRC-32C of the whole.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import google_crc32c

from pipeline.errors import IntegrityError

MANIFEST_NAME = "manifest.json"
ROOT_METADATA = "zarr.json"
TRAILER_BYTES = 4


@dataclass(frozen=True, slots=True)
class FileDigest:
    """Size in bytes, SHA-256 (hex) and CRC-32C of one file."""

    size: int
    sha256: str
    crc32c: int


Manifest = Mapping[str, FileDigest]


def is_chunk(path: str) -> bool:
    """True for a chunk file, whose last four bytes are a CRC-32C; false for metadata."""
    return path.rsplit("/", 1)[-1] != ROOT_METADATA


def looks_like_chunk(path: str) -> bool:
    """True for a file name that a chunk of ours has, `c` or `c.3.0.0`."""
    name, *numbers = path.rsplit("/", 1)[-1].split(".")
    return "/" in path and name == "c" and all(number.isdigit() for number in numbers)


def digest(path: str, data: bytes) -> FileDigest:
    """The digest of a file with this store path and content."""
    covered = data[:-TRAILER_BYTES] if is_chunk(path) else data
    return FileDigest(len(data), hashlib.sha256(data).hexdigest(), google_crc32c.value(bytes(covered)))


def trailer(data: bytes) -> int:
    """The CRC-32C that a chunk file carries in its last four bytes (little-endian)."""
    return int.from_bytes(data[-TRAILER_BYTES:], "little")


def canonical_json(value: object) -> bytes:
    """Sorted keys, no spaces, ASCII, one newline at the end."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return text.encode("ascii") + b"\n"


def encode(manifest: Manifest) -> bytes:
    """The canonical bytes of a manifest; their SHA-256 is the store's name, `store_sha256`."""
    return canonical_json({path: [d.size, d.sha256, d.crc32c] for path, d in manifest.items()})


def files_sha256(manifest: Manifest) -> str:
    """SHA-256 of the manifest without the root's zarr.json, which carries this number: each vouches for the other."""
    return hashlib.sha256(encode({p: d for p, d in manifest.items() if p != ROOT_METADATA})).hexdigest()


def store_sha256(data: bytes) -> str:
    """The store's identity: SHA-256 of the bytes of its manifest.json."""
    return hashlib.sha256(data).hexdigest()


def decode(data: bytes, *, where: str) -> Manifest:
    """A manifest from its bytes.

    Raises
    ------
    IntegrityError
        It is not JSON of the right form, or not canonical to the byte.
    """
    try:
        table = json.loads(data)
        manifest = {str(p): FileDigest(int(n), str(sha), int(crc)) for p, (n, sha, crc) in table.items()}
    except (ValueError, TypeError, AttributeError) as exc:
        raise IntegrityError(f"{where}: not a manifest: {exc}", code="store.manifest") from exc
    if any(PurePosixPath(p).is_absolute() or ".." in PurePosixPath(p).parts for p in manifest):
        raise IntegrityError(f"{where}: names files outside the store", code="store.manifest")
    if encode(manifest) != data:
        raise IntegrityError(f"{where}: not canonical JSON, so it was changed after writing", code="store.manifest")
    return manifest


def listing(root: Path) -> dict[str, int]:
    """Every file below `root` but the manifest: store path -> size. Links and special files have size -1."""
    found: dict[str, int] = {}
    for folder, folders, files in os.walk(root):
        base = Path(folder)
        linked = [name for name in folders if (base / name).is_symlink()]
        for name in [*files, *linked]:
            path = base / name
            plain = path.is_file() and not path.is_symlink()
            found[path.relative_to(root).as_posix()] = path.stat().st_size if plain else -1
    found.pop(MANIFEST_NAME, None)
    return found


def damage_of(path: str, data: bytes, promised: FileDigest) -> str | None:
    """How a file's bytes differ from its entry: size, SHA-256, CRC-32C or trailer; None where they agree."""
    if len(data) != promised.size:
        return f"{len(data)} bytes, the manifest says {promised.size}"
    found = digest(path, data)
    if found.sha256 != promised.sha256:
        return f"SHA-256 is {found.sha256[:12]}…, the manifest says {promised.sha256[:12]}…"
    if found.crc32c != promised.crc32c:
        return f"CRC-32C is {found.crc32c:08x}, the manifest says {promised.crc32c:08x}"
    if is_chunk(path) and trailer(data) != found.crc32c:
        return f"CRC-32C is {found.crc32c:08x}, the file's last four bytes say {trailer(data):08x}"
    return None
