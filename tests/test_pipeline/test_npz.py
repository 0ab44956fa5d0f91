"""An NPZ's members are read bit for bit or not at all, in memory that its claims do not decide."""

from __future__ import annotations

import bz2
import io
import os
import struct
import tracemalloc
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pipeline.errors import IntegrityError, NotFoundError, PipelineError, SourceError
from pipeline.scan import npz as npz_file
from pipeline.scan.npy import parse_header
from pipeline.scan.npz import MemberReader, disk_blocks, open_npz, read_array, read_raw
from pipeline.scan.npz_write import array_member, write_npz
from tests.builders import (
    ZipEntry,
    craft_zip,
    deflated,
    npy_bytes,
    npy_files,
    npy_with_header,
    write_legacy_npz,
    write_zip,
)

VALUES = np.arange(40, dtype="<f4").reshape(5, 8)
OTHER = np.arange(6, dtype=">i2")
INFLATERS = {"installed": npz_file._zlib, "zlib": zlib}

DTYPES = st.one_of(
    hnp.scalar_dtypes(),
    hnp.byte_string_dtypes(min_len=1, max_len=7),
    hnp.unicode_string_dtypes(min_len=1, max_len=7),
    hnp.array_dtypes(max_size=4),
    st.sampled_from([np.dtype(np.longdouble), np.dtype([]), np.dtype("V3")]),
)
PADDED = np.dtype("i1,f8", align=True)
SHAPES = st.one_of(st.just(()), hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=4))


@st.composite
def saved_arrays(draw: st.DrawFn, dtypes: st.SearchStrategy[np.dtype] = DTYPES) -> np.ndarray:
    """Any array that NumPy saves without a pickle, of any bits, in C or Fortran order."""
    dtype, shape = draw(dtypes), draw(SHAPES)
    array = np.ndarray(shape, dtype)
    if array.nbytes:
        seed = draw(st.integers(0, 2**32 - 1))
        array = np.ndarray(shape, dtype, buffer=np.random.default_rng(seed).bytes(array.nbytes))
    return np.asfortranarray(array) if draw(st.booleans()) else array


@contextmanager
def inflating_by(name: str) -> Iterator[None]:
    """Inflate by what is installed (isal) or by the standard library."""
    npz_file._zlib, before = INFLATERS[name], npz_file._zlib
    try:
        yield
    finally:
        npz_file._zlib = before


def save(path: Path, array: np.ndarray, *, packed: bool) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # names that need a header of version 3
        return write_legacy_npz(path, {"a": array}, deflated=packed)


def everything(path: Path) -> dict[str, tuple[Any, ...]]:
    """Each member's meaning and bytes."""
    npz = open_npz(path)
    found = {}
    for name, member in npz.members.items():
        raw, digest = read_raw(npz, member)
        found[name] = (member.header.shape, member.header.dtype.descr, member.header.fortran_order, raw, digest)
    return found


def refusal(path: Path) -> PipelineError:
    """Why a file is not read to its end."""
    with pytest.raises(PipelineError) as raised:
        everything(path)
    assert str(path) in raised.value.message
    return raised.value


def whole_file(*, packed: bool = False) -> bytes:
    buffer = io.BytesIO()
    (np.savez_compressed if packed else np.savez)(buffer, a=VALUES, b=OTHER)
    return buffer.getvalue()


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


# --- what is honest is read bit for bit -------------------------------------------------------------------------------


@given(array=saved_arrays(), packed=st.booleans())
def test_every_array_that_numpy_saves_is_read_back_bit_for_bit(tmp_path: Path, array: np.ndarray, packed: bool) -> None:
    npz = open_npz(save(tmp_path / "s.npz", array, packed=packed))
    found, _ = read_array(npz, npz.members["a"])
    assert (found.shape, found.dtype.descr) == (array.shape, array.dtype.descr)
    assert found.tobytes() == array.tobytes()


@given(array=saved_arrays(DTYPES | st.just(PADDED)), packed=st.booleans())
def test_header_and_raw_bytes_are_the_member(tmp_path: Path, array: np.ndarray, packed: bool) -> None:
    path = save(tmp_path / "s.npz", array, packed=packed)
    npz = open_npz(path)
    raw, _ = read_raw(npz, npz.members["a"])
    with zipfile.ZipFile(path) as archive:
        assert npz.members["a"].header.prefix + raw == archive.read("a.npy")


