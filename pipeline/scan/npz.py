"""The members of an NPZ file: found without trust, read front to back in bounded memory.

Nothing is unpickled and no array is allocated before the sizes of directory, record and .npy header agree. Every
read runs to the member's last byte, so that CRC-32 and length are always checked (`numpy.load` checks neither on
a member that is longer than its header says).
"""

from __future__ import annotations

import hashlib
import math
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import IntegrityError, NotFoundError, SourceError
from pipeline.scan.npy import MAGIC, MAX_HEADER, NpyHeader, parse_header, raw_bytes

_zlib: Any
try:
    from isal import isal_zlib as _zlib  # extra `fast`: the same bytes, inflated two to three times faster
except ImportError:
    _zlib = zlib
crc32: Final[Callable[..., int]] = _zlib.crc32
"""CRC-32 of a buffer, continued from the second argument; by isal where that is installed."""

_INFLATE_ERRORS: Final[tuple[type[Exception], ...]] = (zlib.error, _zlib.error)
_HEADER_ERRORS: Final[tuple[type[Exception], ...]] = (ValueError, *_INFLATE_ERRORS)

_LOCAL_HEADER: Final = struct.Struct("<4sHHHHHLLLHH")
_ENCRYPTED, _HAS_DESCRIPTOR, _UTF8_NAME = 0x1, 0x8, 0x800
_FLAGS: Final = _ENCRYPTED | _HAS_DESCRIPTOR | _UTF8_NAME
_ZIP64_EXTRA, _IN_ZIP64_EXTRA = 0x1, 0xFFFFFFFF
_MAX_DEFLATE_RATIO: Final = 1032  # 258 bytes from 2 bits: what claims more cannot be inflated to it
_PIECE: Final = 256 << 10


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """One array of an NPZ: its name, header, and where its bytes are."""

    name: str
    header: NpyHeader
    offset: int
    size: int
    compressed_size: int
    deflated: bool
    crc32: int

    @property
    def is_object(self) -> bool:
        """True where the values are a pickle, which nothing here reads."""
        return self.header.dtype.hasobject

    def describe(self) -> str:
        """Shape and dtype for people."""
        order = ", Fortran order" if self.header.fortran_order else ""
        return f"{self.header.shape} {self.header.dtype.str}{order}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Npz:
    """An NPZ file whose directory was checked: `members` by name, in the order of the file."""

    path: Path
    members: dict[str, Member]
    state: tuple[int, int, int]

    def unchanged(self) -> bool:
        """Whether the file still has the size, time and inode it had when it was opened."""
        return _state(self.path) == self.state


def _state(path: Path) -> tuple[int, int, int]:
    info = path.stat()
    return info.st_size, info.st_mtime_ns, info.st_ino


def open_npz(path: Path) -> Npz:
    """The members of an NPZ, headers only.

    Raises
    ------
    NotFoundError
        There is no such file.
    SourceError
        It is no zip file, or its directory and records do not describe one set of .npy arrays: duplicates,
        overlaps, gaps, foreign members, sizes that disagree.
    """
    if path.is_dir():
        raise SourceError(f"{path}: a folder, not an NPZ file", code="npz.not_zip")
    if not path.is_file():
        raise NotFoundError(f"{path}: no such file", code="source.not_found")
    state = _state(path)
    with path.open("rb") as file:
        _refuse_lookalikes(path, file.read(8))
        try:
            directory = zipfile.ZipFile(file)
        except (zipfile.BadZipFile, ValueError, NotImplementedError) as exc:
            raise SourceError(f"{path}: not a whole zip file (truncated?): {exc}", code="npz.not_zip") from exc
        infos = directory.infolist()
        _refuse_names(path, infos)
        starts = _record_starts(path, file, infos, directory.start_dir)
        _refuse_trailing(path, file, state[0], len(infos))
        members = [_member(path, file, info, starts[info.filename]) for info in infos]
    return Npz(path=path, members={m.name: m for m in members}, state=state)


def _refuse_lookalikes(path: Path, first: bytes) -> None:
    if first.startswith(MAGIC):
        raise SourceError(
            f"{path}: a single .npy array, not an NPZ", code="npz.not_zip", hint="numpy.savez with named arrays"
        )
    if not first.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        raise SourceError(f"{path}: not a zip file, so not an NPZ (first bytes {first!r})", code="npz.not_zip")


