"""Chunks are whole frames within a budget; the same block always has the same bytes."""

from __future__ import annotations

import hashlib
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numcodecs import blosc

from pipeline.errors import IntegrityError
from pipeline.scan import codec
from pipeline.scan.layout import CHUNK_BYTES, plan_chunks
from tests.builders import make_counts

shapes = st.lists(st.integers(1, 5000), min_size=1, max_size=3).map(tuple)


@given(shape=shapes, itemsize=st.sampled_from([1, 2, 4, 8, 16]))
def test_a_chunk_is_whole_rows_within_its_budget_or_one_row(shape: tuple[int, ...], itemsize: int) -> None:
    layout = plan_chunks(shape, itemsize)
    assert layout.chunk[1:] == shape[1:]
    assert layout.chunk[0] == 1 or int(np.prod(layout.chunk)) * itemsize <= CHUNK_BYTES


@given(shape=shapes, itemsize=st.sampled_from([2, 4]))
def test_chunks_cover_every_row_once(shape: tuple[int, ...], itemsize: int) -> None:
    layout = plan_chunks(shape, itemsize, chunk_bytes=64 << 10)
    rows = [layout.rows(i) for i in range(layout.n_chunks)]
    assert rows[0][0] == 0
    assert rows[-1][1] == shape[0]
    assert all(one[1] == two[0] for one, two in itertools.pairwise(rows))


arrays = hnp.arrays(
    dtype=st.sampled_from(["bool", "u1", "u2", "i4", "f4", "f8", "c8", "c16"]), shape=hnp.array_shapes(max_dims=3)
)


@given(block=arrays, chain=st.sampled_from(["counts", "words"]))
def test_every_block_survives_both_chains(block: np.ndarray, chain: codec.Chain) -> None:
    data = codec.encode(block, chain)
    out = np.empty_like(block)
    codec.decode(memoryview(data)[:-4], chain, out)
    assert out.tobytes() == block.tobytes()


@given(block=arrays)
def test_zarr_reads_what_we_encode(block: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("zarr")
    chain = codec.chain_for(block.dtype)
    array = zarr.create_array(
        str(folder / "a"), shape=block.shape, chunks=block.shape, dtype=block.dtype, filters=None,
        compressors=codec.zarr_chain(chain, block.dtype.itemsize),
        chunk_key_encoding={"name": "default", "separator": "."},
    )  # fmt: skip
    name = ".".join(["c", *("0" for _ in block.shape)])
    (folder / "a" / name).write_bytes(codec.encode(block, chain))
    assert np.asarray(array[...]).tobytes() == block.tobytes()
    described = json.loads((folder / "a" / "zarr.json").read_text())["codecs"]
    assert codec.chain_of(described) == chain


class ThreadsForcedOn:
    """The blosc module as it is when other code throws the switch right after each time that it is set to False."""

    def __setattr__(self, name: str, value: object) -> None:
        blosc.use_threads = True

    def __getattr__(self, name: str) -> object:
        return getattr(blosc, name)


def test_threads_forced_on_elsewhere_do_not_change_a_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    block = make_counts(64, 128, 128, mean=6.0)
    digests = {hashlib.sha256(codec.encode(block, "counts")).hexdigest()}
    monkeypatch.setattr(codec, "blosc", ThreadsForcedOn())
    blosc.set_nthreads(8)
    try:
        digests |= {hashlib.sha256(codec.encode(block, "counts")).hexdigest() for _ in range(50)}
        assert blosc.use_threads
    finally:
        blosc.use_threads = False
    assert len(digests) == 1


@pytest.mark.parametrize("mean", [0.01, 6.0, 30000.0])
def test_blocks_that_threads_left_out_of_order_are_put_in_order(mean: float) -> None:
    block = make_counts(64, 128, 128, mean=mean)
    flat = block.reshape(-1).view(np.uint8)
    blosc.use_threads = False
    serial = blosc.compress(flat, b"lz4", 5, blosc.BITSHUFFLE, 0, typesize=2)
    try:
        blosc.use_threads = True
        blosc.set_nthreads(8)
        threaded = {blosc.compress(flat, b"lz4", 5, blosc.BITSHUFFLE, 0, typesize=2) for _ in range(100)}
    finally:
        blosc.use_threads = False
    assert {codec._in_order(buffer) for buffer in threaded} == {serial}


@pytest.mark.parametrize("chain", ["counts", "words"])
def test_a_body_of_another_size_is_an_integrity_error(chain: codec.Chain) -> None:
    data = codec.encode(make_counts(2), chain)
    with pytest.raises(IntegrityError):
        codec.decode(memoryview(data)[:-4], chain, np.empty((3, 8, 8), np.uint16))
    with pytest.raises(IntegrityError):
        codec.decode(memoryview(data[: len(data) // 2]), chain, np.empty((2, 8, 8), np.uint16))


def test_scaled_roots_of_counts_take_the_chain_that_finds_repeated_words() -> None:
    counts = make_counts(16, 64, 64)
    assert codec.smaller_chain(np.sqrt(counts, dtype=np.float32)) == "words"
    noise = np.random.default_rng(0).random((16, 64, 64), dtype=np.float32)
    assert codec.smaller_chain(noise) == "counts"


def test_the_codec_module_needs_no_zarr() -> None:
    source = Path(codec.__file__).read_text(encoding="utf-8")
    assert "import zarr" not in source
