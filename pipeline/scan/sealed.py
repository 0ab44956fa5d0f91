"""Small JSON documents that prove themselves: one spelling, and the digest of everything else inside."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from pipeline.errors import IntegrityError, NotFoundError
from pipeline.scan.staging import staged_file

SEAL: Final = "manifest_sha256"
_MAX_BYTES: Final = 64 << 20


def spelled(document: Mapping[str, Any]) -> bytes:
    """The one spelling of a document: indent 2, sorted keys, one newline at the end."""
    return (json.dumps(document, indent=2, sort_keys=True, allow_nan=False) + "\n").encode()


def sealed(document: Mapping[str, Any], *, key: str = SEAL) -> dict[str, Any]:
    """The document with, under `key`, the SHA-256 of its spelling without that key.

    >>> sealed({"a": 1})["manifest_sha256"][:8]
    '8a21f46b'
    """
    rest = {name: value for name, value in document.items() if name != key}
    return {**rest, key: hashlib.sha256(spelled(rest)).hexdigest()}


def write_document(path: Path, document: Mapping[str, Any]) -> None:
    """Write a document under its name, whole and durable, in place of what was there."""
    with staged_file(path, overwrite=True) as stage:
        stage.write_bytes(spelled(document))


def read_document(path: Path) -> dict[str, Any]:
    """A document, in whatever spelling.

    Raises
    ------
    NotFoundError
        Nothing is there.
    IntegrityError
        It is no plain file with one JSON object.
    """
    if not path.exists():
        raise NotFoundError(f"{path}: no such file", code="study.not_found")
    try:
        if path.is_symlink() or not path.is_file() or path.stat().st_size > _MAX_BYTES:
            raise ValueError("a link, a special file, or larger than any of ours")
        document = json.loads(path.read_bytes())
        if not isinstance(document, dict):
            raise ValueError("not a JSON object")
    except (ValueError, RecursionError) as exc:
        raise IntegrityError(f"{path}: cannot be read: {exc}", code="study.document") from exc
    return document


def read_sealed(path: Path, *, key: str | None = SEAL) -> dict[str, Any]:
    """A document that was sealed and written here, to be carried on; empty where there is none.

    Raises
    ------
    IntegrityError
        It is not as it was written.
    """
    if not path.exists():
        return {}
    document = read_document(path)
    for found in changes(path, document, key=key):
        raise IntegrityError(
            f"{path}: {found}, so nothing is added to it", code="study.document",
            hint="look what changed; moved away, it is written anew by the same command without filters",
        )  # fmt: skip
    return document


def changes(path: Path, document: Mapping[str, Any], *, key: str | None = SEAL) -> Iterator[str]:
    """In words, how a document on disk differs from one that was sealed and written here; nothing where it does not."""
    if path.read_bytes() != spelled(document):
        yield "its bytes are not as they were written"
    elif key is not None and document != sealed(document, key=key):
        yield f"its content is not what its {key} says"