def _refuse_names(path: Path, infos: list[zipfile.ZipInfo]) -> None:
    """Members are named arrays, each once; what cannot be printed is no name but an attack on who reads it."""
    seen: set[str] = set()
    for info in infos:
        name = info.filename.removesuffix(".npy")
        if info.orig_filename != info.filename or not name.isprintable():
            raise SourceError(
                f"{path}: member name {info.orig_filename!r} does not print as it is", code="npz.member_name"
            )
        if name == info.filename:
            raise SourceError(f"{path}: member {info.filename!r} is not an array (.npy)", code="npz.foreign_member")
        if name in seen:
            raise SourceError(f"{path}: member {name!r} occurs twice", code="npz.duplicate_member")
        seen.add(name)


def _record_starts(path: Path, file: BinaryIO, infos: list[zipfile.ZipInfo], directory_at: int) -> dict[str, int]:
    """Where each member's data begin; the records must follow each other without gap or overlap."""
    starts: dict[str, int] = {}
    position = 0
    for info in sorted(infos, key=lambda i: i.header_offset):
        slack = info.header_offset - position
        if slack < 0:
            raise SourceError(f"{path}: member {info.filename!r} overlaps the one before it", code="npz.overlap")
        if slack > 0:
            raise SourceError(
                f"{path}: {slack} unlisted bytes before member {info.filename!r}", code="npz.unlisted_bytes"
            )
        starts[info.filename] = start = _data_start(path, file, info)
        position = start + info.compress_size
        if info.flag_bits & _HAS_DESCRIPTOR:
            position += _descriptor_bytes(path, file, info, position)
    if position != directory_at:
        raise SourceError(
            f"{path}: members end at byte {position}, the directory begins at {directory_at}", code="npz.unlisted_bytes"
        )
    return starts


def _descriptor_bytes(path: Path, file: BinaryIO, info: zipfile.ZipInfo, position: int) -> int:
    """The length of the data descriptor at `position`, which must repeat what the directory says."""
    file.seek(position)
    found = file.read(24)
    promised = (info.CRC, info.compress_size, info.file_size)
    for form in ("<LQQ", "<LLL") if max(promised) <= _IN_ZIP64_EXTRA else ("<LQQ",):
        for descriptor in (struct.pack(form, *promised), b"PK\x07\x08" + struct.pack(form, *promised)):
            if found.startswith(descriptor):
                return len(descriptor)
    raise SourceError(
        f"{path}: what follows member {info.filename!r} does not repeat the directory's sizes and CRC-32",
        code="npz.header_mismatch",
    )


def _refuse_trailing(path: Path, file: BinaryIO, file_size: int, n_members: int) -> None:
    """The end record must be the file's last bytes (its comment included) and count the members listed."""
    file.seek(max(0, file_size - (1 << 16) - 22))
    tail = file.read()
    at = tail.rfind(b"PK\x05\x06")
    comment = int.from_bytes(tail[at + 20 : at + 22], "little")
    if at < 0 or at + 22 + comment != len(tail):
        raise SourceError(f"{path}: bytes after the end of the zip file", code="npz.unlisted_bytes")
    counted = int.from_bytes(tail[at + 10 : at + 12], "little")
    if counted not in (n_members, 0xFFFF):
        raise SourceError(
            f"{path}: the directory lists {n_members} members, its end record {counted}", code="npz.header_mismatch"
        )


