"""The only maker of randomness: streams named by (seed, purpose, keys), never by history.

Every stream is a Philox counter generator whose key is the SHA-256 of its name. The raw words of Philox are
fixed by its algorithm, so anything built on `words` keeps its bits when a library changes its distributions;
`rng_for` offers NumPy's distributions, fixed for one NumPy version.
"""

from __future__ import annotations

import hashlib
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray


class Purpose(StrEnum):
    """What a stream is for. Two purposes never share a word."""

    GROUP_SEEDS = "group-seeds"
    GROUP_MEMBERS = "group-members"
    OBJECT_AMPLITUDE = "object-amplitude"
    OBJECT_PHASE = "object-phase"
    PROBE = "probe"
    POSITIONS = "positions"
    POISSON = "poisson"
    RECIPE_PART = "recipe-part"
    CHUNK_ORDER = "chunk-order"
    CHUNK_FRAMES = "chunk-frames"
    WINDOW_PHASE = "window-phase"
    WINDOW_FRAMES = "window-frames"
    HELD_OUT = "held-out"
    HALVES = "halves"
    WEIGHTS = "weights"
    STEP = "step"
    SUBSAMPLE = "subsample"
    VIEW = "view"


def _philox(seed: int, purpose: Purpose, keys: tuple[int, ...]) -> np.random.Philox:
    name = "/".join([str(seed), purpose.value, *(str(k) for k in keys)])
    digest = hashlib.sha256(name.encode("ascii")).digest()
    return np.random.Philox(key=int.from_bytes(digest[:16], "little"))


def words(seed: int, purpose: Purpose, *keys: int, n: int) -> NDArray[np.uint64]:
    """`n` uniform 64-bit words of the stream (seed, purpose, keys). (n,) uint64."""
    return np.asarray(_philox(seed, purpose, keys).random_raw(n), dtype=np.uint64)


def permutation(seed: int, purpose: Purpose, *keys: int, n: int) -> NDArray[np.int64]:
    """A permutation of 0..n-1, by sorting words; ties (never seen) fall to the lower index. (n,) int64."""
    return np.argsort(words(seed, purpose, *keys, n=n), kind="stable").astype(np.int64)


def rng_for(seed: int, purpose: Purpose, *keys: int) -> np.random.Generator:
    """An independent generator for the stream (seed, purpose, keys)."""
    return np.random.Generator(_philox(seed, purpose, keys))
