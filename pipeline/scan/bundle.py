"""The container of a bundle, `wts.h5.zip`: three members in a zip of which every byte follows from their content.

Nothing but the manifest says what the others must be, so it proves them against accident, and against intent only
where the SHA-256 of the file came another way. What is in the members is no matter here.
"""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from pipeline.errors import BundleError, NotFoundError, SourceError
from pipeline.scan.audit import Damage
from pipeline.scan.manifest import canonical_json
from pipeline.scan.npz import sha256_file
from pipeline.scan.staging import staged_file

BUNDLE_NAME: Final = "wts.h5.zip"
CONFIG: Final = "config.json"
MANIFEST: Final = "manifest.json"
WEIGHTS: Final = "wts.h5"
MEMBERS: Final = (CONFIG, MANIFEST, WEIGHTS)
"""All that a bundle holds, in the order of the file."""

FORMAT: Final = "ptychozarr-bundle/1"
MAX_MEMBER_BYTES: Final = 256 << 20
MAX_JSON_BYTES: Final = 4 << 20
"""JSON takes many times its size in memory."""

_HOLDS: Final = {CONFIG: "the configuration", MANIFEST: "the manifest", WEIGHTS: "weights and probe"}
_OWN_KEYS: Final = frozenset({"format", "members"})

_RECORD: Final = struct.Struct("<4sHHHHHLLLHH")
_ENTRY: Final = struct.Struct("<4s6H3L5H2L")
_END: Final = struct.Struct("<4s4H2LH")
_RECORD_MARK, _ENTRY_MARK, _END_MARK = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"
_VERSION: Final = 20
_UNIX: Final = 3 << 8
_PLAIN_FILE: Final = 0o100644 << 16
_MIDNIGHT, _FIRST_DAY = 0, 1 << 5 | 1  # 1980-01-01, the first date that a zip can say
_LONGEST_END: Final = _END.size + 0xFFFF
_MAX_FRAMING: Final = 1 << 10  # records, directory and end of three members have far less


@dataclass(frozen=True, kw_only=True, slots=True)
class BundleFiles:
    """The members of a bundle, each proven by the manifest, and the SHA-256 of the file that held them."""

    members: Mapping[str, bytes]
    manifest: Mapping[str, Any]
    sha256: str

    @property
    def lineage(self) -> dict[str, Any]:
        """What the bundle was made from and how, as given to `pack_bundle`."""
        return {key: value for key, value in self.manifest.items() if key not in _OWN_KEYS}


@dataclass(frozen=True, kw_only=True, slots=True)
class BundleAudit:
    """What was compared in a bundle and what differs. The lineage is empty where the manifest is damaged."""

    bundle_sha256: str
    n_files: int
    n_bytes: int
    lineage: Mapping[str, Any]
    damages: tuple[Damage, ...]


def pack_bundle(path: Path, members: Mapping[str, bytes], lineage: Mapping[str, Any]) -> str:
    """Write a bundle to `path`, whole and read back, or not at all; the SHA-256 of the file.

    A file there that already is this bundle is left as it is.

    Parameters
    ----------
    members : the bytes of config.json and wts.h5.
    lineage : what the manifest tells besides; values that JSON can hold.

    Raises
    ------
    TargetExistsError
        Something else is at `path`.
    BundleError
        A member is larger than a reader would take.
    """
    assert set(members) == {CONFIG, WEIGHTS}, sorted(members)
    assert not _OWN_KEYS & set(lineage), sorted(lineage)
    promised = {name: _promise(data) for name, data in members.items()}
    manifest = canonical_json({**lineage, "format": FORMAT, "members": promised})
    whole = {CONFIG: members[CONFIG], MANIFEST: manifest, WEIGHTS: members[WEIGHTS]}
    for name, data in whole.items():
        if len(data) > _most(name):
            raise BundleError(
                f"{path}: member {name!r} would have {len(data)} bytes, a bundle holds at most {_most(name)}",
                code="bundle.size",
            )
    content = b"".join(_pieces(whole))
    sha256 = hashlib.sha256(content).hexdigest()
    if path.is_file() and not path.is_symlink() and sha256_file(path) == sha256:
        return sha256
    with staged_file(path) as stage:
        stage.write_bytes(content)
        read_bundle(stage)
    return sha256


