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
        blosc.use_threads = False  # threads change the bytes from run to run, and others may have switched them on
        flat = block.reshape(-1).view(np.uint8)
        body = blosc.compress(flat, b"lz4", _LZ4_LEVEL, blosc.BITSHUFFLE, 0, typesize=block.dtype.itemsize)
    else:
        body = _ZSTD.encode(block.reshape(-1).view(np.uint8))
    return bytes(body) + int(google_crc32c.value(bytes(body))).to_bytes(4, "little")


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
            blosc.use_threads = False
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
