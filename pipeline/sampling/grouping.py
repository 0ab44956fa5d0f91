"""Which frames form each group: a seed frame and others from its nearest neighbours. Pure.

A group of gridsize g has C = g^2 members. Member 0 is the seed; the other C - 1 are drawn from its K nearest other
frames, without replacement. Ties in distance fall to the lower index, so that the groups of a regular raster do
not depend on a library's tree.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from pipeline.errors import PlanError
from pipeline.seeding import Purpose, permutation, words

Indices = NDArray[np.int64]
Doubles = NDArray[np.float64]

DEFAULT_NEIGHBORS = 7


@dataclass(frozen=True, kw_only=True, slots=True)
class Grouping:
    """Groups of frames. `members` (group, C) int64, member 0 the seed; `notes` says what was capped."""

    members: Indices
    notes: tuple[str, ...] = ()


def group_frames(
    positions: Doubles,
    *,
    gridsize: int,
    n_groups: int,
    seed: int,
    neighbors: int = DEFAULT_NEIGHBORS,
    allow_oversampling: bool = False,
    window_of: Indices | None = None,
) -> Grouping:
    """Groups of gridsize^2 frames around `n_groups` seed frames.

    Up to one group per frame, seeds are drawn without replacement (all of them, in order, where `n_groups` equals
    the number of frames). More groups than frames are opt-in, for gridsize > 1 only: then each frame is a seed
    several times, each time with another combination of its neighbours while there are any.

    Parameters
    ----------
    positions
        (n, 2) float64 pixels, (y, x).
    neighbors
        K: how many nearest others the members may come from; all others where there are fewer.
    window_of
        (n,) int64, not falling: members come from frames with their seed's number alone. None: from all.

    Raises
    ------
    PlanError
        Fewer frames than members, in all or in a window, or OVERSAMPLING-001: K < C, or oversampling without opt-in
        or with K <= C.
    """
    n_frames, size = len(positions), gridsize * gridsize
    _refuse_impossible(n_frames, gridsize, n_groups, neighbors, allow_oversampling)
    notes = []
    if n_groups > n_frames and size == 1:
        notes.append(f"{n_groups} groups asked for, one per frame is {n_frames}")
        n_groups = n_frames
    seeds = _seed_frames(n_frames, n_groups, seed)
    if size == 1:
        return Grouping(members=seeds[:, np.newaxis], notes=tuple(notes))
    runs = _runs(n_frames, window_of)
    fewest = min(run.stop - run.start for run in runs)
    pool = min(neighbors, fewest - 1)
    if pool < neighbors:
        notes.append(f"{neighbors} neighbours asked for, there are {pool} other frames to choose from")
    if pool < size - 1:
        raise PlanError(
            f"a window of {fewest} frames cannot fill a group of {size} (gridsize {gridsize})",
            code="plan.frames", hint="leave --neighbors-within out",
        )  # fmt: skip
    nearest = np.concatenate([run.start + nearest_others(positions[run], pool) for run in runs])
    chosen = _combinations(n_frames, n_groups, pool, size - 1, seed)
    members = np.concatenate([seeds[:, np.newaxis], np.take_along_axis(nearest[seeds], chosen, axis=1)], axis=1)
    return Grouping(members=members, notes=tuple(notes))


def contiguous_windows(n_chunks: int, *, most: int) -> Indices:
    """A window for each chunk: as few runs of neighbouring chunks as can be, `most` in each, of nearly equal length.

    (n_chunks,) int64, rising from 0.
    """
    n_windows = -(-n_chunks // most)
    return np.asarray(np.arange(n_chunks) * n_windows // n_chunks)


def _runs(n_frames: int, window_of: Indices | None) -> list[slice]:
    """The frames of each window, in order."""
    if window_of is None:
        return [slice(0, n_frames)]
    starts = np.flatnonzero(np.diff(window_of, prepend=-1)).tolist()
    return [slice(start, stop) for start, stop in itertools.pairwise([*starts, n_frames])]


def _refuse_impossible(n_frames: int, gridsize: int, n_groups: int, neighbors: int, allow_oversampling: bool) -> None:
    size = gridsize * gridsize
    if gridsize < 1 or n_groups < 1:
        raise PlanError(f"gridsize {gridsize} and {n_groups} groups; both start at 1", code="plan.range")
    if n_frames < size:
        raise PlanError(f"{n_frames} frames cannot fill a group of {size} (gridsize {gridsize})", code="plan.frames")
    if size > 1 and neighbors < size:
        raise PlanError(
            f"OVERSAMPLING-001: gridsize {gridsize} needs at least {size} neighbours to choose from, not {neighbors}",
            code="plan.oversampling_001",
            hint=f"--neighbors {max(DEFAULT_NEIGHBORS, size)}",
        )
    if size > 1 and n_groups > n_frames and not (allow_oversampling and neighbors > size):
        raise PlanError(
            f"OVERSAMPLING-001: {n_groups} groups from {n_frames} frames repeat seeds; that is opt-in and needs more "
            f"than {size} neighbours to choose from (now {neighbors})",
            code="plan.oversampling_001",
            hint="--allow-oversampling, with --neighbors above gridsize squared",
        )


def _seed_frames(n_frames: int, n_groups: int, seed: int) -> Indices:
    """Seeds of the groups: rounds over all frames, the last one a draw without replacement in drawn order."""
    whole, rest = divmod(n_groups, n_frames)
    rounds = [np.arange(n_frames, dtype=np.int64)] * whole
    if rest:
        rounds.append(permutation(seed, Purpose.GROUP_SEEDS, n=n_frames)[:rest])
    return np.concatenate(rounds)


def _combinations(n_frames: int, n_groups: int, pool: int, choose: int, seed: int) -> Indices:
    """Which of its `pool` neighbours each group takes: (group, choose), as columns of `nearest_others`.

    The first round over the frames draws by sorting words; later rounds (oversampling) walk through a random
    order of all combinations, so that no group of a seed repeats while there are others.
    """
    rounds = math.ceil(n_groups / n_frames)
    if rounds == 1:
        drawn = words(seed, Purpose.GROUP_MEMBERS, n=n_groups * pool).reshape(n_groups, pool)
        return np.argsort(drawn, axis=1, kind="stable")[:, :choose].astype(np.int64)
    every = np.array(list(itertools.combinations(range(pool), choose)), dtype=np.int64)
    order = np.argsort(
        words(seed, Purpose.GROUP_MEMBERS, n=n_frames * len(every)).reshape(n_frames, -1), axis=1, kind="stable"
    )
    group = np.arange(n_groups)
    seeds = _seed_frames(n_frames, n_groups, seed)
    return every[order[seeds, (group // n_frames) % len(every)]]


def nearest_others(positions: Doubles, k: int) -> Indices:
    """The k nearest other frames of each frame, nearest first, ties by index: (n, k) int64.

    Parameters
    ----------
    positions
        (n, 2) float64 pixels, (y, x); equal positions are each other's neighbours at distance 0.
    """
    n = len(positions)
    tree = cKDTree(positions)
    reach = min(n, k + 2)  # itself, the k wanted, and one more to see whether the last is tied
    distance, index = map(np.asarray, tree.query(positions, k=reach))
    result = np.empty((n, k), np.int64)
    last = distance[:, min(k, reach - 1)]
    tied = (reach > k + 1) & (distance[:, -1] <= last)
    plain = ~tied
    result[plain] = _ranked(distance[plain], index[plain], np.flatnonzero(plain), k)
    for frame in np.flatnonzero(tied):
        within = np.array(tree.query_ball_point(positions[frame], np.nextafter(last[frame], np.inf)), np.int64)
        exact = np.hypot(*(positions[within] - positions[frame]).T)
        result[frame] = _ranked(exact[np.newaxis], within[np.newaxis], np.array([frame]), k)[0]
    return result


def _ranked(distance: Doubles, index: Indices, own: Indices, k: int) -> Indices:
    """Rows of neighbours sorted by (distance, index), the frame itself left out, cut to k."""
    own_last = np.where(index == own[:, np.newaxis], np.inf, distance)
    order = np.lexsort((index, own_last), axis=1)
    return np.take_along_axis(index, order, axis=1)[:, :k].astype(np.int64)
