"""NPZ files written byte by byte: headers and values as given, dates fixed, so the same members are the same file."""

from __future__ import annotations

import hashlib
import itertools
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.scan.npy import npy_prefix, raw_bytes
from pipeline.scan.npz import ReadDigest, crc32

_FIXED_DATE: Final = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class OutMember:
    """A member to write: `prefix` is its .npy header, `blocks` its values' bytes in order, made when asked for."""

    name: str
    prefix: bytes
    blocks: Iterable[bytes | memoryview]
    deflated: bool


def array_member(name: str, array: NDArray[np.generic], *, deflated: bool = False) -> OutMember:
    """A member of an array in memory (no objects), in C order."""
    assert not array.dtype.hasobject, name
    prefix = npy_prefix(array.shape, array.dtype)
    return OutMember(name=name, prefix=prefix, blocks=[raw_bytes(array)], deflated=deflated)


def write_npz(path: Path, members: Iterable[OutMember]) -> dict[str, ReadDigest]:
    """Write an NPZ to `path` (staged by the caller) with fixed dates; the digest of each member's .npy bytes."""
    written: dict[str, ReadDigest] = {}
    with zipfile.ZipFile(path, "w", allowZip64=True) as archive:
        for member in members:
            info = zipfile.ZipInfo(f"{member.name}.npy", date_time=_FIXED_DATE)
            info.compress_type = zipfile.ZIP_DEFLATED if member.deflated else zipfile.ZIP_STORED
            sha, crc = hashlib.sha256(), 0
            with archive.open(info, "w", force_zip64=True) as out:
                for block in itertools.chain([member.prefix], member.blocks):
                    out.write(block)
                    sha.update(block)
                    crc = crc32(block, crc)
            written[member.name] = ReadDigest(sha256=sha.hexdigest(), crc32=crc)
    return written
