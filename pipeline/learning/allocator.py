"""How the C library hands out memory to a solve: the same large temporaries again and again."""

from __future__ import annotations

import ctypes
from typing import Final

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # of glibc's malloc.h
_KEPT_BYTES: Final = 512 << 20
_LARGEST_KEPT_BYTES: Final = 32 << 20  # the most that every glibc accepts


def keep_memory() -> None:
    """Let this process keep freed memory for its next temporaries instead of handing it back each time.

    Each pass frees and asks for the same buffers of megabytes. Handed back, they come with a page fault for every
    4 KiB, a fifth of the time of a solve (docs/decisions/006). One arena serves all threads, so that what a reader
    frees is there for the solver. Does nothing where the C library is not glibc.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return
    for option, value in (
        (_ARENA_MAX, 1),
        (_MMAP_THRESHOLD, _LARGEST_KEPT_BYTES),
        (_TRIM_THRESHOLD, _KEPT_BYTES),
    ):
        mallopt(option, value)