@given(array=saved_arrays(), packed=st.booleans())
def test_the_digest_is_that_of_the_whole_member(tmp_path: Path, array: np.ndarray, packed: bool) -> None:
    path = save(tmp_path / "s.npz", array, packed=packed)
    npz = open_npz(path)
    _, digest = read_array(npz, npz.members["a"])
    with zipfile.ZipFile(path) as archive:
        member = archive.read("a.npy")
    again = npz_file.hashlib.sha256(member).hexdigest()
    assert (digest.crc32, digest.sha256) == (zlib.crc32(member), again)


@given(array=saved_arrays(), inflater=st.sampled_from(sorted(INFLATERS)))
def test_both_inflaters_give_the_same_bytes(tmp_path: Path, array: np.ndarray, inflater: str) -> None:
    npz = open_npz(save(tmp_path / "s.npz", array, packed=True))
    with inflating_by(inflater):
        found, _ = read_array(npz, npz.members["a"])
    assert found.tobytes() == array.tobytes()


@given(rows=st.integers(1, 12), packed=st.booleans())
def test_blocks_of_any_size_join_to_the_array(tmp_path: Path, rows: int, packed: bool) -> None:
    npz = open_npz(save(tmp_path / "s.npz", VALUES, packed=packed))
    with MemberReader(npz, npz.members["a"]) as reader:
        blocks = list(disk_blocks(reader, VALUES.shape, VALUES.dtype, rows))
        reader.finish()
    assert [len(b) for b in blocks[:-1]] == [rows] * (len(blocks) - 1)
    np.testing.assert_array_equal(np.concatenate(blocks), VALUES)


def test_a_member_left_unread_is_checked_to_its_end_by_finish(tmp_path: Path) -> None:
    npz = open_npz(save(tmp_path / "s.npz", VALUES, packed=True))
    with MemberReader(npz, npz.members["a"]) as reader:
        assert reader.finish().crc32 == npz.members["a"].crc32


def test_members_keep_the_order_of_the_file(tmp_path: Path) -> None:
    path = write_legacy_npz(tmp_path / "s.npz", {"z": VALUES, "a": OTHER, "m": OTHER})
    assert list(open_npz(path).members) == ["z", "a", "m"]


def test_strings_of_no_length_are_read(tmp_path: Path) -> None:
    array = np.zeros(3, [("a", "S0"), ("b", "i4")])["a"]
    npz = open_npz(save(tmp_path / "s.npz", array, packed=False))
    found, _ = read_array(npz, npz.members["a"])
    assert (found.shape, found.dtype.str) == ((3,), "|S0")


def test_an_object_array_is_described_but_not_opened(tmp_path: Path) -> None:
    path = write_legacy_npz(tmp_path / "s.npz", {"a": np.array({"x": 1}, dtype=object)})
    assert open_npz(path).members["a"].is_object


def test_a_header_of_python_2_is_read(tmp_path: Path) -> None:
    text = "{'descr': '<f4', 'fortran_order': False, 'shape': (5L, 8L), }"
    npz = open_npz(write_zip(tmp_path / "s.npz", [("a.npy", npy_with_header(text, VALUES.tobytes()))]))
    np.testing.assert_array_equal(read_array(npz, npz.members["a"])[0], VALUES)


def test_a_field_whose_name_looks_like_a_long_integer_keeps_it(tmp_path: Path) -> None:
    array = np.zeros(3, [("x1L", "<f4"), ("x1", "<f4")])
    npz = open_npz(save(tmp_path / "s.npz", array, packed=False))
    assert npz.members["a"].header.dtype.names == ("x1L", "x1")


@pytest.mark.parametrize("version", [1, 2, 3])
def test_each_version_of_the_npy_format_is_read(tmp_path: Path, version: int) -> None:
    fields = {"descr": "<f4", "fortran_order": False, "shape": VALUES.shape}
    data = npy_with_header(fields, VALUES.tobytes(), version=version)
    npz = open_npz(write_zip(tmp_path / "s.npz", [("a.npy", data)]))
    np.testing.assert_array_equal(read_array(npz, npz.members["a"])[0], VALUES)


class Unseekable(io.RawIOBase):
    """A stream like a pipe: what is written to it cannot be patched later."""

    def __init__(self) -> None:
        self.data = b""

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.data += bytes(data)
        return len(data)


