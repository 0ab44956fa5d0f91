"""The JSON text inside a legacy `_metadata` member, read without unpickling anything.

Writers store it as a 0-d array of dtype object (a pickle holding one string) or as a 0-d unicode array. The
pickle's opcodes are only listed (`pickletools.genops` executes nothing); the stream must consist of the fixed
pattern with which NumPy wraps one string, and of nothing else.
"""

from __future__ import annotations

import io
import json
import pickletools
from collections.abc import Mapping
from typing import Final

import numpy as np

from pipeline.scan.npz import NpyHeader

_STRUCTURE: Final = frozenset(
    {
        "PROTO",
        "FRAME",
        "STOP",
        "MEMOIZE",
        "PUT",
        "BINPUT",
        "LONG_BINPUT",
        "GET",
        "BINGET",
        "LONG_BINGET",
        "MARK",
        "TUPLE",
        "TUPLE1",
        "TUPLE2",
        "TUPLE3",
        "EMPTY_TUPLE",
        "EMPTY_LIST",
        "LIST",
        "APPEND",
        "APPENDS",
        "NONE",
        "NEWFALSE",
        "NEWTRUE",
        "REDUCE",
        "BUILD",
    }
)
_NUMBERS: Final = frozenset({"BININT", "BININT1", "BININT2", "INT", "LONG1"})
_BYTES: Final = frozenset({"SHORT_BINBYTES", "BINBYTES"})
_TEXTS: Final = frozenset({"SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "UNICODE"})
_WORDS: Final = frozenset(
    {
        "numpy.core.multiarray",
        "numpy._core.multiarray",
        "_reconstruct",
        "numpy",
        "ndarray",
        "dtype",
        "O8",
        "O4",
        "|",
        "b",
        "_codecs",
        "encode",
        "latin1",
    }
)
_GLOBALS: Final = frozenset(
    {
        "numpy.core.multiarray _reconstruct",
        "numpy._core.multiarray _reconstruct",
        "numpy ndarray",
        "numpy dtype",
        "_codecs encode",
    }
)
_DTYPE_NUMBERS: Final = frozenset({0, 1, 3, -1, 63})


def lone_string(pickle_bytes: bytes) -> str | None:
    """The one string of a pickled 0-d object array; None if the stream is anything else. Executes nothing."""
    stream = io.BytesIO(pickle_bytes)
    found: list[str] = []
    try:
        for opcode, argument, _ in pickletools.genops(stream):
            name = opcode.name
            if name in _TEXTS:
                if argument not in _WORDS:
                    found.append(str(argument))
            elif name in _BYTES:
                if argument not in (b"b", b"|"):
                    return None
            elif name == "GLOBAL":
                if argument not in _GLOBALS:
                    return None
            elif name in _NUMBERS:
                if argument not in _DTYPE_NUMBERS:
                    return None
            elif name != "STACK_GLOBAL" and name not in _STRUCTURE:
                return None
    except ValueError:
        return None
    trailing = stream.read()
    return found[0] if len(found) == 1 and not trailing else None


def text_of(header: NpyHeader, raw: bytes) -> str | None:
    """The text of a 0-d (or one-element) member of dtype object, `<U` or `S`; None where it is no lone text."""
    if header.dtype.hasobject:
        return lone_string(raw)
    if header.dtype.kind not in "US" or np.prod(header.shape, dtype=int) != 1:
        return None
    value = np.frombuffer(raw, header.dtype)[0]
    try:
        return value.decode("utf-8") if isinstance(value, bytes) else str(value)
    except UnicodeDecodeError:
        return None


def json_of(text: str) -> Mapping[str, object] | None:
    """The JSON object that a text holds; None where it is no JSON object or holds NaN or infinity."""
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is not JSON")
