"""The JSON text inside a legacy `_metadata` member, read without unpickling anything.

Writers store it as a 0-d array of dtype object (a pickle holding one string) or as a 0-d unicode array. The
pickle's opcodes are only listed (`pickletools.genops` executes nothing) and followed on paper: what they would
build must be NumPy's array of one object, and that object a string.
"""

from __future__ import annotations

import io
import json
import math
import pickletools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from pipeline.scan.npy import NpyHeader

_MAX_OPCODES: Final = 100  # NumPy's pattern has fewer than 70
_MAX_DEPTH: Final = 100  # of JSON; readers of our own metadata recurse


@dataclass(frozen=True, slots=True)
class _Global:
    """A name that an unpickler would look up."""

    name: str


@dataclass(frozen=True, slots=True)
class _Call:
    """A call that an unpickler would make."""

    function: object
    arguments: object


@dataclass(frozen=True, slots=True)
class _Build:
    """A state that an unpickler would set."""

    instance: object
    state: object


_MARK: Final = object()
_LITERALS: Final = frozenset(
    {"BININT", "BININT1", "BININT2", "INT", "LONG1", "SHORT_BINBYTES", "BINBYTES"}
    | {"SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "UNICODE"}
)
_CONSTANTS: Final[Mapping[str, object]] = {
    "MARK": _MARK,
    "NONE": None,
    "NEWFALSE": False,
    "NEWTRUE": True,
    "EMPTY_TUPLE": (),
}
_TUPLES: Final = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_IGNORED: Final = frozenset({"PROTO", "FRAME", "STOP"})

_RECONSTRUCT: Final = tuple(_Global(f"numpy.{core}.multiarray _reconstruct") for core in ("core", "_core"))
_LETTER_B: Final = (b"b", _Call(_Global("_codecs encode"), ("b", "latin1")))
_OBJECT_DTYPE: Final = _Build(
    _Call(_Global("numpy dtype"), ("O8", False, True)), (3, "|", None, None, None, -1, -1, 63)
)


def lone_string(pickle_bytes: bytes) -> str | None:
    """The string in a pickled object array of shape () or (1,); None if the stream is anything else.

    Executes nothing.
    """
    stream = io.BytesIO(pickle_bytes)
    try:
        built = _built(stream)
    except (ValueError, LookupError, Warning):
        return None
    match built:
        case _Build(
            _Call(function, (_Global("numpy ndarray"), (0,), letter)), (1, () | (1,), dtype, False, [str(text)])
        ) if function in _RECONSTRUCT and letter in _LETTER_B and dtype == _OBJECT_DTYPE and not stream.read(1):
            return text
    return None


def _built(stream: io.BytesIO) -> object:
    """What the opcodes would build, calls named instead of made. Raises some LookupError or ValueError if nothing."""
    stack: list[object] = []
    memo: dict[object, object] = {}
    for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
        name = opcode.name
        if count > _MAX_OPCODES:
            raise ValueError("not NumPy's pattern")
        if name in _LITERALS:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name.endswith("PUT"):
            memo[argument] = stack[-1]
        elif name.endswith("GET"):
            stack.append(memo[argument])
        elif name not in _IGNORED:
            _combine(stack, name, argument)
    (built,) = stack
    return built


def _combine(stack: list[object], name: str, argument: object) -> None:
    """One opcode that takes something from the stack, or names a global."""
    if name in _TUPLES:
        stack.append(tuple(stack.pop() for _ in range(_TUPLES[name]))[::-1])
    elif name == "TUPLE":
        stack.append(tuple(_above_mark(stack)))
    elif name in ("EMPTY_LIST", "LIST"):
        stack.append([] if name == "EMPTY_LIST" else _above_mark(stack))
    elif name in ("APPEND", "APPENDS"):
        more = [stack.pop()] if name == "APPEND" else _above_mark(stack)
        if not isinstance(stack[-1], list):
            raise ValueError(f"{name} to no list")
        stack[-1].extend(more)
    elif name == "GLOBAL":
        stack.append(_Global(str(argument)))
    elif name == "STACK_GLOBAL":
        attribute, module = stack.pop(), stack.pop()
        stack.append(_Global(f"{module} {attribute}"))
    elif name in ("REDUCE", "BUILD"):
        second, first = stack.pop(), stack.pop()
        stack.append((_Call if name == "REDUCE" else _Build)(first, second))
    else:
        raise ValueError(f"opcode {name}")


def _above_mark(stack: list[object]) -> list[object]:
    at = len(stack) - 1 - stack[::-1].index(_MARK)
    taken = stack[at + 1 :]
    del stack[at:]
    return taken


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
    """The JSON object that a text holds.

    None where it is no JSON object, holds NaN or infinity (`1e999` is one), or is nested too deep to be handed on.
    """
    try:
        value = json.loads(text, parse_constant=_refuse, parse_float=_finite)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) and _is_shallow(value, _MAX_DEPTH) else None


def _refuse(name: str) -> object:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is no number that JSON readers share")
    return value


def _is_shallow(value: object, levels: int) -> bool:
    if not isinstance(value, dict | list):
        return True
    return levels > 0 and all(
        _is_shallow(v, levels - 1) for v in (value.values() if isinstance(value, dict) else value)
    )