def _data_start(path: Path, file: BinaryIO, info: zipfile.ZipInfo) -> int:
    """Where a member's data begin; its record must say what the directory says."""
    file.seek(info.header_offset)
    raw = file.read(_LOCAL_HEADER.size)
    if len(raw) < _LOCAL_HEADER.size or raw[:4] != b"PK\x03\x04":
        raise SourceError(f"{path}: no record where the directory puts {info.filename!r}", code="npz.header_mismatch")
    _, _, flags, method, _, _, crc, packed, size, name_length, extra_length = _LOCAL_HEADER.unpack(raw)
    name, extra = file.read(name_length), file.read(extra_length)
    encoding = "utf-8" if info.flag_bits & _UTF8_NAME else "cp437"
    listed = [info.orig_filename.encode(encoding), info.compress_type, info.flag_bits & _FLAGS]
    found = [name, method, flags & _FLAGS]
    if not flags & _HAS_DESCRIPTOR:
        listed += [info.CRC, info.file_size, info.compress_size]
        found += [crc, *_local_sizes(size, packed, extra)]
    if found != listed:
        raise SourceError(
            f"{path}: the directory lists {listed}, the record there is {found} (name, method, flags, CRC-32, bytes, "
            f"packed bytes)",
            code="npz.header_mismatch",
        )
    if flags & _ENCRYPTED or method not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise SourceError(
            f"{path}: member {info.filename!r} is encrypted or packed with method {method}; only stored and deflated "
            f"members are read",
            code="npz.method",
            hint="save it again with numpy.savez or numpy.savez_compressed",
        )
    return int(info.header_offset + _LOCAL_HEADER.size + name_length + extra_length)


def _local_sizes(size: int, packed: int, extra: bytes) -> tuple[int, int]:
    """Plain and packed size of a record, taken from its zip64 extra field where the header points there."""
    wide = b""
    while len(extra) >= 4 and not wide:
        tag, length = struct.unpack("<HH", extra[:4])
        wide, extra = extra[4 : 4 + length] if tag == _ZIP64_EXTRA else b"", extra[4 + length :]
    if size == _IN_ZIP64_EXTRA:
        size, wide = int.from_bytes(wide[:8], "little"), wide[8:]
    if packed == _IN_ZIP64_EXTRA:
        packed = int.from_bytes(wide[:8], "little")
    return size, packed