@pytest.mark.parametrize("wide", [False, True], ids=["32-bit", "zip64"])
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED], ids=["stored", "deflated"])
def test_data_descriptors_of_a_pipe_are_accepted(tmp_path: Path, method: int, wide: bool) -> None:
    pipe = Unseekable()
    with zipfile.ZipFile(pipe, "w", method) as archive:
        for name, data in npy_files({"a": VALUES, "b": OTHER}):
            with archive.open(zipfile.ZipInfo(name), "w", force_zip64=wide) as member:
                member.write(data)
    npz = open_npz(written(tmp_path / "s.npz", pipe.data))
    np.testing.assert_array_equal(read_array(npz, npz.members["b"])[0], OTHER)


def test_a_descriptor_without_signature_is_accepted(tmp_path: Path) -> None:
    data = npy_bytes(VALUES)
    later = struct.pack("<LLL", zlib.crc32(data), len(data), len(data))
    flags, unknown = {"flags": 8}, {"flags": 8, "crc": 0, "packed": 0, "size": 0}
    path = craft_zip(tmp_path / "s.npz", [ZipEntry(name=b"a.npy", data=data, local=unknown, listed=flags, after=later)])
    assert "a" in everything(path)


def test_zip64_structures_are_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 100)  # of the standard library: it then writes what 4 GB would need
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 0)
    whole = write_legacy_npz(tmp_path / "s.npz", {"a": VALUES, "b": OTHER}).read_bytes()
    assert b"PK\x06\x06" in whole
    end = whole[-22:-14] + b"\xff" * 4 + whole[-10:]  # other writers count in the zip64 record alone
    npz = open_npz(written(tmp_path / "s.npz", whole[:-22] + end))
    np.testing.assert_array_equal(read_array(npz, npz.members["b"])[0], OTHER)


@pytest.mark.parametrize("name", ["Δφ", "a.npy", "a/b", "../a", "", "with space", "zarr.json"])
def test_names_that_print_are_only_names(tmp_path: Path, name: str) -> None:
    path = write_zip(tmp_path / "s.npz", [(f"{name}.npy", npy_bytes(VALUES))])
    assert list(open_npz(path).members) == [name]


def test_a_file_without_members_is_an_empty_npz(tmp_path: Path) -> None:
    assert open_npz(write_zip(tmp_path / "s.npz", [])).members == {}


def test_what_is_written_numpy_reads(tmp_path: Path) -> None:
    members = [array_member("a", VALUES), array_member("b", OTHER, deflated=True)]
    write_npz(tmp_path / "s.npz", members)
    with np.load(tmp_path / "s.npz") as loaded:
        np.testing.assert_array_equal(loaded["a"], VALUES)
        np.testing.assert_array_equal(loaded["b"], OTHER)


def test_what_is_written_is_read_with_the_digests_of_writing(tmp_path: Path) -> None:
    digests = write_npz(tmp_path / "s.npz", [array_member("a", VALUES, deflated=True)])
    assert everything(tmp_path / "s.npz")["a"][-1] == digests["a"]


# --- damage is noticed ------------------------------------------------------------------------------------------------


