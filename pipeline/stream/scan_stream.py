"""`ScanStream`: a scan as whole batches in one deterministic order, in or out of a DataLoader's workers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from pipeline.config import StreamConfig
from pipeline.errors import ConfigError, IntegrityError, PlanError
from pipeline.sampling.grouping import contiguous_windows, group_frames
from pipeline.sampling.plan import (
    WINDOW_CHUNKS,
    EpochPlan,
    Layout,
    Order,
    Window,
    identity_of,
    order_sha256,
    plan_epoch,
    resolve_order,
)
from pipeline.scan.chunks import ChunkRef, chunk_ref, read_all
from pipeline.scan.quantity import AmplitudeFormula, amplitude_from_counts
from pipeline.scan.record import StoreRecord, open_record
from pipeline.scan.store import formula_of
from pipeline.seeding import Purpose, permutation
from pipeline.stream.window import Residents, Threads, by_epoch, decode_chunks, threads, windows_in_line

NEIGHBOUR_CHUNKS: Final = 7
"""Chunks of a window that groups stay within; an order's window holds four of these."""


class Batch(NamedTuple):
    """What one step receives. B groups of C = gridsize^2 members, N the frame's side; x and y in object pixels.

    `diffraction` (B, C, N, N) float32 amplitude in the source's gauge · `positions` (B, C, 2) float64 (y, x) ·
    `offsets` (B, 2) float64, their mean · `relative` (B, C, 2) float64 = positions - offsets · `probe`
    (mode, N, N) complex64 or None · `indices` (B, C) int64 frames of the store · `label` (B, C, N, N) complex64 or
    None · `epoch` and `step` say where in the order it stands · `valid` (N, N) bool, good pixels of the detector, or
    None where all are good.
    """

    diffraction: Tensor
    positions: Tensor
    offsets: Tensor
    relative: Tensor
    probe: Tensor | None
    indices: Tensor
    label: Tensor | None
    epoch: int
    step: int
    valid: Tensor | None = None