def read_bundle(path: Path) -> BundleFiles:
    """The members of the bundle at `path`, every byte of the file accounted for.

    Raises
    ------
    NotFoundError
        Nothing is there.
    SourceError
        It is no bundle, or one of a version that is not known here.
    BundleError
        It is one, and not as it was written: each damage is named.
    """
    data = _read(path)
    found, damages = _inspect(data)
    if damages:
        raise _changed(path, "; ".join(f"{damage.holds}: {damage.found}" for damage in damages))
    manifest = _known(path, found)
    members = {name: bytes(view) for name, view in found.items()}
    return BundleFiles(members=members, manifest=manifest, sha256=hashlib.sha256(data).hexdigest())


def audit_bundle(path: Path) -> BundleAudit:
    """Re-hash everything that the bundle at `path` claims. Damage is returned, not raised.

    Raises
    ------
    NotFoundError, SourceError
        Nothing is there, or it is no bundle of ours.
    """
    data = _read(path)
    found, damages = _inspect(data)
    manifest = {} if damages else _known(path, found)
    return BundleAudit(
        bundle_sha256=hashlib.sha256(data).hexdigest(),
        n_files=len(MEMBERS),
        n_bytes=len(data),
        lineage={key: value for key, value in manifest.items() if key not in _OWN_KEYS},
        damages=tuple(damages),
    )


def read_claims(path: Path) -> Mapping[str, Any]:
    """What the bundle at `path` says it was made from and how; its weights are neither read nor proven.

    Raises
    ------
    NotFoundError, SourceError
        Nothing is there, or it is no bundle of ours.
    BundleError
        Configuration or manifest were changed, or the file is longer or shorter than they say.
    """
    if not path.is_file():
        raise NotFoundError(f"{path}: no such bundle", code="bundle.not_found")
    with path.open("rb") as file:
        found = {name: memoryview(_leading(path, file, name)) for name in (CONFIG, MANIFEST)}
    manifest = _known(path, found)
    try:
        promised = {name: manifest["members"][name] for name in (CONFIG, WEIGHTS)}
        sizes = {CONFIG: promised[CONFIG]["bytes"], MANIFEST: len(found[MANIFEST]), WEIGHTS: promised[WEIGHTS]["bytes"]}
        length = sum(_RECORD.size + len(name) + size for name, size in sizes.items())
        whole = length + len(_closing(dict.fromkeys(MEMBERS, (0, 0))))
    except (KeyError, TypeError) as exc:
        raise _changed(path, f"{MANIFEST}: does not list {CONFIG} and {WEIGHTS} as its members") from exc
    if canonical_json(manifest) != bytes(found[MANIFEST]):
        raise _changed(path, f"{MANIFEST}: not canonical JSON, so it was changed after writing")
    if promised[CONFIG] != _promise(found[CONFIG]):
        raise _changed(path, f"{CONFIG}: not what the manifest says")
    if path.stat().st_size != whole:
        raise _changed(path, f"{path.stat().st_size} bytes, its manifest says {whole}")
    return {key: value for key, value in manifest.items() if key not in _OWN_KEYS}


def _leading(path: Path, file: IO[bytes], name: str) -> bytes:
    """The member that a bundle holds next, header and CRC-32 compared."""
    header = file.read(_RECORD.size + len(name))
    size = _RECORD.unpack(header[: _RECORD.size])[8] if len(header) > _RECORD.size else 0
    data = file.read(min(size, MAX_JSON_BYTES))
    if header != _header(name, len(data), zlib.crc32(data)):
        raise _changed(path, f"{name} is not there as written")
    return data


def _changed(path: Path, found: str) -> BundleError:
    return BundleError(f"{path}: {found}", code="bundle.damaged", hint="take an undamaged copy")


def _most(name: str) -> int:
    return MAX_MEMBER_BYTES if name == WEIGHTS else MAX_JSON_BYTES


def _promise(data: bytes | memoryview) -> dict[str, object]:
    """What the manifest says of a member."""
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


# --- every byte of the file that is no member's