@given(data=st.data(), packed=st.booleans(), inflater=st.sampled_from(sorted(INFLATERS)))
def test_a_flipped_bit_anywhere_is_noticed_or_changes_nothing(
    tmp_path: Path, data: st.DataObject, packed: bool, inflater: str
) -> None:
    whole = bytearray(whole_file(packed=packed))
    bit = data.draw(st.integers(0, 8 * len(whole) - 1))
    promised = everything(written(tmp_path / "good.npz", whole))
    whole[bit // 8] ^= 1 << bit % 8
    with inflating_by(inflater):
        try:
            found = everything(written(tmp_path / "bad.npz", whole))
        except PipelineError:
            return
    assert found == promised


@pytest.mark.parametrize("packed", [False, True], ids=["stored", "deflated"])
def test_a_flipped_bit_among_the_values_names_the_member_and_both_checksums(tmp_path: Path, packed: bool) -> None:
    data = npy_bytes(VALUES)
    wrong = bytearray(data)
    wrong[-1] ^= 1
    entry = ZipEntry(
        name=b"a.npy",
        data=deflated(wrong) if packed else bytes(wrong),
        plain=data,
        method=zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED,
    )
    error = refusal(craft_zip(tmp_path / "s.npz", [entry]))
    assert isinstance(error, IntegrityError)
    assert f"'a': CRC-32 is {zlib.crc32(wrong):08x}, the zip directory says {zlib.crc32(data):08x}" in error.message


@pytest.mark.parametrize("packed", [False, True], ids=["stored", "deflated"])
def test_damage_that_numpy_reads_over_behind_a_short_header_is_refused(tmp_path: Path, packed: bool) -> None:
    data = npy_bytes(VALUES) + bytes(4096)
    wrong = bytearray(data)
    wrong[len(npy_bytes(VALUES)) - 1] ^= 64  # numpy.load stops before the end, where the CRC would be compared
    entry = ZipEntry(
        name=b"a.npy",
        data=deflated(wrong) if packed else bytes(wrong),
        plain=data,
        method=zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED,
    )
    path = craft_zip(tmp_path / "s.npz", [entry])
    with np.load(path) as loaded:
        assert not np.array_equal(loaded["a"], VALUES), "numpy notices by now; this test has lost its point"
    assert refusal(path).code == "npz.size_mismatch"


@pytest.mark.parametrize("packed", [False, True], ids=["stored", "deflated"])
def test_a_file_cut_anywhere_is_refused(tmp_path: Path, packed: bool) -> None:
    whole = whole_file(packed=packed)
    for length in range(len(whole)):
        assert refusal(written(tmp_path / "s.npz", whole[:length])).exit_code in (4, 6), length


@given(before=st.one_of(st.binary(min_size=1), st.just(whole_file()), st.just(b"PK\x03\x04" + bytes(26))))
def test_bytes_before_the_archive_are_refused(tmp_path: Path, before: bytes) -> None:
    assert refusal(written(tmp_path / "s.npz", before + whole_file())).code in ("npz.not_zip", "npz.unlisted_bytes")


@given(after=st.one_of(st.binary(min_size=1), st.just(b"PK\x05\x06" + bytes(18)), st.just(whole_file()[-22:])))
def test_bytes_after_the_archive_are_refused(tmp_path: Path, after: bytes) -> None:
    assert isinstance(refusal(written(tmp_path / "s.npz", whole_file() + after)), SourceError)


@given(
    at=st.integers(0, 2000),
    dropped=st.integers(0, 40),
    inserted=st.one_of(
        st.binary(max_size=40), st.sampled_from([b"PK\x01\x02", b"PK\x06\x06", b"PK\x06\x07", b"\xff" * 8])
    ),
    packed=st.booleans(),
)
def test_a_spliced_file_is_read_or_refused_but_never_fails_otherwise(
    tmp_path: Path, at: int, dropped: int, inserted: bytes, packed: bool
) -> None:
    whole = whole_file(packed=packed)
    at %= len(whole)
    with suppress(PipelineError):
        everything(written(tmp_path / "s.npz", whole[:at] + inserted + whole[at + dropped :]))


def test_a_file_that_changed_since_it_was_opened_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "s.npz", VALUES, packed=False)
    npz = open_npz(path)
    path.write_bytes(path.read_bytes().replace(b"NUMPY", b"NUMPX"))
    with pytest.raises(SourceError, match="changed while it was read"):
        MemberReader(npz, npz.members["a"])


@pytest.mark.parametrize("change", ["content", "size", "file"])
def test_a_file_is_unchanged_only_with_its_size_time_and_inode(tmp_path: Path, change: str) -> None:
    path = save(tmp_path / "s.npz", VALUES, packed=False)
    os.utime(path, ns=(0, 0))
    npz, whole = open_npz(path), path.read_bytes()
    assert npz.unchanged()
    if change == "file":
        path.rename(tmp_path / "old.npz")  # still there, so that its inode stays taken
    path.write_bytes(whole + b"x" if change == "size" else whole)
    if change != "content":
        os.utime(path, ns=(0, 0))
    assert not npz.unchanged()


# --- what two readers could read differently is refused ---------------------------------------------------------------


def test_a_name_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    entries = [ZipEntry(name=b"a.npy", data=npy_bytes(VALUES)), ZipEntry(name=b"a.npy", data=npy_bytes(OTHER))]
    error = refusal(craft_zip(tmp_path / "s.npz", entries))
    assert (error.code, "'a' occurs twice" in error.message) == ("npz.duplicate_member", True)


@pytest.mark.parametrize("order", [1, -1])
def test_a_member_named_with_and_without_npy_is_refused(tmp_path: Path, order: int) -> None:
    entries = [ZipEntry(name=b"a", data=npy_bytes(VALUES)), ZipEntry(name=b"a.npy", data=npy_bytes(OTHER))][::order]
    assert refusal(craft_zip(tmp_path / "s.npz", entries)).code == "npz.foreign_member"