class ScanStream(IterableDataset[Batch]):
    """Batches of a store in an order that depends on the store and the options alone.

    Use it directly or in `DataLoader(stream, batch_size=None, num_workers=W)`: the batches and their order are the
    same for any W. `frames` (n,) bool restricts it to a subset; frames that the store calls invalid are skipped.
    Without `labels`, those of the store are not read and `Batch.label` is None. `notes` says what was asked for and
    could not be had: a batch of more groups than there are, neighbours that do not exist.
    """

    def __init__(
        self, path: Path | str, config: StreamConfig, *, frames: NDArray[np.bool_] | None = None, labels: bool = True
    ) -> None:
        """Open the store at `path`; reads positions, no frame.

        Raises
        ------
        PlanError, ConfigError, NotFoundError, SourceError, IntegrityError
            The order cannot be, the mask has another length, or the store cannot be opened.
        """
        super().__init__()
        self.config = config
        self.record: StoreRecord = open_record(Path(path).absolute())
        self._array = self.record.arrays["diffraction"]
        self._mask, self._labels = frames, labels
        self._cursor = (0, 0)
        self.chunks_decoded = 0
        n = self._array.layout.shape[0]
        if frames is not None and frames.shape != (n,):
            raise ConfigError(f"the mask has {frames.shape} entries, the scan {n} frames", code="stream.mask")
        y, x = (read_all(self.record, name) for name in ("position_y", "position_x"))
        self.positions: NDArray[np.float64] = np.stack([y, x], axis=1)
        eligible = np.ones(n, bool) if frames is None else frames.copy()
        if "frame_valid" in self.record.arrays:
            eligible &= read_all(self.record, "frame_valid")
        self.n_invalid = int(n - eligible.sum()) if frames is None else int((frames & ~eligible).sum())
        layout = self._array.layout
        # What an epoch shuffles as one: a chunk, or the window of chunks that the groups stay within.
        self._within = config.neighbors_within is not None and config.gridsize > 1
        most = NEIGHBOUR_CHUNKS if self._within else 1
        self._unit_of_chunk = contiguous_windows(layout.n_chunks, most=most)
        self.members, noted = self._groups(np.flatnonzero(eligible))
        seeds = self.members[:, 0]
        self._layout = Layout(
            chunk_of=self._unit_of_chunk[seeds // layout.chunk[0]],
            n_chunks=int(self._unit_of_chunk[-1]) + 1,
            positions=self.positions if np.array_equal(seeds, np.arange(n)) else self.positions[seeds],
            eligible=np.ones(seeds.size, bool),
        )
        self.order: Order = resolve_order(
            batches=config.batches, batch_size=config.batch_size, n_frames=seeds.size,
            cluster_size=config.cluster_size,
        )  # fmt: skip
        if self.order.batch_size < config.batch_size:
            noted = (
                *noted,
                f"batches of {config.batch_size} asked for, there are {seeds.size} groups: all in one batch",
            )
        self.notes = noted

    def _groups(self, eligible: NDArray[np.int64]) -> tuple[NDArray[np.int64], tuple[str, ...]]:
        """Members of each group as frames of the store, (group, C), sorted by their seed; and what was capped."""
        if eligible.size == 0:
            raise PlanError("no frame is left to stream", code="plan.frames")
        config = self.config
        if config.n_subsample is not None:
            eligible = _subsample(eligible, config.n_subsample, seed=config.seed)
        grouping = group_frames(
            self.positions[eligible], gridsize=config.gridsize, seed=config.seed, neighbors=config.neighbors,
            n_groups=config.n_groups or eligible.size, allow_oversampling=config.allow_oversampling,
            window_of=self._unit_of_chunk[eligible // self._array.layout.chunk[0]] if self._within else None,
        )  # fmt: skip
        members = eligible[grouping.members]
        return np.asarray(members[np.argsort(members[:, 0], kind="stable")]), grouping.notes

    def chunk_refs(self) -> list[ChunkRef]:
        """Where each chunk of the frames is and what was promised of it."""
        return [chunk_ref(self.record, "diffraction", i) for i in range(self._array.layout.n_chunks)]

    def plan(self, epoch: int) -> EpochPlan:
        """The plan of an epoch, over groups."""
        if not self._within:
            return plan_epoch(self._layout, self.order, seed=self.config.seed, epoch=epoch)
        in_units = replace(self.order, window_chunks=WINDOW_CHUNKS // NEIGHBOUR_CHUNKS)
        plan = plan_epoch(self._layout, in_units, seed=self.config.seed, epoch=epoch)
        return replace(plan, windows=tuple(replace(w, chunks=self._chunks_of(w.chunks)) for w in plan.windows))

    def _chunks_of(self, units: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(np.flatnonzero(np.isin(self._unit_of_chunk, units)).tolist())

    def identity(self) -> Mapping[str, object]:
        """Everything that decides the order, as JSON values."""
        config = self.config
        fewer = {} if config.n_subsample is None else {"n_subsample": config.n_subsample}
        within = {"neighbors_within": config.neighbors_within} if self._within else {}
        return {
            **fewer,
            **within,
            **identity_of(self.order, store_sha256=self.record.store_sha256, seed=config.seed, mask=self._mask),
            "gridsize": config.gridsize, "n_groups": len(self.members), "neighbors": config.neighbors,
            "allow_oversampling": config.allow_oversampling,
        }  # fmt: skip

    def order_sha256(self) -> str:
        """SHA-256 of the identity and of the frames of all epochs in order; from the plan alone, reads no frame."""
        plans = (self.plan(epoch) for epoch in range(self.config.epochs))
        return order_sha256(self.identity(), (_expanded(plan, self.members) for plan in plans))

    def state_dict(self, after: Batch | None = None) -> dict[str, Any]:
        """Where the stream stands: JSON values, a few hundred bytes.

        `after` is the last batch that was used; without it, the last one that this object itself delivered (which,
        in a DataLoader with workers, is none).
        """
        cursor = self._cursor if after is None else (after.epoch, after.step + 1)
        return {"identity": dict(self.identity()), "epoch": cursor[0], "step": cursor[1]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on behind the batch that `state` names; nothing is replayed.

        Raises
        ------
        IntegrityError
            The state belongs to another store or other options; names what differs.
        """
        mine = json.loads(json.dumps(dict(self.identity())))
        differs = [name for name in mine if state["identity"].get(name) != mine[name]]
        if differs:
            raise IntegrityError(f"the state is of another order: {', '.join(differs)} differ", code="stream.state")
        self._cursor = (int(state["epoch"]), int(state["step"]))

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        first, stride = (0, 1) if worker is None else (worker.id, worker.num_workers)
        with threads() as running:
            for batch in _one_ahead(self._batches(*self._cursor, first, stride, running), running.making):
                self._cursor = (batch.epoch, batch.step + 1)
                yield batch
        self._cursor = (self.config.epochs, 0)

    def _batches(self, epoch: int, start: int, first: int, stride: int, running: Threads) -> Iterator[Batch]:
        """From the step `start` of an epoch to the end of all epochs, every `stride`-th batch beginning at `first`."""
        # Two plans at most, of the epoch that is read, and of the next, whose windows are ahead; in store order, one.
        kept, once = lru_cache(maxsize=2)(self.plan), self.config.batches == "sequential"

        def plan_of(number: int) -> EpochPlan:
            return kept(0 if once else number)

        n_steps = plan_of(epoch).n_steps  # the same in each epoch
        steps = range(epoch * n_steps + start + first, self.config.epochs * n_steps, stride)
        residents = Residents(
            self.chunk_refs(), self._windows(plan_of, steps, n_steps), lanes=self.order.lanes, threads=running
        )
        probe = torch.from_numpy(read_all(self.record, "probe")) if "probe" in self.record.arrays else None
        valid = torch.from_numpy(read_all(self.record, "valid")) if "valid" in self.record.arrays else None
        labels = _refs_of(self.record, "label") if self._labels else None
        for number, here in by_epoch(steps, n_steps):
            plan = plan_of(number)
            for in_line in here:
                step = in_line - number * n_steps
                members = self.members[plan.batch(step)]
                made = _batch(
                    self._frames(residents, in_line, members), members, self.positions[members], probe,
                    _labels(labels, members, running.decoding), number, step,
                )  # fmt: skip
                yield made._replace(valid=valid)

    def _frames(self, residents: Residents, in_line: int, members: NDArray[np.int64]) -> NDArray[np.float32]:
        """The frames of a batch as amplitude; chunks that are not needed any more are let go of when it returns."""
        rows = self._array.layout.chunk[0]
        chunks = residents.at(in_line, also=np.unique(members // rows).tolist())
        self.chunks_decoded += residents.n_decoded
        residents.n_decoded = 0
        frames = _gathered(chunks, members, rows)
        return _amplitude(frames, str(self._array.attrs["quantity"]), formula_of(self.record))

    def _windows(self, plan_of: Callable[[int], EpochPlan], steps: range, n_steps: int) -> Iterator[Window]:
        """The windows behind these steps; one for all of them where the scan fits it, so that it is decoded once."""
        present = np.unique(self.members // self._array.layout.chunk[0])
        if present.size <= self.order.window_chunks:
            return iter([Window(chunks=tuple(present.tolist()), first_step=steps.start, last_step=steps.stop)])
        return windows_in_line(plan_of, steps, n_steps)


def _one_ahead(batches: Iterator[Batch], making: ThreadPoolExecutor) -> Iterator[Batch]:
    """The same batches, each made by another thread while the one before it is in use."""
    coming = making.submit(next, batches, None)
    while (batch := coming.result()) is not None:
        coming = making.submit(next, batches, None)
        yield batch


def _subsample(eligible: NDArray[np.int64], n: int, *, seed: int) -> NDArray[np.int64]:
    """`n` of the frames, in order; all of them where there are no more."""
    if n < 1:
        raise PlanError(f"a subsample of {n} frames; at least 1 is needed", code="plan.range", hint="--n-subsample")
    return np.asarray(np.sort(eligible[permutation(seed, Purpose.SUBSAMPLE, n=eligible.size)[:n]]))


def _expanded(plan: EpochPlan, members: NDArray[np.int64]) -> EpochPlan:
    """The same plan over frames instead of groups."""
    return EpochPlan(
        frames=members[plan.frames].reshape(-1), batch_size=plan.batch_size * members.shape[1], windows=plan.windows,
        n_unvisited=plan.n_unvisited,
    )  # fmt: skip


def _refs_of(record: StoreRecord, name: str) -> list[ChunkRef] | None:
    if name not in record.arrays:
        return None
    return [chunk_ref(record, name, i) for i in range(record.arrays[name].layout.n_chunks)]


def _gathered(chunks: Mapping[int, NDArray[Any]], members: NDArray[np.int64], chunk_frames: int) -> NDArray[Any]:
    """The frames of a batch out of decoded chunks, in the stored dtype: (B, C, N, N)."""
    flat = members.reshape(-1)
    number, row = flat // chunk_frames, flat % chunk_frames
    first = chunks[int(number[0])]
    out = np.empty((flat.size, *first.shape[1:]), first.dtype)
    for chunk in np.unique(number).tolist():
        here = np.flatnonzero(number == chunk)
        out[here] = chunks[chunk][row[here]]
    return out.reshape(*members.shape, *first.shape[1:])


def _amplitude(frames: NDArray[Any], quantity: str, formula: AmplitudeFormula | None) -> NDArray[np.float32]:
    if quantity == "counts":
        assert formula is not None, "the schema asks for a formula where counts are stored"
        return amplitude_from_counts(frames, formula)
    return np.sqrt(frames) if quantity == "intensity" else frames


def _labels(
    refs: list[ChunkRef] | None, members: NDArray[np.int64], pool: ThreadPoolExecutor
) -> NDArray[np.complex64] | None:
    if refs is None:
        return None
    rows = refs[0].chunk[0]
    needed = np.unique(members // rows).tolist()
    return _gathered(decode_chunks({c: refs[c] for c in needed}, pool), members, rows)


def _batch(
    amplitude: NDArray[np.float32], members: NDArray[np.int64], positions: NDArray[np.float64], probe: Tensor | None,
    label: NDArray[np.complex64] | None, epoch: int, step: int,
) -> Batch:  # fmt: skip
    offsets = positions.mean(axis=1)
    return Batch(
        diffraction=torch.from_numpy(amplitude),
        positions=torch.from_numpy(positions),
        offsets=torch.from_numpy(offsets),
        relative=torch.from_numpy(positions - offsets[:, np.newaxis]),
        probe=probe,
        indices=torch.from_numpy(members),
        label=None if label is None else torch.from_numpy(label),
        epoch=epoch,
        step=step,
    )
