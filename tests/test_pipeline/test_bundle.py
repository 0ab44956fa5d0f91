"""The container of a bundle: what is packed is read, the same bytes each time, and no byte changes unnoticed."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import BundleError, NotFoundError, PipelineError, SourceError, TargetExistsError
from pipeline.scan.bundle import FORMAT, MEMBERS, audit_bundle, pack_bundle, read_bundle
from pipeline.scan.manifest import canonical_json
from tests.builders import ZipEntry, craft_zip, deflated
from tests.guards import REPOSITORY

CONTENT = {"config.json": b'{"model":"canvas"}\n', "wts.h5": bytes(range(256))}
LINEAGE = {"store_sha256": "ab" * 32, "source": {"name": "scan.npz", "sha256": None}, "orders": {"train": "cd" * 32}}

Json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def promise(data: bytes) -> dict[str, object]:
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A small bundle."""
    pack_bundle(tmp_path / "wts.h5.zip", CONTENT, LINEAGE)
    return tmp_path / "wts.h5.zip"


def members_of(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def entry(name: str, data: bytes, **changed: object) -> ZipEntry:
    """A member as a bundle has it, its attributes aside."""
    return ZipEntry(name=name.encode(), data=data, **changed)


def packed_as(path: Path, members: dict[str, bytes]) -> Path:
    """A zip that is in every byte what `pack_bundle` would make of any members."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            info.external_attr, info.create_system = 0o100644 << 16, 3
            archive.writestr(info, data)
    return path


def whole(**more: bytes) -> dict[str, bytes]:
    """The members of the small bundle, with some replaced or added."""
    promised = {name: promise(data) for name, data in CONTENT.items()}
    mine = {"manifest.json": canonical_json({"format": FORMAT, "members": promised, **LINEAGE}), **CONTENT}
    return dict(sorted({**mine, **{name.replace("_", "."): data for name, data in more.items()}}.items()))


def refusal(path: Path, kind: type[PipelineError] = BundleError) -> str:
    """The message with which reading refuses; the audit must agree with it."""
    with pytest.raises(kind) as failure:
        read_bundle(path)
    assert failure.value.message.startswith(str(path))
    if failure.value.code == "bundle.damaged":
        damages = audit_bundle(path).damages
        assert damages
        assert all(f"{d.holds}: {d.found}" in failure.value.message for d in damages)
    else:
        with pytest.raises(kind):
            audit_bundle(path)
    return failure.value.message


# --- what is packed is read


@given(
    config=st.binary(max_size=300),
    weights=st.binary(max_size=3000),
    lineage=st.dictionaries(st.text().filter(lambda k: k not in ("format", "members")), Json, max_size=4),
)
def test_what_is_packed_is_read(tmp_path: Path, config: bytes, weights: bytes, lineage: dict) -> None:
    path = tmp_path / "wts.h5.zip"
    path.unlink(missing_ok=True)
    sha256 = pack_bundle(path, {"wts.h5": weights, "config.json": config}, lineage)
    found = read_bundle(path)
    assert (found.members["config.json"], found.members["wts.h5"]) == (config, weights)
    assert tuple(found.members) == MEMBERS
    assert found.lineage == lineage
    assert sha256 == found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert members_of(path) == found.members
    audit = audit_bundle(path)
    assert (audit.damages, audit.bundle_sha256, audit.lineage) == ((), sha256, lineage)


def test_any_zip_tool_reads_it_and_says_the_same_of_every_byte(bundle: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(bundle) as archive:
        assert archive.testzip() is None
        for info in archive.infolist():
            assert (info.compress_type, info.date_time, info.extra) == (zipfile.ZIP_STORED, (1980, 1, 1, 0, 0, 0), b"")
    assert packed_as(tmp_path / "other.zip", members_of(bundle)).read_bytes() == bundle.read_bytes()
    assert packed_as(tmp_path / "again.zip", whole()).read_bytes() == bundle.read_bytes()


def test_the_manifest_is_canonical_and_names_size_and_hash_of_every_other_member(bundle: Path) -> None:
    data = members_of(bundle)["manifest.json"]
    manifest = json.loads(data)
    assert data == canonical_json(manifest)
    assert manifest == {
        "format": "ptychozarr-bundle/1",
        "members": {name: promise(content) for name, content in CONTENT.items()},
        **LINEAGE,
    }


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_another_process_packs_the_same_bytes(bundle: Path, tmp_path: Path, hash_seed: str) -> None:
    script = (
        f"from pathlib import Path\nfrom pipeline.scan.bundle import pack_bundle\n"
        f"members = dict(reversed({CONTENT!r}.items()))\nlineage = dict(reversed({LINEAGE!r}.items()))\n"
        f"pack_bundle(Path({str(tmp_path / 'other.zip')!r}), members, lineage)"
    )
    env = {**os.environ, "PYTHONHASHSEED": hash_seed, "TZ": "Asia/Tokyo"}
    subprocess.run([sys.executable, "-c", script], check=True, cwd=REPOSITORY, env=env)
    assert (tmp_path / "other.zip").read_bytes() == bundle.read_bytes()


def test_a_bundle_that_is_there_already_is_left_and_anything_else_is_kept(bundle: Path) -> None:
    before = bundle.stat()
    pack_bundle(bundle, CONTENT, LINEAGE)
    assert bundle.stat().st_ino == before.st_ino
    with pytest.raises(TargetExistsError):
        pack_bundle(bundle, CONTENT, {})
    with pytest.raises(TargetExistsError):
        pack_bundle(bundle.parent, CONTENT, LINEAGE)
    assert read_bundle(bundle).lineage == LINEAGE
    assert [p.name for p in bundle.parent.iterdir()] == ["wts.h5.zip"]


@pytest.mark.parametrize(
    ("members", "lineage", "named"),
    [
        ({**CONTENT, "config.json": bytes(5 << 20)}, {}, "config.json"),
        (CONTENT, {"orders": "a" * (5 << 20)}, "manifest.json"),
    ],
)
def test_what_no_reader_would_take_is_not_packed(
    tmp_path: Path, members: dict[str, bytes], lineage: dict, named: str
) -> None:
    with pytest.raises(BundleError, match=rf"wts\.h5\.zip: member '{named}' would have"):
        pack_bundle(tmp_path / "wts.h5.zip", members, lineage)
    assert list(tmp_path.iterdir()) == []


# --- damage


@pytest.mark.parametrize("flip", [0x01, 0x20, 0xFF])
def test_every_changed_byte_is_noticed(bundle: Path, flip: int) -> None:
    original = bundle.read_bytes()
    with bundle.open("r+b", buffering=0) as file:
        for where, byte in enumerate(original):
            file.seek(where)
            file.write(bytes([byte ^ flip]))
            assert refusal(bundle), where
            file.seek(where)
            file.write(bytes([byte]))
    assert read_bundle(bundle).lineage == LINEAGE


def test_every_truncation_is_noticed(bundle: Path) -> None:
    for length in reversed(range(bundle.stat().st_size)):
        os.truncate(bundle, length)
        with pytest.raises((BundleError, SourceError)) as failure:
            read_bundle(bundle)
        if length > 41:  # a record's header and its name: from there on it is known to have been a bundle
            assert failure.value.exit_code == 6, length
            assert audit_bundle(bundle).damages


@given(where=st.integers(0, 10_000), more=st.binary(min_size=1, max_size=9))
def test_no_byte_is_added_anywhere_unnoticed(tmp_path: Path, where: int, more: bytes) -> None:
    path = tmp_path / "wts.h5.zip"
    if not path.exists():
        pack_bundle(path, CONTENT, LINEAGE)
    original = path.read_bytes()
    where %= len(original) + 1
    try:
        path.write_bytes(original[:where] + more + original[where:])
        with pytest.raises((BundleError, SourceError)):
            read_bundle(path)
    finally:
        path.write_bytes(original)


def test_bytes_too_many_or_too_few_are_counted(bundle: Path) -> None:
    original = bundle.read_bytes()
    bundle.write_bytes(b"#!/bin/sh\n" + original)
    assert "10 bytes before its first member" in refusal(bundle)
    bundle.write_bytes(original + b"more")
    assert "4 bytes after its end" in refusal(bundle)
    bundle.write_bytes(original[:-5])
    assert "its last 5 bytes are missing" in refusal(bundle)


def lacking(name: str) -> dict[str, bytes]:
    return {n: d for n, d in whole().items() if n != name}


SWAPPED = whole(config_json=CONTENT["wts.h5"], wts_h5=CONTENT["config.json"])


@pytest.mark.parametrize(
    ("members", "said"),
    [
        (lacking("config.json"), "config.json (the configuration): missing"),
        (lacking("manifest.json"), "manifest.json (the manifest): missing"),
        (lacking("wts.h5"), "wts.h5 (weights and probe): missing"),
        (whole(notes_txt=b"hello"), "member 'notes.txt': no part of a bundle"),
        (whole(zzz=b"hello"), "member 'zzz': no part of a bundle"),
        ({"\x1b[2J.py": b"", **whole()}, r"member '\\x1b[2J.py'"),
        ({**lacking("wts.h5"), "WTS.h5": CONTENT["wts.h5"]}, "member 'WTS.h5': no part of a bundle"),
        (dict(reversed(whole().items())), "not in order: wts.h5, manifest.json, config.json"),
        (whole(config_json=b'{"model":"cnvaas"}\n'), "config.json (the configuration): 19 bytes of SHA-256"),
        (whole(config_json=b"{}\n"), "3 bytes of SHA-256"),
        (SWAPPED, "config.json (the configuration): 256 bytes of SHA-256"),
        (SWAPPED, "wts.h5 (weights and probe): 19 bytes of SHA-256"),
    ],
)  # fmt: skip
def test_members_that_are_not_those_promised_are_named(tmp_path: Path, members: dict[str, bytes], said: str) -> None:
    message = refusal(packed_as(tmp_path / "wts.h5.zip", members))
    assert said.replace("\\\\", "\\") in message.replace("\\\\", "\\")
    assert message.isprintable()


def test_a_member_that_is_there_twice_is_named(tmp_path: Path) -> None:
    entries = [entry(name, data) for name, data in whole().items()]
    path = craft_zip(tmp_path / "wts.h5.zip", [entries[0], *entries])
    assert "config.json (the configuration): there twice" in refusal(path)


def test_a_compressed_member_is_named(tmp_path: Path) -> None:
    entries = {name: entry(name, data) for name, data in whole().items()}
    weights = CONTENT["wts.h5"]
    entries["wts.h5"] = entry("wts.h5", deflated(weights), plain=weights, method=zipfile.ZIP_DEFLATED)
    assert "wts.h5 (weights and probe): compressed (method 8)" in refusal(
        craft_zip(tmp_path / "wts.h5.zip", list(entries.values()))
    )


@pytest.mark.parametrize(("size", "said"), [(1 << 29, "at most 268435456 are read"), (9999, "(truncated?)")])
def test_a_size_that_cannot_be_is_refused_before_anything_is_read(tmp_path: Path, size: int, said: str) -> None:
    entries = {name: entry(name, data) for name, data in whole().items()}
    entries["wts.h5"] = entry("wts.h5", CONTENT["wts.h5"], local={"size": size, "packed": size})
    message = refusal(craft_zip(tmp_path / "wts.h5.zip", list(entries.values())))
    assert f"wts.h5 (weights and probe): said to have {size} bytes" in message
    assert said in message


def test_a_file_larger_than_any_bundle_is_not_read(bundle: Path) -> None:
    with bundle.open("r+b") as file:
        file.truncate(1 << 40)
    assert "no bundle has more than" in refusal(bundle)


def test_a_zip_of_the_same_members_made_otherwise_is_no_bundle(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "wts.h5.zip", "w") as archive:
        for name, data in whole().items():
            archive.writestr(zipfile.ZipInfo(name, (2024, 5, 6, 7, 8, 10)), data)
    assert "config.json (the configuration): its header is not as written" in refusal(tmp_path / "wts.h5.zip")
    plain = craft_zip(tmp_path / "plain.zip", [entry(name, data) for name, data in whole().items()])
    assert "its directory is not that of its members" in refusal(plain)  # other attributes


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: json.dumps(m, sort_keys=True).encode() + b"\n", "not canonical JSON"),
        (lambda m: canonical_json(m)[:-1], "not canonical JSON"),
        (lambda m: canonical_json(m).replace(b'{"format"', b'{"format":1,"format"'), "not canonical JSON"),
        (lambda m: canonical_json([m]), "not canonical JSON"),
        (lambda m: b"[" * 100_000, "not JSON of ours"),
        (lambda m: canonical_json(m).replace(b'"store_sha256":"', b'"store_sha256":NaN,"x":"'), "not JSON of ours"),
        (lambda m: b"\xff\n", "not JSON of ours"),
        (lambda m: canonical_json({**m, "members": 3}), "does not list config.json and wts.h5"),
        (lambda m: canonical_json({**m, "members": {}}), "does not list config.json and wts.h5"),
        (lambda m: canonical_json({**m, "members": {**m["members"], "a": 1}}), "does not list"),
        (lambda m: canonical_json({**m, "members": {**m["members"], "wts.h5": 1}}), "the manifest says 1"),
        (
            lambda m: canonical_json({**m, "members": {**m["members"], "wts.h5": promise(b"other")}}),
            "wts.h5 (weights and probe): 256 bytes of SHA-256 40aff2e9d2d8…, the manifest says 5 bytes",
        ),
    ],
)  # fmt: skip
def test_a_manifest_that_is_not_as_written_is_damage(
    tmp_path: Path, change: Callable[[dict], bytes], said: str
) -> None:
    manifest = json.loads(whole()["manifest.json"])
    path = packed_as(tmp_path / "wts.h5.zip", whole(manifest_json=change(manifest)))
    assert said in refusal(path)


# --- what is no bundle


def test_nothing_and_something_foreign_are_told_apart(tmp_path: Path) -> None:
    refusal(tmp_path / "none.zip", NotFoundError)
    assert "not a file" in refusal(tmp_path, SourceError)
    os.mkfifo(tmp_path / "pipe.zip")
    assert "not a file" in refusal(tmp_path / "pipe.zip", SourceError)
    for name, data in {"empty.zip": b"", "text.zip": b"hello, I am no zip\n" * 9}.items():
        (tmp_path / name).write_bytes(data)
        assert "not a zip file" in refusal(tmp_path / name, SourceError)
    np.savez(tmp_path / "scan.npz", diffraction=np.zeros(3))
    assert "no bundle (no config.json, no wts.h5)" in refusal(tmp_path / "scan.npz", SourceError)


def test_a_bundle_of_another_format_is_said_to_be_one(tmp_path: Path) -> None:
    for more in ({}, {"members": ["another", "form"]}):
        manifest = {**json.loads(whole()["manifest.json"]), "format": "ptychozarr-bundle/2", **more}
        path = packed_as(tmp_path / "wts.h5.zip", whole(manifest_json=canonical_json(manifest)))
        assert "'ptychozarr-bundle/2'" in refusal(path, SourceError)