def test_two_entries_on_one_record_are_refused(tmp_path: Path) -> None:
    data = npy_bytes(VALUES)
    entries = [ZipEntry(name=b"a.npy", data=data), ZipEntry(name=b"b.npy", data=data, at=0)]
    assert refusal(craft_zip(tmp_path / "s.npz", entries)).code == "npz.overlap"


def test_a_record_inside_the_data_of_another_is_refused(tmp_path: Path) -> None:
    inner = npy_bytes(OTHER)
    quoted = craft_zip(tmp_path / "inner.npz", [ZipEntry(name=b"b.npy", data=inner)]).read_bytes()
    quoted = quoted[: 30 + len(b"b.npy") + len(inner)]
    outer = npy_bytes(np.frombuffer(quoted, np.uint8))
    at = 30 + len(b"a.npy") + len(outer) - len(quoted)
    entries = [ZipEntry(name=b"a.npy", data=outer), ZipEntry(name=b"b.npy", data=inner, at=at)]
    assert refusal(craft_zip(tmp_path / "s.npz", entries)).code == "npz.overlap"


def test_a_record_that_the_directory_leaves_out_is_refused(tmp_path: Path) -> None:
    hidden = ZipEntry(name=b"h.npy", data=npy_bytes(OTHER), hidden=True)
    shown = ZipEntry(name=b"a.npy", data=npy_bytes(VALUES))
    for entries in ([hidden, shown], [shown, hidden]):
        assert refusal(craft_zip(tmp_path / "s.npz", entries)).code == "npz.unlisted_bytes"


def test_an_end_record_that_counts_other_members_is_refused(tmp_path: Path) -> None:
    entries = [ZipEntry(name=b"a.npy", data=npy_bytes(VALUES)), ZipEntry(name=b"b.npy", data=npy_bytes(OTHER))]
    assert refusal(craft_zip(tmp_path / "s.npz", entries, counted=1)).code == "npz.header_mismatch"


@pytest.mark.parametrize(
    "local",
    [
        {"name": b"b.npy"},
        {"name": b"a.npy\xff", "flags": 0x800},
        {"method": zipfile.ZIP_DEFLATED},
        {"flags": 0x1},
        {"flags": 0x8},
        {"flags": 0x800},
        {"crc": 1},
        {"size": 1},
        {"packed": 1},
        {"size": 0xFFFFFFFF},
        {"packed": 0xFFFFFFFF},
    ],
    ids=str,
)
def test_a_record_that_contradicts_the_directory_is_refused(tmp_path: Path, local: dict[str, Any]) -> None:
    path = craft_zip(tmp_path / "s.npz", [ZipEntry(name=b"a.npy", data=npy_bytes(VALUES), local=local)])
    assert refusal(path).code == "npz.header_mismatch"


def test_a_stored_member_of_more_bytes_than_it_is_said_to_hold_is_refused(tmp_path: Path) -> None:
    data = npy_bytes(VALUES)
    path = craft_zip(tmp_path / "s.npz", [ZipEntry(name=b"a.npy", data=data + b"x", plain=data)])
    assert refusal(path).code == "npz.size_mismatch"


@pytest.mark.parametrize("change", [(1, 0, 0), (0, 1, 0), (0, 0, 1)])
def test_a_data_descriptor_that_contradicts_the_directory_is_refused(
    tmp_path: Path, change: tuple[int, int, int]
) -> None:
    data = npy_bytes(VALUES)
    truth = (zlib.crc32(data), len(data), len(data))
    later = b"PK\x07\x08" + struct.pack("<LLL", *(t ^ c for t, c in zip(truth, change, strict=True)))
    entry = ZipEntry(name=b"a.npy", data=data, local={"flags": 8}, listed={"flags": 8}, after=later)
    assert refusal(craft_zip(tmp_path / "s.npz", [entry])).code == "npz.header_mismatch"


