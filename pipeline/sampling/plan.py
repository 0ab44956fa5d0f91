"""Which frames each training step reads, and when each chunk is needed. Pure: a function of store, options and seed.

Never of ranks, workers, threads, memory or prefetch depth. Randomness comes from counter words keyed by
(seed, epoch, purpose), and the shuffle is ours (sorting words), so no library version changes an order.

*Chunks* are permuted once an epoch and their frames dealt to L *lanes* as equal runs; odd lanes walk their run
backwards, so that a chunk on the border of two lanes is needed by both at the same time. Within a lane, W/L consecutive
chunks make a *window* (the first one shortened by a random phase), whose frames are shuffled together. A batch takes
batch/L frames from each lane.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from pipeline.errors import PlanError
from pipeline.seeding import Purpose, permutation, words

Indices = NDArray[np.int64]

ORDER_VERSION: Final = 1
WINDOW_CHUNKS: Final = 28
"""W: chunks in one window over all lanes (two windows of 2 MiB chunks are then 112 MiB)."""

MODES: Final = ("shuffled", "cluster", "sequential")


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """What the order needs to know of a scan. Its items are frames, or groups named by their seed frame.

    `chunk_of` (item,) int64 is the chunk of each item, not falling; `positions` (item, 2) float64 (y, x);
    `eligible` (item,) bool.
    """

    chunk_of: Indices
    n_chunks: int
    positions: NDArray[np.float64]
    eligible: NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """The options that decide an order, resolved: lanes and window are values here, whatever they came from."""

    batches: str
    batch_size: int
    cluster_size: int
    lanes: int
    window_chunks: int

    def identity(self) -> Mapping[str, object]:
        """These options as JSON values, with the version of the algorithm."""
        return {
            "order_version": ORDER_VERSION,
            "batches": self.batches,
            "batch_size": self.batch_size,
            "cluster_size": self.cluster_size,
            "lanes": self.lanes,
            "window_chunks": self.window_chunks,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """Chunks that are needed together, from the first to the last step that reads them."""

    chunks: tuple[int, ...]
    first_step: int
    last_step: int


@dataclass(frozen=True, kw_only=True, slots=True)
class EpochPlan:
    """One epoch: the frames of each step one after the other, cut every `batch_size`, and the windows in time order."""

    frames: Indices
    batch_size: int
    windows: tuple[Window, ...]
    n_unvisited: int

    @property
    def n_steps(self) -> int:
        """Number of batches; only a sequential epoch may end in a short one."""
        return -(-self.frames.size // self.batch_size)

    def batch(self, step: int) -> Indices:
        """The frames of one step, (batch,) int64."""
        return self.frames[step * self.batch_size : (step + 1) * self.batch_size]


def resolve_order(
    *,
    batches: str,
    batch_size: int,
    n_frames: int,
    cluster_size: int | None = None,
    window_chunks: int = WINDOW_CHUNKS,
    lanes: int | None = None,
) -> Order:
    """The options of an order with everything that follows from others filled in.

    A batch larger than the number of frames becomes that number. L is the largest of 4, 2, 1 that divides the batch
    (in cluster batches: the number of clusters), unless given.

    Raises
    ------
    PlanError
        No frames, an unknown mode, sizes below 1, a cluster size or lanes that do not divide.
    """
    if batches not in MODES:
        raise PlanError(f"batches {batches!r}; expected one of {', '.join(MODES)}", code="plan.batches")
    if batch_size < 1 or window_chunks < 1 or n_frames < 1:
        raise PlanError(
            f"batch of {batch_size} from {n_frames} frames, window of {window_chunks} chunks: all start at 1",
            code="plan.range",
        )
    batch_size = min(batch_size, n_frames)
    cluster = min(cluster_size or batch_size, batch_size) if batches == "cluster" else 1
    if cluster < 1 or batch_size % cluster:
        raise PlanError(
            f"a batch of {batch_size} is not made of whole clusters of {cluster}", code="plan.cluster",
            hint="--cluster-size that divides --batch-size",
        )  # fmt: skip
    units = batch_size // cluster
    chosen = lanes or next(n for n in (4, 2, 1) if units % n == 0)
    if units % chosen:
        raise PlanError(f"{chosen} lanes do not divide {units} frames or clusters a batch", code="plan.lanes")
    return Order(
        batches=batches, batch_size=batch_size, cluster_size=cluster, window_chunks=window_chunks,
        lanes=1 if batches == "sequential" else chosen,
    )  # fmt: skip


def plan_epoch(layout: Layout, order: Order, *, seed: int, epoch: int) -> EpochPlan:
    """The batches of one epoch, (step, batch), and the windows of chunks behind them.

    `shuffled` and `cluster` have n // batch steps for n eligible frames; what is left is counted. `sequential` visits
    every eligible frame in store order and keeps the short last batch.

    Raises
    ------
    PlanError
        No frame is eligible, or fewer than a batch.
    """
    n_eligible = int(layout.eligible.sum())
    if n_eligible < (1 if order.batches == "sequential" else order.batch_size):
        raise PlanError(f"{n_eligible} frames cannot fill one batch of {order.batch_size}", code="plan.frames")
    if order.batches == "sequential":
        return _sequential(layout, order)
    n_steps = n_eligible // order.batch_size
    lanes = _lanes(layout, order, n_steps, seed=seed, epoch=epoch)
    if order.batches == "cluster":
        return _clustered(layout, order, lanes, n_steps)
    per_lane = order.batch_size // order.lanes
    streams = [np.concatenate([window.frames for window in lane]) for lane in lanes]
    frames = np.concatenate([stream.reshape(n_steps, per_lane) for stream in streams], axis=1)
    windows = [w for lane in lanes for w in _timed(lane, [window.frames.size for window in lane], per_lane)]
    return EpochPlan(
        frames=frames.reshape(-1), batch_size=order.batch_size, windows=_in_time(windows),
        n_unvisited=n_eligible - frames.size,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class _LaneWindow:
    """Chunks of one window of one lane, and the lane's frames in them, shuffled."""

    chunks: tuple[int, ...]
    frames: Indices


