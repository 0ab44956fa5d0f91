"""The text in a legacy metadata member is read off the opcodes of its pickle; nothing is ever executed."""

from __future__ import annotations

import json
import os
import pickle
import pickletools
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.scan.embedded import json_of, lone_string, text_of
from pipeline.scan.npy import parse_header
from tests.builders import legacy_members, npy_bytes, npy_files, object_metadata, write_zip
from tests.guards import REPOSITORY

PROTOCOLS = range(6)
OPCODES = [opcode.code.encode("latin1") for opcode in pickletools.opcodes]
JSON = '{"physics_parameters": {"nphotons": 1e9}, "note": "Δφ"}'


def in_array(content: object, shape: tuple[int, ...] = ()) -> np.ndarray:
    array = np.empty(shape, dtype=object)
    array[...] = None
    array[(0,) * len(shape)] = content
    return array


def old_numpy(stream: bytes) -> bytes:
    """The stream as numpy 1.x wrote it, where `numpy._core` was `numpy.core`."""
    framed = stream.replace(b"\x8c\x16numpy._core.multiarray", b"\x8c\x15numpy.core.multiarray")
    if framed != stream and stream[2:3] == b"\x95":
        framed = framed[:3] + (int.from_bytes(stream[3:11], "little") - 1).to_bytes(8, "little") + framed[11:]
    return framed.replace(b"cnumpy._core.multiarray", b"cnumpy.core.multiarray")


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.open, (str(self.path), os.O_CREAT)


# --- one string is read -----------------------------------------------------------------------------------------------


@given(text=st.text(), protocol=st.sampled_from(PROTOCOLS), shape=st.sampled_from([(), (1,)]))
def test_one_string_in_an_object_array_is_read(text: str, protocol: int, shape: tuple[int, ...]) -> None:
    assert lone_string(pickle.dumps(in_array(text, shape), protocol)) == text


@given(text=st.text(), protocol=st.sampled_from(PROTOCOLS))
def test_one_string_is_read_as_numpy_1_wrote_it(text: str, protocol: int) -> None:
    stream = old_numpy(pickle.dumps(in_array(text), protocol))
    assert pickle.loads(stream)[()] == text  # the rewritten stream is what an unpickler would accept
    assert lone_string(stream) == text


@pytest.mark.parametrize("length", [255, 256, 65535, 65536, 200_000])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_text_of_any_length_is_read(length: int, protocol: int) -> None:
    text = json.dumps({"note": "Δ" * length}, ensure_ascii=False)
    assert lone_string(pickle.dumps(in_array(text), protocol)) == text


@pytest.mark.parametrize("word", ["numpy", "b", "O8", "latin1", "_reconstruct", "|", ""])
def test_text_that_equals_a_word_of_the_pattern_is_text(word: str) -> None:
    assert lone_string(pickle.dumps(in_array(word), 4)) == word


def test_the_pure_python_pickler_writes_the_same_pattern() -> None:
    class Sink(list[bytes]):
        def write(self, data: bytes) -> None:
            self.append(data)

    sink = Sink()
    pickle._Pickler(sink, 2).dump(in_array(JSON))
    assert lone_string(b"".join(sink)) == JSON


# --- anything else is none --------------------------------------------------------------------------------------------