@pytest.mark.parametrize(
    "name", [b"a\n.npy", b"\x1b[31ma.npy", b"a\x00.npy", b"a.npy\x00b", "a\u202e.npy".encode()], ids=repr
)
def test_a_name_that_would_not_print_as_it_is_is_refused_and_shown_escaped(tmp_path: Path, name: bytes) -> None:
    utf8 = {"flags": 0 if name.isascii() else 0x800}
    entry = ZipEntry(name=name, data=npy_bytes(VALUES), local=utf8, listed=utf8)
    error = refusal(craft_zip(tmp_path / "s.npz", [entry]))
    assert (error.code, error.message.isprintable()) == ("npz.member_name", True)


# --- what is no NPZ is refused ----------------------------------------------------------------------------------------


def test_an_encrypted_member_is_refused(tmp_path: Path) -> None:
    flags = {"flags": 0x1}
    entry = ZipEntry(name=b"a.npy", data=npy_bytes(VALUES), local=flags, listed=flags)
    assert refusal(craft_zip(tmp_path / "s.npz", [entry])).code == "npz.method"


def test_a_member_packed_by_bzip2_is_refused_with_a_way_out(tmp_path: Path) -> None:
    data = npy_bytes(VALUES)
    entry = ZipEntry(name=b"a.npy", data=bz2.compress(data), plain=data, method=zipfile.ZIP_BZIP2)
    error = refusal(craft_zip(tmp_path / "s.npz", [entry]))
    assert (error.code, "savez_compressed" in (error.hint or "")) == ("npz.method", True)


def test_a_name_that_is_not_in_its_encoding_is_refused(tmp_path: Path) -> None:
    utf8 = {"flags": 0x800}
    path = craft_zip(tmp_path / "s.npz", [ZipEntry(name=b"\xff.npy", data=npy_bytes(VALUES), local=utf8, listed=utf8)])
    assert refusal(path).code == "npz.not_zip"


def test_a_zip_of_a_version_to_come_is_refused(tmp_path: Path) -> None:
    whole = craft_zip(tmp_path / "s.npz", [ZipEntry(name=b"a.npy", data=npy_bytes(VALUES))]).read_bytes()
    later = whole.replace(b"PK\x01\x02\x14\x00\x14\x00", b"PK\x01\x02\x14\x00\x63\x00")
    assert refusal(written(tmp_path / "s.npz", later)).code == "npz.not_zip"


def test_a_member_that_is_no_array_is_refused(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "s.npz", [("a.npy", npy_bytes(VALUES)), ("readme.txt", b"hello")])
    assert "'readme.txt' is not an array" in refusal(path).message


def test_an_npy_file_under_the_name_of_an_npz_is_recognised(tmp_path: Path) -> None:
    assert "a single .npy array" in refusal(written(tmp_path / "s.npz", npy_bytes(VALUES))).message


@pytest.mark.parametrize("data", [b"", b"PK", b"\x80\x04N.", b"PK\x05\x06", b"\x89HDF\r\n\x1a\n"], ids=repr)
def test_what_is_no_zip_is_refused(tmp_path: Path, data: bytes) -> None:
    assert refusal(written(tmp_path / "s.npz", data)).code == "npz.not_zip"


def test_a_folder_is_refused_as_a_folder(tmp_path: Path) -> None:
    error = refusal(tmp_path)
    assert (error.exit_code, "a folder" in error.message) == (4, True)


def test_a_missing_file_is_not_found(tmp_path: Path) -> None:
    assert isinstance(refusal(tmp_path / "s.npz"), NotFoundError)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "s.npz")
    assert isinstance(refusal(tmp_path / "s.npz"), NotFoundError)


# --- claims decide neither memory nor time ----------------------------------------------------------------------------


def peak_of_refusal(path: Path) -> tuple[PipelineError, int]:
    refusal(path)  # what is imported and cached on first use is not what is measured
    tracemalloc.start()
    try:
        error = refusal(path)
        return error, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("packed", [False, True], ids=["stored", "deflated"])
def test_a_header_that_promises_more_than_the_directory_is_refused_before_anything_is_allocated(
    tmp_path: Path, packed: bool
) -> None:
    lie = npy_with_header({"descr": "<f4", "fortran_order": False, "shape": (10**12,)}, VALUES.tobytes())
    error, peak = peak_of_refusal(write_zip(tmp_path / "s.npz", [("a.npy", lie)], deflated=packed))
    assert (error.code, "4000000000" in error.message) == ("npz.size_mismatch", True)
    assert peak < 1 << 20