def _pieces(members: Mapping[str, bytes]) -> Iterator[bytes]:
    """The whole file in order."""
    crcs = {name: zlib.crc32(data) for name, data in members.items()}
    for name, data in members.items():
        yield _header(name, len(data), crcs[name])
        yield data
    yield _closing({name: (len(data), crcs[name]) for name, data in members.items()})


def _header(name: str, size: int, crc: int) -> bytes:
    """What stands before a member's data."""
    sizes = (crc, size, size, len(name), 0)
    return _RECORD.pack(_RECORD_MARK, _VERSION, 0, 0, _MIDNIGHT, _FIRST_DAY, *sizes) + name.encode()


def _closing(members: Mapping[str, tuple[int, int]]) -> bytes:
    """Directory and end of the file: name -> bytes, CRC-32."""
    directory, at = b"", 0
    for name, (size, crc) in members.items():
        when = (_UNIX | _VERSION, _VERSION, 0, 0, _MIDNIGHT, _FIRST_DAY)
        directory += _ENTRY.pack(
            _ENTRY_MARK, *when, crc, size, size, len(name), 0, 0, 0, 0, _PLAIN_FILE, at
        ) + name.encode()  # fmt: skip
        at += _RECORD.size + len(name) + size
    return directory + _END.pack(_END_MARK, 0, 0, len(members), len(members), len(directory), at, 0)


# --- reading without trust


def _read(path: Path) -> bytes:
    """The bytes of a file that looks like a bundle, whole or damaged."""
    if not path.exists():
        raise NotFoundError(f"{path}: no such bundle", code="bundle.not_found")
    if not path.is_file():
        raise SourceError(f"{path}: not a file, so not a bundle", code="bundle.foreign")
    largest = sum(map(_most, MEMBERS)) + _MAX_FRAMING
    with path.open("rb") as file:
        size = path.stat().st_size
        head = file.read(_RECORD.size + len(MEMBERS[0]))
        file.seek(max(0, size - _LONGEST_END))
        tail = file.read(_LONGEST_END)
        if not (head.startswith(_RECORD_MARK) or _END_MARK in tail):
            raise SourceError(
                f"{path}: not a zip file, so not a bundle (first bytes {head[:8]!r})", code="bundle.foreign"
            )
        if not (head.endswith(MEMBERS[0].encode()) or MEMBERS[-1].encode() in tail):
            raise SourceError(
                f"{path}: a zip file, but no bundle (no {CONFIG}, no {WEIGHTS})",
                code="bundle.foreign",
                hint="python -m converters.inspect, if it is an NPZ" if path.suffix == ".npz" else None,
            )
        if size > largest:
            raise BundleError(f"{path}: {size} bytes; no bundle has more than {largest}", code="bundle.size")
        file.seek(0)
        return file.read(size)


def _inspect(data: bytes) -> tuple[dict[str, memoryview], list[Damage]]:
    """The members as far as they can be read, and all that is not as `pack_bundle` writes it."""
    members, damages = _walk(data)
    if not damages:
        damages = list(_unpromised(members))
    return members, damages


def _walk(data: bytes) -> tuple[dict[str, memoryview], list[Damage]]:
    """The members one after the other from byte 0, and what differs from the only file that holds just them.

    The directory is never trusted: it is made anew from what was found and has to be the rest of the file.
    """
    members: dict[str, memoryview] = {}
    listed: dict[str, tuple[int, int]] = {}
    damages: list[Damage] = []
    at, before = 0, data.find(_RECORD_MARK)
    if before != 0:
        told = f"{before} bytes before its first member" if before > 0 else "it holds no member"
        return members, [_of_file(told)]
    while data.startswith(_RECORD_MARK, at):
        found = _member_at(data, at, members)
        if isinstance(found, Damage):
            return members, [*damages, found]
        name, start, size = found
        members[name] = content = memoryview(data)[start : start + size]
        listed[name] = size, zlib.crc32(content)
        damages.extend(_header_damages(data[at:start], name, *listed[name]))
        at = start + size
    damages.extend(_damage(name, "missing") for name in MEMBERS if name not in members)
    if not damages and tuple(members) != MEMBERS:
        damages.append(_of_file(f"its members are not in order: {', '.join(members)}"))
    if not damages:
        damages.extend(_closing_damages(data[at:], _closing(listed)))
    return members, damages