def _member(path: Path, file: BinaryIO, info: zipfile.ZipInfo, start: int) -> Member:
    where = f"{path}: member {info.filename.removesuffix('.npy')!r}"
    deflated = info.compress_type == zipfile.ZIP_DEFLATED
    file.seek(start)
    raw = file.read(min(info.compress_size, MAX_HEADER + 64))
    try:
        head = _zlib.decompressobj(-15).decompress(raw, MAX_HEADER + 64) if deflated else raw
        header = parse_header(head)
    except _HEADER_ERRORS as exc:
        raise SourceError(f"{where}: bad .npy header: {exc}", code="npz.header") from exc
    if not header.dtype.hasobject:
        promised = len(header.prefix) + math.prod(header.shape) * header.dtype.itemsize
        if promised != info.file_size:
            raise SourceError(
                f"{where}: its header promises {promised} bytes ({header.shape} {header.dtype.str}), the zip directory "
                f"{info.file_size}",
                code="npz.size_mismatch",
            )
    largest = (info.compress_size + 1) * _MAX_DEFLATE_RATIO if deflated else info.compress_size
    if info.file_size > largest or (not deflated and info.file_size < largest):
        raise SourceError(
            f"{where}: {info.compress_size} bytes in the file, said to hold {info.file_size}", code="npz.size_mismatch"
        )
    return Member(
        name=info.filename.removesuffix(".npy"),
        header=header,
        offset=start,
        size=info.file_size,
        compressed_size=info.compress_size,
        deflated=deflated,
        crc32=info.CRC,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadDigest:
    """What one front-to-back reading of a member saw: SHA-256 of the .npy bytes, header included."""

    sha256: str
    crc32: int


class MemberReader:
    """Reads one member front to back; every byte counts towards its CRC-32 and SHA-256."""

    def __init__(self, npz: Npz, member: Member) -> None:
        self._where = f"{npz.path}: member {member.name!r}"
        self._member = member
        self._file = npz.path.open("rb", buffering=0)
        self._file.seek(member.offset)
        self._packed_left = member.compressed_size
        self._left = member.size
        self._inflate = _zlib.decompressobj(-15) if member.deflated else None
        self._tail = b""
        self._crc = 0
        self._sha = hashlib.sha256()
        try:
            self._skip_prefix()
        except BaseException:
            self._file.close()
            raise

    def _skip_prefix(self) -> None:
        prefix = bytearray(len(self._member.header.prefix))
        self.readinto(memoryview(prefix))
        if bytes(prefix) != self._member.header.prefix:
            raise self._changed()

    def __enter__(self) -> MemberReader:
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()

    def readinto(self, out: memoryview) -> None:
        """Fill `out` (bytes) with the member's next bytes; refuses to read past its end."""
        if len(out) > self._left:
            raise IntegrityError(f"{self._where}: ends early", code="npz.truncated")
        done = 0
        while done < len(out):
            step = self._stored(out[done:]) if self._inflate is None else self._inflated(out[done:])
            if step == 0:
                raise IntegrityError(f"{self._where}: its data end {len(out) - done} bytes early", code="npz.truncated")
            done += step
        self._left -= len(out)
        self._crc = crc32(out, self._crc)
        self._sha.update(out)

    def finish(self) -> ReadDigest:
        """Read what is left, check CRC-32 and length, and say what was read."""
        rest = bytearray(_PIECE)
        while self._left:
            self.readinto(memoryview(rest)[: min(_PIECE, self._left)])
        if self._inflate is not None:
            beyond = self._inflated(memoryview(bytearray(1)))
            if beyond or not self._inflate.eof or self._inflate.unused_data or self._packed_left:
                raise IntegrityError(
                    f"{self._where}: inflates to more than {self._member.size} bytes", code="npz.size_mismatch"
                )
        if self._crc != self._member.crc32:
            raise IntegrityError(
                f"{self._where}: CRC-32 is {self._crc:08x}, the zip directory says {self._member.crc32:08x}; "
                f"the file is damaged",
                code="npz.crc",
            )
        return ReadDigest(sha256=self._sha.hexdigest(), crc32=self._crc)

    def _stored(self, out: memoryview) -> int:
        return self._file.readinto(out) or 0

    def _inflated(self, out: memoryview) -> int:
        assert self._inflate is not None
        while not self._inflate.eof:
            if not self._tail and self._packed_left:
                self._tail = self._file.read(min(_PIECE, self._packed_left))
                self._packed_left -= len(self._tail)
                if not self._tail:
                    raise self._changed()
            try:
                piece = self._inflate.decompress(self._tail, len(out))
            except _INFLATE_ERRORS as exc:
                raise IntegrityError(f"{self._where}: cannot be inflated: {exc}", code="npz.crc") from exc
            self._tail = self._inflate.unconsumed_tail
            if piece:
                out[: len(piece)] = piece
                return len(piece)
            if not self._tail and not self._packed_left:
                return 0
        return 0

    def _changed(self) -> SourceError:
        return SourceError(f"{self._where}: the file changed while it was read", code="source.changed")


def disk_blocks(
    reader: MemberReader, shape: tuple[int, ...], dtype: np.dtype[Any], rows: int
) -> Iterator[NDArray[Any]]:
    """The next values in blocks of `rows` along the first axis of `shape` (C order of the bytes), in `dtype`.

    Each block is a fresh C-contiguous array of shape (k, *shape[1:]); a scalar or an empty array is one block.
    """
    for start in range(0, max(1, shape[0]), rows) if shape else (0,):
        block = np.ndarray((min(rows, shape[0] - start), *shape[1:]) if shape else (), dtype)  # empty() widens "S0"
        if block.nbytes:
            reader.readinto(raw_bytes(block))
        yield block


def read_array(npz: Npz, member: Member) -> tuple[NDArray[np.generic], ReadDigest]:
    """A whole small member, checked to its last byte, in its own dtype and shape (C order)."""
    shape = member.header.disk_shape
    with MemberReader(npz, member) as reader:
        array = next(disk_blocks(reader, shape, member.header.dtype, max(1, *shape[:1], 1)))
        read = reader.finish()
    return np.ascontiguousarray(array.T) if member.header.fortran_order else array, read


def read_raw(npz: Npz, member: Member) -> tuple[bytes, ReadDigest]:
    """The bytes of a member behind its header, whatever they mean. Nothing is unpickled."""
    with MemberReader(npz, member) as reader:
        data = bytearray(member.size - len(member.header.prefix))
        reader.readinto(memoryview(data))
        return bytes(data), reader.finish()


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
