"""The header of a .npy array: parsed without believing it, written back byte by byte. No array is read here."""

from __future__ import annotations

import ast
import io
import math
import re
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

MAGIC: Final = b"\x93NUMPY"
MAX_HEADER: Final = 10_000
_MAX_AXES: Final = 64  # NumPy's own limit
_MAX_EMPTY: Final = 256 << 20  # an axis of length 0 makes any promise cheap, yet the other axes are walked through
_DTYPE_ERRORS: Final = (TypeError, ValueError, LookupError, SyntaxError, OverflowError, RecursionError, Warning)


@dataclass(frozen=True, kw_only=True, slots=True)
class NpyHeader:
    """What a .npy header says. `prefix` is its bytes, magic to newline, so that it can be written back."""

    prefix: bytes
    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    fortran_order: bool

    @property
    def disk_shape(self) -> tuple[int, ...]:
        """The shape in which the bytes lie in C order: reversed for a Fortran-ordered array."""
        return self.shape[::-1] if self.fortran_order else self.shape


def parse_header(data: bytes) -> NpyHeader:
    """The .npy header at the start of `data`, without reading any value.

    Raises
    ------
    ValueError
        It is not a .npy header of version 1, 2 or 3 of at most 10,000 bytes.
    """
    if data[:6] != MAGIC or len(data) < 12:
        raise ValueError(f"does not begin with the .npy magic but {data[:6]!r}")
    version = data[6]
    if version not in (1, 2, 3) or data[7] != 0:
        raise ValueError(f".npy version {version}.{data[7]} is unknown")
    start = 10 if version == 1 else 12
    length = int.from_bytes(data[8:start], "little")
    if length > MAX_HEADER or start + length > len(data):
        raise ValueError(f"a header of {length} bytes")
    text = data[start : start + length].decode("utf-8" if version == 3 else "latin1")
    fields = _literal(text)
    if not isinstance(fields, dict) or set(fields) != {"descr", "fortran_order", "shape"}:
        raise ValueError("a header without exactly descr, fortran_order and shape")
    shape, order = fields["shape"], fields["fortran_order"]
    if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape) or not isinstance(order, bool):
        raise ValueError(f"shape {shape!r}, fortran_order {order!r}")
    dtype = _dtype(fields["descr"])
    largest = _MAX_EMPTY if 0 in shape else np.iinfo(np.intp).max
    if len(shape) > _MAX_AXES or dtype.itemsize * math.prod(n for n in shape if n) > largest:
        raise ValueError(f"no array has shape {shape} of {dtype.str}")
    return NpyHeader(prefix=data[: start + length], shape=shape, dtype=dtype, fortran_order=order and len(shape) > 1)


def _dtype(descr: Any) -> np.dtype[np.generic]:
    if not isinstance(descr, str | list):
        raise ValueError(f"descr {descr!r}")
    try:
        return np.lib.format.descr_to_dtype(descr)  # type: ignore[arg-type]  # its annotation forgets str
    except _DTYPE_ERRORS as exc:
        raise ValueError(f"descr {str(descr)[:60]!r} is no dtype: {exc}") from exc


def _literal(text: str) -> object:
    try:
        try:
            return ast.literal_eval(text)
        except SyntaxError:
            return ast.literal_eval(re.sub(r"(?<=\d)L\b", "", text))  # Python 2 wrote 3L
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError) as exc:
        raise ValueError(f"not a literal: {text[:60]!r}") from exc


def npy_prefix(shape: tuple[int, ...], dtype: np.dtype[np.generic], *, fortran_order: bool = False) -> bytes:
    """The .npy header (version 1.0, as NumPy writes it) of an array of this shape and dtype."""
    buffer = io.BytesIO()
    descr = np.lib.format.dtype_to_descr(dtype)
    np.lib.format.write_array_header_1_0(buffer, {"descr": descr, "fortran_order": fortran_order, "shape": shape})
    return buffer.getvalue()


def raw_bytes(array: NDArray[Any]) -> memoryview:
    """The bytes of an array in C order; no copy where it is contiguous already, so that it can be written into."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
