"""The two codec chains: one chunk to bytes and back, the same bytes each time.

`counts`: blosc lz4 level 5 with bit shuffle, for integers. `words`: zstd level 3, for everything else; square
roots of counts take few distinct four-byte values, which shuffling would hide from it. Both end in crc32c.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

import google_crc32c
import numpy as np
from numcodecs import blosc
from numcodecs.zstd import Zstd
from numpy.typing import NDArray

from pipeline.errors import IntegrityError

Chain = Literal["counts", "words"]

_LZ4_LEVEL: Final = 5
_BLOSC_HEADER: Final = 16
_BLOSC_MEMCPYED: Final = 0x2
_ZSTD: Final = Zstd(level=3)


def chain_for(dtype: np.dtype[np.generic]) -> Chain:
    """The chain of an array by its dtype: `counts` for integers and booleans, else `words`."""
    return "counts" if dtype.kind in "biu" else "words"


def smaller_chain(sample: NDArray[np.float32]) -> Chain:
    """`words` for float frames if it makes a sample smaller by more than a quarter, else the quicker `counts`."""
    return "words" if len(encode(sample, "words")) < 0.75 * len(encode(sample, "counts")) else "counts"


def encode(block: NDArray[np.generic], chain: Chain) -> bytes:
    """One whole chunk, C-contiguous and little-endian, as the bytes of its file."""
    block = np.ascontiguousarray(block)
    if chain == "counts":
        blosc.use_threads = False
        flat = block.reshape(-1).view(np.uint8)
        body = _in_order(blosc.compress(flat, b"lz4", _LZ4_LEVEL, blosc.BITSHUFFLE, 0, typesize=block.dtype.itemsize))
    else:
        body = _ZSTD.encode(block.reshape(-1).view(np.uint8))
    return bytes(body) + int(google_crc32c.value(bytes(body))).to_bytes(4, "little")


def _in_order(buffer: bytes) -> bytes:
    """A blosc buffer with its blocks in order of their content.

    Blosc's own threads append blocks as they finish, so they change the bytes from run to run. They are switched
    off, but the switch is global and other code in the process may throw it between two of our lines. Layout of a
    buffer: flags at byte 2, then sizes of content, block and buffer at 4, 8 and 12, then where each block starts.
    """
    n_bytes, block_bytes, end = (int.from_bytes(buffer[at : at + 4], "little") for at in (4, 8, 12))
    if buffer[2] & _BLOSC_MEMCPYED or n_bytes <= block_bytes:
        return buffer
    n_blocks = -(-n_bytes // block_bytes)
    starts = np.frombuffer(buffer, "<i4", n_blocks, _BLOSC_HEADER)
    if (np.diff(starts) > 0).all():
        return buffer
    ends = np.append(np.sort(starts), end)[1:][np.argsort(np.argsort(starts))]
    blocks = [buffer[start:stop] for start, stop in zip(starts, ends, strict=True)]
    first = _BLOSC_HEADER + 4 * n_blocks
    moved = first + np.cumsum([0, *map(len, blocks[:-1])])
    return b"".join([buffer[:_BLOSC_HEADER], moved.astype("<i4").tobytes(), *blocks])


def decode(body: memoryview, chain: Chain, out: NDArray[np.generic]) -> None:
    """Decode a chunk file's bytes, its four-byte trailer cut off, into `out` (whole chunk, C-contiguous).

    Raises
    ------
    IntegrityError
        The bytes are not those of a chunk of this size.
    """
    flat = out.reshape(-1).view(np.uint8)
    try:
        if chain == "counts":
            promised = int.from_bytes(body[4:8], "little")  # a blosc buffer's own header: decoded size at byte 4
            if promised == flat.nbytes:
                blosc.decompress(body, flat)
        else:
            decoded = _ZSTD.decode(body)
            promised = len(decoded)
            if promised == flat.nbytes:
                flat[:] = np.frombuffer(decoded, np.uint8)
    except (RuntimeError, ValueError) as exc:
        raise IntegrityError(f"cannot be decoded: {exc}", code="store.chunk") from exc
    if promised != flat.nbytes:
        raise IntegrityError(f"decodes to {promised} bytes, a chunk has {flat.nbytes}", code="store.chunk")


def zarr_chain(chain: Chain, itemsize: int) -> list[dict[str, Any]]:
    """The chain as Zarr v3 codec metadata."""
    squeeze: dict[str, Any] = {"name": "zstd", "configuration": {"level": 3, "checksum": False}}
    if chain == "counts":
        settings = {
            "typesize": itemsize,
            "cname": "lz4",
            "clevel": _LZ4_LEVEL,
            "shuffle": "bitshuffle",
            "blocksize": 0,
        }
        squeeze = {"name": "blosc", "configuration": settings}
    return [squeeze, {"name": "crc32c"}]


def chain_of(codecs: Sequence[Mapping[str, object]]) -> Chain | None:
    """The chain that Zarr metadata describes; None for one that no store of ours has."""
    names = [codec.get("name") for codec in codecs]
    if names == ["bytes", "blosc", "crc32c"]:
        return "counts"
    return "words" if names == ["bytes", "zstd", "crc32c"] else None
