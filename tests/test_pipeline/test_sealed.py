"""Small documents that prove themselves."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import IntegrityError, NotFoundError
from pipeline.scan.sealed import changes, read_document, read_sealed, sealed, spelled, write_document

numbers = st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | numbers | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip
documents = st.dictionaries(st.text(min_size=1, max_size=8), values, max_size=5)


@given(documents)
def test_a_sealed_document_comes_back_whole_and_is_not_changed(tmp_path: Path, document: dict) -> None:
    path = tmp_path / "d.json"
    write_document(path, sealed(document))
    assert read_sealed(path) == sealed(document)
    assert list(changes(path, read_document(path))) == []
    assert sealed(sealed(document)) == sealed(document)


@given(documents, st.data())
def test_any_other_byte_is_noticed(tmp_path: Path, document: dict, data: st.DataObject) -> None:
    path, good = tmp_path / "d.json", spelled(sealed(document))
    at = data.draw(st.integers(0, len(good) - 1))
    path.write_bytes(
        good[:at] + bytes([data.draw(st.integers(0, 255).filter(lambda b: b != good[at]))]) + good[at + 1 :]
    )
    with pytest.raises(IntegrityError):
        read_sealed(path)


@pytest.mark.parametrize("other", [b'{"a": 1}', b'{\n  "a": 1 \n}\n', b'{\n\t"a": 1\n}\n'])
def test_the_same_content_in_another_spelling_is_noticed(tmp_path: Path, other: bytes) -> None:
    path = tmp_path / "d.json"
    path.write_bytes(other)
    assert list(changes(path, read_document(path), key=None)) == ["its bytes are not as they were written"]


def test_what_is_no_document_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "d.json"
    with pytest.raises(NotFoundError):
        read_document(path)
    assert read_sealed(path) == {}
    for content in (b"", b"[1]", b"{", b"\xff", b'{"a": NaN}'[:4]):
        path.write_bytes(content)
        with pytest.raises(IntegrityError):
            read_document(path)
    path.unlink()
    path.symlink_to(tmp_path / "elsewhere.json")
    (tmp_path / "elsewhere.json").write_text("{}")
    with pytest.raises(IntegrityError):
        read_document(path)