NOT_LONE = {
    "a dict": {"nphotons": 1e9},
    "two strings": [JSON, JSON],
    "a list around one string": [JSON],
    "a tuple around one string": (JSON,),
    "a string beside a number": [1, JSON],
    "a string beside None": (None, JSON),
    "a string beside a word of the pattern": [JSON, "O8"],
    "a set": {JSON},
    "bytes": JSON.encode(),
    "None": None,
    "an integer": 5,
    "a float": 1.5,
    "a huge integer": 10**400,
    "an array": np.arange(3),
    "an array of a string": in_array(JSON),
    "a path": Path("x"),
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("content", NOT_LONE.values(), ids=NOT_LONE)
def test_anything_but_one_string_is_none(content: object, protocol: int) -> None:
    assert lone_string(pickle.dumps(in_array(content), protocol)) is None


@pytest.mark.parametrize("shape", [(0,), (2,), (1, 1)], ids=str)
def test_a_string_in_an_array_of_another_shape_is_none(shape: tuple[int, ...]) -> None:
    array = np.full(shape, None, dtype=object)
    if array.size:
        array.flat[0] = JSON
    assert lone_string(pickle.dumps(array, 4)) is None


def test_a_bare_string_is_none() -> None:
    assert lone_string(pickle.dumps(JSON, 4)) is None


def test_bytes_behind_the_pickle_are_none() -> None:
    assert lone_string(pickle.dumps(in_array(JSON), 4) + b"\0") is None


@pytest.mark.parametrize(
    "word",
    [b"cnumpy._core.multiarray\n_reconstruct\n", b"cnumpy\nndarray\n", b"c_codecs\nencode\n", b"cnumpy\ndtype\n"],
)
def test_another_name_in_place_of_one_of_the_pattern_is_none(word: bytes) -> None:
    stream = pickle.dumps(in_array(JSON), 2)
    assert word in stream
    assert lone_string(stream.replace(word, b"cposix\nsystem\n")) is None


def test_an_array_begun_with_another_letter_is_none() -> None:
    stream = pickle.dumps(in_array(JSON), 4)
    assert lone_string(stream.replace(b"C\x01b", b"C\x01c")) is None


def test_something_left_on_the_stack_is_none() -> None:
    stream = pickle.dumps(in_array(JSON), 2)
    assert lone_string(stream[:2] + b"N" + stream[2:]) is None


def test_a_stream_of_many_opcodes_is_given_up_early() -> None:
    stream = b"N" * 500_000
    tracemalloc.start()
    try:
        assert lone_string(stream) is None
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_payload_is_none_and_does_not_run(tmp_path: Path, protocol: int) -> None:
    assert lone_string(pickle.dumps(in_array(Payload(tmp_path / "ran")), protocol)) is None
    assert list(tmp_path.iterdir()) == []


def streams() -> st.SearchStrategy[bytes]:
    contents = [JSON, *NOT_LONE.values(), Payload(Path("/nonexistent/ran"))]
    return st.builds(lambda c, p: pickle.dumps(in_array(c), p), st.sampled_from(contents), st.sampled_from(PROTOCOLS))


@given(data=st.data(), stream=streams())
def test_a_stream_with_one_bit_flipped_is_a_string_or_none(data: st.DataObject, stream: bytes) -> None:
    bit = data.draw(st.integers(0, 8 * len(stream) - 1))
    flipped = bytearray(stream)
    flipped[bit // 8] ^= 1 << bit % 8
    assert isinstance(lone_string(bytes(flipped)), str | None)


@given(data=st.data(), stream=streams(), other=streams(), inserted=st.lists(st.sampled_from(OPCODES), max_size=4))
def test_spliced_streams_are_a_string_or_none(
    data: st.DataObject, stream: bytes, other: bytes, inserted: list[bytes]
) -> None:
    head = stream[: data.draw(st.integers(0, len(stream)))]
    tail = other[data.draw(st.integers(0, len(other))) :]
    assert isinstance(lone_string(head + b"".join(inserted) + tail), str | None)


@given(st.one_of(st.binary(max_size=100), st.lists(st.sampled_from(OPCODES)).map(b"".join)))
@example(b"]\x94h\x00a.")  # a list that holds itself
@example(b"S'\\d'\n.")  # an escape that Python warns of
@example(b"U")
@example(b"a.")
@example(b"h\x00.")
@example(b"NNa.")
@example(b"N" * 1000 + b".")
@example(b"(" * 50 + b"t" * 50 + b".")
@example(b"\x8e" + b"\xff" * 8)
def test_any_bytes_are_a_string_or_none(stream: bytes) -> None:
    assert isinstance(lone_string(stream), str | None)


# --- nothing is executed by a whole command ---------------------------------------------------------------------------

WATCHED = """
import pickle, sys
from tests.guards import run_main
import converters.convert, converters.examine, converters.inspect, converters.npz2zarr
events = []
def watch(event, args):
    if event.startswith("pickle") and "/dask/" not in sys._getframe(1).f_code.co_filename:  # its tokens, of its own
        events.append(event)
sys.addaudithook(watch)
source, target = sys.argv[1:]
done = [run_main(converters.inspect.main, source), run_main(converters.npz2zarr.main, source, target)]
pickle.loads(pickle.dumps(sys.addaudithook))
print([d.returncode for d in done], events)
"""


def watched(source: Path, target: Path) -> str:
    """Exit codes of inspecting and converting, and the pickle events seen; the last is our own, proof of the hook."""
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, source, target], capture_output=True, text=True, cwd=REPOSITORY, check=True
    )
    return done.stdout.strip()


@pytest.mark.parametrize("member", ["_metadata", "objectGuess", "extra"])
def test_no_command_looks_up_a_name_for_a_payload(tmp_path: Path, member: str) -> None:
    canary = tmp_path / "ran"
    files = npy_files(legacy_members(**{member: None}))
    source = write_zip(tmp_path / "s.npz", [*files, (f"{member}.npy", npy_bytes(in_array(Payload(canary))))])
    assert watched(source, tmp_path / "t.zarr") == "[4, 4] ['pickle.find_class']"
    assert not canary.exists()


def test_no_command_looks_up_a_name_for_honest_metadata(tmp_path: Path) -> None:
    source = write_zip(tmp_path / "s.npz", npy_files(legacy_members(_metadata=object_metadata({"nphotons": 1e9}))))
    assert watched(source, tmp_path / "t.zarr") == "[0, 0] ['pickle.find_class']"


# --- text in arrays, JSON in text -------------------------------------------------------------------------------------


def text_in(array: np.ndarray) -> str | None:
    data = npy_bytes(array)
    header = parse_header(data)
    return text_of(header, data[len(header.prefix) :])


@given(st.text(st.characters(exclude_characters="\0"), min_size=1))
def test_text_is_read_from_each_encoding_of_it(text: str) -> None:
    unicode, encoded = np.array(text), np.array(text.encode("utf-8", "surrogatepass"))
    assert text_in(unicode) == text_in(unicode.astype(">U")) == text_in(unicode[np.newaxis]) == text
    assert text_in(in_array(text)) == text
    if text.isprintable():
        assert text_in(encoded) == text


@pytest.mark.parametrize(
    "array", [np.array(["a", "b"]), np.array([], "U3"), np.array(b"\xff"), np.arange(3), np.array(1.0)], ids=repr
)
def test_an_array_that_is_no_lone_text_has_none(array: np.ndarray) -> None:
    assert text_in(array) is None


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(st.text(), json_values, max_size=4))
def test_a_json_object_is_read(content: dict[str, Any]) -> None:
    assert json_of(json.dumps(content)) == content


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "[1]",
        '"a"',
        "1",
        "null",
        '{"a": NaN}',
        '{"a": -Infinity}',
        '{"a": 1e999}',
        '{"a": [-1e999]}',
        "{'a': 1}",
    ]
    + ['{"a": ' + "[" * n + "]" * n + "}" for n in (100, 900, 100_000)]
    + ['{"a": 1' + "0" * 5000 + "}"],
    ids=lambda text: text[:20],
)
def test_what_not_every_json_reader_understands_is_none(text: str) -> None:
    assert json_of(text) is None