def test_a_directory_that_promises_what_its_bytes_cannot_inflate_to_is_refused_before_anything_is_allocated(
    tmp_path: Path,
) -> None:
    lie = npy_with_header({"descr": "<f4", "fortran_order": False, "shape": (10**9,)}, VALUES.tobytes())
    size = {"size": len(lie) - VALUES.nbytes + 4 * 10**9}
    entry = ZipEntry(name=b"a.npy", data=deflated(lie), plain=lie, method=zipfile.ZIP_DEFLATED, local=size, listed=size)
    error, peak = peak_of_refusal(craft_zip(tmp_path / "s.npz", [entry]))
    assert error.code == "npz.size_mismatch"
    assert peak < 1 << 20


@pytest.mark.parametrize("inflater", sorted(INFLATERS))
@pytest.mark.parametrize("more", [1, 800, -1, -30])
def test_a_member_that_inflates_to_another_size_is_refused(tmp_path: Path, more: int, inflater: str) -> None:
    claim = npy_bytes(np.zeros(100, np.uint8))
    data = claim + bytes(more) if more > 0 else claim[:more]
    entry = ZipEntry(name=b"a.npy", data=deflated(data), plain=claim, method=zipfile.ZIP_DEFLATED)
    with inflating_by(inflater):
        code = refusal(craft_zip(tmp_path / "s.npz", [entry])).code
    assert code == ("npz.size_mismatch" if more > 0 else "npz.truncated")


@pytest.mark.parametrize("inflater", sorted(INFLATERS))
def test_a_deflate_stream_without_its_end_is_refused(tmp_path: Path, inflater: str) -> None:
    data = npy_bytes(VALUES)
    packer = zlib.compressobj(wbits=-15)
    endless = packer.compress(data) + packer.flush(zlib.Z_SYNC_FLUSH)
    entry = ZipEntry(name=b"a.npy", data=endless, plain=data, method=zipfile.ZIP_DEFLATED)
    with inflating_by(inflater):
        assert refusal(craft_zip(tmp_path / "s.npz", [entry])).code == "npz.size_mismatch"


@pytest.mark.parametrize("inflater", sorted(INFLATERS))
def test_a_deflate_stream_that_breaks_among_the_values_is_damaged(tmp_path: Path, inflater: str) -> None:
    data, length = npy_bytes(np.zeros(30_000, np.uint8)), 20_000
    block = b"\0" + struct.pack("<HH", length, length ^ 0xFFFF) + data[:length]
    broken = block + b"\x07"  # a block of the one type that there is not
    entry = ZipEntry(name=b"a.npy", data=broken, plain=data, method=zipfile.ZIP_DEFLATED)
    with inflating_by(inflater):
        error = refusal(craft_zip(tmp_path / "s.npz", [entry]))
    assert (error.exit_code, "'a': cannot be inflated" in error.message) == (6, True)


@pytest.mark.parametrize("packed", [False, True], ids=["stored", "deflated"])
def test_no_member_is_read_beyond_its_end(tmp_path: Path, packed: bool) -> None:
    npz = open_npz(save(tmp_path / "s.npz", VALUES, packed=packed))
    with MemberReader(npz, npz.members["a"]) as reader, pytest.raises(IntegrityError, match="ends early"):
        reader.readinto(memoryview(bytearray(VALUES.nbytes + 1)))


def test_bytes_behind_the_end_of_a_deflate_stream_are_refused(tmp_path: Path) -> None:
    data = npy_bytes(VALUES)
    entry = ZipEntry(name=b"a.npy", data=deflated(data) + b"x", plain=data, method=zipfile.ZIP_DEFLATED)
    assert refusal(craft_zip(tmp_path / "s.npz", [entry])).code == "npz.size_mismatch"


def test_a_member_of_a_thousandth_of_its_size_streams_in_bounded_memory(tmp_path: Path) -> None:
    shape, rows = (1 << 14, 4096), 64
    fields = {"descr": "|u1", "fortran_order": False, "shape": shape}
    path = tmp_path / "s.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a.npy", "w") as member:
        member.write(npy_with_header(fields))
        for _ in range(64):
            member.write(bytes(1 << 20))
    npz = open_npz(path)
    assert path.stat().st_size < 100_000
    tracemalloc.start()
    try:
        with MemberReader(npz, npz.members["a"]) as reader:
            n_rows = sum(len(block) for block in disk_blocks(reader, shape, np.dtype(np.uint8), rows))
            reader.finish()
        assert (n_rows, tracemalloc.get_traced_memory()[1] < 4 << 20) == (shape[0], True)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("packed", [False, True], ids=["stored", "deflated"])
