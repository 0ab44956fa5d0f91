"""Torch's global switches, all of them in one place, thrown once by whoever runs a command."""

from __future__ import annotations

import torch


def make_deterministic(*, threads: int) -> None:
    """The same inputs give the same bits: a fixed number of threads, an error where an operation cannot promise it."""
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a setter