def _sequential(layout: Layout, order: Order) -> EpochPlan:
    frames = np.flatnonzero(layout.eligible)
    chunk_of = layout.chunk_of[frames]
    windows = []
    present = np.unique(chunk_of)
    for start in range(0, present.size, order.window_chunks):
        chunks = present[start : start + order.window_chunks]
        first, last = np.searchsorted(chunk_of, chunks[0]), np.searchsorted(chunk_of, chunks[-1], "right") - 1
        windows.append(Window(chunks=tuple(chunks.tolist()), first_step=int(first) // order.batch_size,
                              last_step=int(last) // order.batch_size))  # fmt: skip
    return EpochPlan(frames=frames, batch_size=order.batch_size, windows=tuple(windows), n_unvisited=0)


def _lanes(layout: Layout, order: Order, n_steps: int, *, seed: int, epoch: int) -> list[list[_LaneWindow]]:
    """Each lane's windows: equal runs of the permuted chunks' frames, odd lanes backwards."""
    chunk_order = permutation(seed, Purpose.CHUNK_ORDER, epoch, n=layout.n_chunks)
    stream = np.concatenate([_frames_of(layout, int(c), seed=seed, epoch=epoch) for c in chunk_order])
    per_lane = n_steps * order.batch_size // order.lanes
    depth = max(1, order.window_chunks // order.lanes)
    phase = 1 + int(words(seed, Purpose.WINDOW_PHASE, epoch, n=1)[0] % np.uint64(depth))
    lanes = []
    for lane in range(order.lanes):
        run = stream[lane * per_lane : (lane + 1) * per_lane]
        lanes.append(
            list(
                _windows(
                    layout,
                    run[::-1] if lane % 2 else run,
                    depth,
                    phase,
                    lane,
                    least=order.cluster_size,
                    seed=seed,
                    epoch=epoch,
                )
            )
        )
    return lanes


def _frames_of(layout: Layout, chunk: int, *, seed: int, epoch: int) -> Indices:
    """The eligible frames of a chunk, shuffled, so that no place in a chunk is more likely to be cut off."""
    start, stop = np.searchsorted(layout.chunk_of, [chunk, chunk + 1])
    frames = start + np.flatnonzero(layout.eligible[start:stop])
    return np.asarray(frames[permutation(seed, Purpose.CHUNK_FRAMES, epoch, chunk, n=frames.size)])


def _windows(
    layout: Layout, run: Indices, depth: int, phase: int, lane: int, *, least: int, seed: int, epoch: int
) -> Iterator[_LaneWindow]:
    """Windows of `depth` chunks along a lane's run, the first of `phase` chunks; frames of a window shuffled.

    A window of fewer than `least` frames, which could not fill a cluster, joins its neighbour.
    """
    chunk_of = layout.chunk_of[run]
    starts = np.flatnonzero(np.diff(chunk_of, prepend=-1))
    cuts = _without_crumbs([0, *starts[phase::depth].tolist(), run.size], least)
    for index, (start, stop) in enumerate(itertools.pairwise(cuts)):
        part = run[start:stop]
        shuffled = part[permutation(seed, Purpose.WINDOW_FRAMES, epoch, lane, index, n=part.size)]
        chunks = tuple(dict.fromkeys(layout.chunk_of[part].tolist()))
        yield _LaneWindow(chunks=chunks, frames=np.asarray(shuffled))


def _without_crumbs(cuts: list[int], least: int) -> list[int]:
    """The same cuts without those that leave a piece shorter than `least`."""
    kept = [cuts[0]]
    for cut in cuts[1:-1]:
        if cut - kept[-1] >= least:
            kept.append(cut)
    while len(kept) > 1 and cuts[-1] - kept[-1] < least:
        kept.pop()
    return [*kept, cuts[-1]]


def _timed(lane: list[_LaneWindow], sizes: list[int], per_step: int) -> Iterator[Window]:
    """When each window of a lane is read; `sizes` units of it are used, `per_step` of the lane each step."""
    done = 0
    for window, size in zip(lane, sizes, strict=True):
        if size:
            yield Window(chunks=window.chunks, first_step=done // per_step, last_step=(done + size - 1) // per_step)
        done += size


def _in_time(windows: list[Window]) -> tuple[Window, ...]:
    return tuple(sorted(windows, key=lambda w: (w.first_step, w.last_step, w.chunks)))


def _clustered(layout: Layout, order: Order, lanes: list[list[_LaneWindow]], n_steps: int) -> EpochPlan:
    """Seeds thinned evenly over each lane's windows; each with its nearest, from its window or from the whole scan."""
    per_lane = order.batch_size // order.cluster_size // order.lanes
    fits = layout.n_chunks <= order.window_chunks
    everything = np.flatnonzero(layout.eligible)
    streams, windows = [], []
    for lane in lanes:
        ends = np.cumsum([window.frames.size for window in lane])
        counts = np.diff(ends * (n_steps * per_lane) // ends[-1], prepend=0).tolist()
        clusters = [
            _nearest(layout, window.frames[:count], everything if fits else np.sort(window.frames), order.cluster_size)
            for window, count in zip(lane, counts, strict=True)
        ]
        streams.append(np.concatenate(clusters).reshape(n_steps, per_lane * order.cluster_size))
        windows += list(_timed(lane, counts, per_lane))
    if fits:
        chunks = tuple(np.unique(layout.chunk_of[everything]).tolist())
        windows = [Window(chunks=chunks, first_step=0, last_step=n_steps - 1)]
    frames = np.concatenate(streams, axis=1).reshape(-1)
    return EpochPlan(
        frames=frames, batch_size=order.batch_size, windows=_in_time(windows),
        n_unvisited=everything.size - np.unique(frames).size,
    )  # fmt: skip


def _nearest(layout: Layout, seeds: Indices, among: Indices, size: int) -> Indices:
    """Each seed and its nearest of `among`, `size` in all, nearest first, ties by index: (seed, size)."""
    if seeds.size == 0:
        return np.empty((0, size), np.int64)
    if among.size < size:
        raise PlanError(
            f"a window of {among.size} frames cannot fill a cluster of {size}", code="plan.cluster",
            hint="a smaller --cluster-size",
        )  # fmt: skip
    tree = cKDTree(layout.positions[among])
    chosen = np.empty((seeds.size, size), np.int64)
    reach = np.asarray(tree.query(layout.positions[seeds], k=[size])[0])[:, 0]
    for row, (seed, radius) in enumerate(zip(seeds.tolist(), reach.tolist(), strict=True)):
        within = among[tree.query_ball_point(layout.positions[seed], np.nextafter(radius, np.inf))]
        distance = np.hypot(*(layout.positions[within] - layout.positions[seed]).T)
        distance[within == seed] = -1.0  # the seed comes first, also where others share its place
        chosen[row] = within[np.lexsort((within, distance))][:size]
    return chosen


def identity_of(order: Order, *, store_sha256: str, seed: int, mask: NDArray[np.bool_] | None) -> Mapping[str, object]:
    """Everything that decides the order of all epochs, as JSON values."""
    packed = None if mask is None else hashlib.sha256(np.packbits(mask).tobytes()).hexdigest()
    return {**order.identity(), "store_sha256": store_sha256, "seed": seed, "mask_sha256": packed}


def order_sha256(identity: Mapping[str, object], plans: Iterator[EpochPlan]) -> str:
    """SHA-256 over the identity and the frames of each epoch in order: the same wherever the order is the same."""
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode("ascii"))
    for plan in plans:
        digest.update(plan.frames.astype("<i8").tobytes())
    return digest.hexdigest()