def test_a_header_may_have_ten_thousand_bytes_and_no_more(tmp_path: Path, version: int, packed: bool) -> None:
    fields = {"descr": "<f4", "fortran_order": False, "shape": VALUES.shape}
    for length, accepted in ((10_000, True), (10_001, False), (60_000, False)):
        data = npy_with_header(fields, VALUES.tobytes(), version=version, length=length)
        path = write_zip(tmp_path / "s.npz", [("a.npy", data)], deflated=packed)
        assert ("a" in everything(path)) if accepted else (refusal(path).code == "npz.header")


@pytest.mark.parametrize(
    "shape", [(1,) * 65, (0, 10**30), (0, 2**62, 8), (10**18, 0)], ids=["65 axes", "10^30", "2^65", "10^18 empty rows"]
)
def test_a_shape_that_no_array_has_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    data = npy_with_header({"descr": "|u1", "fortran_order": False, "shape": shape}, b"" if 0 in shape else b"x")
    assert "no array has shape" in refusal(write_zip(tmp_path / "s.npz", [("a.npy", data)])).message


# --- a header is a claim too ------------------------------------------------------------------------------------------

PLAIN = {"descr": "<f4", "fortran_order": False, "shape": (3,)}


@pytest.mark.parametrize(
    "change",
    [
        {"shape": (True,)},
        {"shape": (-1,)},
        {"shape": (3.0,)},
        {"shape": [3]},
        {"shape": 3},
        {"fortran_order": 0},
        {"fortran_order": None},
        {"descr": ("<f8", (2,))},
        {"descr": 4},
        {"descr": "<zz"},
        {"descr": [("a", "<f4"), ("a", "<f4")]},
        {"more": 1},
    ],
    ids=str,
)
def test_a_header_of_other_fields_is_refused(change: dict[str, object]) -> None:
    parse_header(npy_with_header(PLAIN))
    with pytest.raises(ValueError, match=r"descr|shape"):
        parse_header(npy_with_header(PLAIN | change))


@pytest.mark.parametrize("version", [(0, 0), (1, 1), (4, 0)])
def test_a_header_of_another_version_is_refused(version: tuple[int, int]) -> None:
    header = bytearray(npy_with_header(PLAIN))
    header[6:8] = version
    with pytest.raises(ValueError, match="version"):
        parse_header(bytes(header))


LITERALS = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-2, 2**65),
        st.sampled_from(
            ["<f4", "|O", "<zz", "a5", "f4,f4", "|V-3", "<M8[zz]", "<f4\\d", "(2,3)f8", "|T16", "S99999999999"]
        ),
        st.text(max_size=4),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.lists(inner, max_size=3).map(tuple)),
    max_leaves=5,
)


@given(descr=LITERALS, order=LITERALS, shape=LITERALS)
@example(descr=("<f8",), order=False, shape=())
@example(descr=5, order=False, shape=())
@example(descr="<zz", order=False, shape=())
@example(descr=[5], order=False, shape=())
@example(descr="<f8", order=0, shape=())
@example(descr="<f8", order=False, shape=(True,))
@example(descr="<f8", order=False, shape=(-1,))
@example(descr=("<f8", (2,)), order=False, shape=(3,))
def test_a_header_of_any_literals_is_read_or_refused(descr: object, order: object, shape: object) -> None:
    try:
        header = parse_header(npy_with_header({"descr": descr, "fortran_order": order, "shape": shape}, version=3))
    except ValueError:
        return
    assert (header.shape, isinstance(order, bool)) == (shape, True)


@given(st.one_of(st.text(max_size=60), st.text("()[]{}'\",:L0123456789- \\fdescrhaptonu_", max_size=80)))
@example("(" * 3000)
@example("{" + "[" * 90 + "]" * 90 + ": 1}")
@example("{'descr': '<f8', 'fortran_order': False, 'shape': (" + "9" * 5000 + ",)}")
@example("{'descr': '\\d', 'fortran_order': False, 'shape': ()}")
@example("__import__('os').abort()")
def test_a_header_of_any_text_is_read_or_refused(text: str) -> None:
    with suppress(ValueError):
        parse_header(npy_with_header(text, version=3))


@given(st.binary(max_size=80))
@example(b"\x93NUMPY\x02\x00\xff\xff\xff\xff")
def test_bytes_that_are_no_header_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_header(data)