def _member_at(data: bytes, at: int, before: Mapping[str, object]) -> tuple[str, int, int] | Damage:
    """Name, first byte and size of the member whose record begins at `at`, or why there is none to go on with."""
    fixed = data[at : at + _RECORD.size]
    if len(fixed) < _RECORD.size:
        return _of_file("it ends within the header of a member (truncated?)")
    _, _, _, method, _, _, _, _, size, name_length, _ = _RECORD.unpack(fixed)
    start = at + _RECORD.size + name_length
    name = data[at + _RECORD.size : start].decode("latin-1")
    if name not in MEMBERS:
        return _damage(name, "no part of a bundle")
    if name in before:
        return _damage(name, "there twice")
    if method != 0:
        return _damage(name, f"compressed (method {method}); the members of a bundle are stored as they are")
    if size > _most(name):
        return _damage(name, f"said to have {size} bytes; at most {_most(name)} are read")
    if start + size > len(data):
        return _damage(name, f"said to have {size} bytes, and the file ends after {len(data) - start} (truncated?)")
    return name, start, size


def _header_damages(header: bytes, name: str, size: int, crc: int) -> Iterator[Damage]:
    if header == _header(name, size, crc):
        return
    said = _RECORD.unpack(header[: _RECORD.size])[6]
    if said != crc:
        yield _damage(name, f"changed: its CRC-32 is {crc:08x}, its header says {said:08x}")
    else:
        yield _damage(name, "its header is not as written")


def _closing_damages(rest: bytes, expected: bytes) -> Iterator[Damage]:
    if rest == expected:
        return
    if rest.startswith(expected):
        yield _of_file(f"{len(rest) - len(expected)} bytes after its end")
    elif expected.startswith(rest):
        yield _of_file(f"its last {len(expected) - len(rest)} bytes are missing (truncated?)")
    else:
        yield _of_file("its directory is not that of its members")


def _unpromised(members: Mapping[str, memoryview]) -> Iterator[Damage]:
    """What the manifest and the other members do not say alike."""
    data = bytes(members[MANIFEST])
    try:
        manifest = json.loads(data)
        canonical = canonical_json(manifest)
    except (ValueError, RecursionError) as exc:
        yield _damage(MANIFEST, f"not JSON of ours: {exc}")
        return
    if not isinstance(manifest, dict) or canonical != data:
        yield _damage(MANIFEST, "not canonical JSON, so it was changed after writing")
        return
    if manifest.get("format") != FORMAT:
        return  # `_known` refuses it, by another name than damage
    listed = manifest.get("members")
    if not isinstance(listed, dict) or set(listed) != {CONFIG, WEIGHTS}:
        yield _damage(MANIFEST, f"does not list {CONFIG} and {WEIGHTS} as its members")
        return
    for name, promised in sorted(listed.items()):
        found = _promise(members[name])
        if promised != found:
            yield _damage(name, f"{_told(found)}, the manifest says {_told(promised)}")


def _told(promise: object) -> str:
    """A promise for people; what a stranger wrote there is cut and escaped."""
    if isinstance(promise, dict) and set(promise) == {"bytes", "sha256"}:
        return f"{ascii(promise['bytes'])[:20]} bytes of SHA-256 {ascii(promise['sha256'])[1:13]}…"
    return ascii(promise)[:40]


def _known(path: Path, members: Mapping[str, memoryview]) -> dict[str, Any]:
    """The manifest of an undamaged bundle; refused where its format is not ours."""
    manifest: dict[str, Any] = json.loads(bytes(members[MANIFEST]))
    if manifest.get("format") != FORMAT:
        raise SourceError(
            f"{path}: its format is {ascii(manifest.get('format'))[:60]}; {FORMAT!r} is read here",
            code="bundle.format",
            hint="a newer ptychozarr may read it",
        )
    return manifest


def _damage(name: str, found: str) -> Damage:
    what = f"{name} ({_HOLDS[name]})" if name in _HOLDS else f"member {name[:80]!r}"
    return Damage(path=name, holds=what, found=found)


def _of_file(found: str) -> Damage:
    return Damage(path="", holds="the file", found=found)
