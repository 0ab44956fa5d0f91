"""Torch's global switches, all of them in one place, thrown once by whoever runs a command."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def make_deterministic(*, threads: int, strict: bool = True) -> None:
    """The same inputs give the same bits: a fixed number of threads, an error where an operation cannot promise it.

    Not `strict`: no such error.
    """
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(strict)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a setter


@contextmanager
def deterministic(*, threads: int) -> Iterator[None]:
    """`make_deterministic` for the length of a `with`, for what is called from a program of someone else."""
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]  # untyped
    make_deterministic(threads=threads)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1])
        torch.utils.deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]
