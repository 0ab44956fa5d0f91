"""A store as a solver meets it: its probe and mask as tensors, its frames as passes of photons.

Everything that a store may lack for a reconstruction is refused here, before any work.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.config import LossName, StreamConfig
from pipeline.errors import SchemaError
from pipeline.physics.forward import Frames
from pipeline.physics.gauge import photons, scale_to_dose
from pipeline.scan.chunks import read_all
from pipeline.scan.record import StoreRecord, open_record
from pipeline.stream.scan_stream import Batch, ScanStream
from pipeline.stream.waiting import TimedBatches

UNKNOWN_DOSE: Final = 1e5
"""Photons per frame that frames of unknown scale are brought to, for the amplitude loss."""

_ENDLESS: Final = 10**9
_MOST_BARE: Final = 16
"""How often the area of all frames may go into the box around them; a diagonal line of ordinary overlap needs 10."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """What a store gives a solver.

    probe : (mode, N, N) complex64, source's scale. valid : (N, N) bool, zero frequency at [N//2, N//2], or None.
    eligible : (frame,) bool, those not called invalid.
    photons_scale : amplitude times it is sqrt(photon); with the loss "amplitude" a scale like any other.
    declared : whether the user said how many photons a frame holds.
    """

    record: StoreRecord
    probe: Tensor
    valid: Tensor | None
    eligible: NDArray[np.bool_]
    photons_scale: float
    loss: LossName
    declared: bool

    @property
    def n_frames(self) -> int:
        """Frames in the store, invalid ones included."""
        return len(self.eligible)

    @property
    def positions(self) -> NDArray[np.float64]:
        """(frame, 2) float64 (y, x), object pixels; read from the store each time, so that nothing is kept of them."""
        return positions_of(self.record)

    @property
    def side(self) -> int:
        """N."""
        return int(self.probe.shape[-1])


def positions_of(record: StoreRecord) -> NDArray[np.float64]:
    """The stored positions, (frame, 2) float64 (y, x), object pixels."""
    return np.stack([read_all(record, "position_y"), read_all(record, "position_x")], axis=1)


def check_scene(record: StoreRecord, *, probe: Tensor | None = None) -> NDArray[np.float64]:
    """The positions (frame, 2) (y, x) of a store that a solver can work on. Reads no frame.

    Parameters
    ----------
    probe : what is used where the store has none.

    Raises
    ------
    SchemaError
        It is no scan, has no probe or no light, frames are not square, no frame or pixel counts, or positions are not
        finite, outside the stored object or too far from each other.
    """
    arrays, path = record.arrays, record.path
    if "diffraction" not in arrays:
        raise SchemaError(f"{path}: holds no diffraction frames, so it is no scan", code="physics.no_scan")
    if "probe" not in arrays and probe is None:
        raise SchemaError(
            f"{path}: no probe, and frames alone do not tell one", code="physics.no_probe",
            hint="convert from a file with probeGuess",
        )  # fmt: skip
    height, width = arrays["diffraction"].layout.shape[1:]
    if height != width:
        raise SchemaError(f"{path}: frames of {height} x {width}; a solver needs square ones", code="physics.frames")
    used = _probe_of(record, probe)
    if not np.isfinite(used).all() or not used.any():
        what = "holds values that are not finite" if used.any() else "is zero everywhere"
        raise SchemaError(f"{path}: the probe {what}", code="physics.no_light")
    if record.attrs["photons_per_frame"]["measured"] == 0:
        raise SchemaError(f"{path}: the frames hold no photon", code="physics.no_light")
    eligible = eligible_frames(record)
    for name, some in (("frame_valid", eligible.any()), ("valid", _any_good_pixel(record))):
        if not some:
            raise SchemaError(f"{path}: {name} is false everywhere, so nothing counts", code="physics.no_frames")
    positions = positions_of(record)
    refuse_positions(record, positions, eligible)
    _refuse_wide(record, positions[eligible])
    return positions


def _probe_of(record: StoreRecord, stand_in: Tensor | None) -> NDArray[np.complex64]:
    if "probe" in record.arrays:
        return read_all(record, "probe")
    assert stand_in is not None, "refused by check_scene"
    found: NDArray[np.complex64] = stand_in.numpy()
    return found


def refuse_darkness(record: StoreRecord) -> None:
    """Refuse amplitude frames without light. Reads frames until there is some, mostly the first ones.

    Raises
    ------
    SchemaError
    """
    if record.attrs["photons_per_frame"]["measured"] is not None:
        return
    stream = ScanStream(record.path, StreamConfig(batches="sequential"), labels=False)
    if not any(bool(batch.diffraction.any()) for batch in stream):
        raise SchemaError(f"{record.path}: the frames are zero everywhere", code="physics.no_light")


def _any_good_pixel(record: StoreRecord) -> bool:
    return "valid" not in record.arrays or bool(read_all(record, "valid").any())


def _refuse_wide(record: StoreRecord, positions: NDArray[np.float64]) -> None:
    """Refuse positions (frame, 2) so far from each other that their box could not be covered by their frames."""
    side = record.arrays["diffraction"].layout.shape[1]
    box = positions.max(0) - positions.min(0) + side
    if box.prod() > _MOST_BARE * len(positions) * side**2:
        raise SchemaError(
            f"{record.path}: the positions span {box[0]:.6g} x {box[1]:.6g} object pixels, more than {_MOST_BARE} "
            f"times what {len(positions)} frames of {side} x {side} cover: frames that do not overlap tell no object",
            code="physics.positions",
            hint="convert again with the right --positions and --pixel-size-m",
        )


def eligible_frames(record: StoreRecord) -> NDArray[np.bool_]:
    """The frames that the store does not call invalid. (frame,) bool."""
    if "frame_valid" in record.arrays:
        return read_all(record, "frame_valid")
    return np.ones(record.arrays["diffraction"].layout.shape[0], np.bool_)


def open_scene(path: Path, *, photons_per_frame: float | None = None, probe: Tensor | None = None) -> Scene:
    """The scene of the store at `path`. Reads probe, mask and positions; frames only where their scale is to be found.

    Parameters
    ----------
    photons_per_frame : the mean that frames are scaled to; None where the store's own scale holds. Where neither is
        known, the loss is "amplitude".
    probe : (mode, N, N) complex64, used where the store has none.

    Raises
    ------
    SchemaError
        See `check_scene`.
    """
    record = open_record(path.absolute())
    check_scene(record, probe=probe)
    valid = torch.from_numpy(read_all(record, "valid")) if "valid" in record.arrays else None
    scale = record.attrs["photons_scale"]
    found = None if scale is None else float(scale)
    if photons_per_frame is not None or found is None:
        energy = _mean_energy(path, valid)
        found = scale_to_dose(energy, photons_per_frame=photons_per_frame or UNKNOWN_DOSE)
    return Scene(
        record=record,
        probe=torch.from_numpy(_probe_of(record, probe)),
        valid=valid,
        eligible=eligible_frames(record),
        photons_scale=found,
        loss="poisson" if scale is not None or photons_per_frame is not None else "amplitude",
        declared=photons_per_frame is not None,
    )


def refuse_positions(record: StoreRecord, positions: NDArray[np.float64], eligible: NDArray[np.bool_]) -> None:
    """Refuse positions (frame, 2) of frames that count that are not finite, or outside the object of the same store.

    Raises
    ------
    SchemaError
        Names the first such frame.
    """
    _refuse(record, positions, eligible & ~np.isfinite(positions).all(1), "not finite")
    if "object" not in record.arrays:
        return
    shape = record.arrays["object"].layout.shape
    outside = ((positions < 0) | (positions > np.array(shape) - 1)).any(1)
    _refuse(record, positions, eligible & outside, f"outside the stored object of {shape[0]} x {shape[1]} pixels")


def _refuse(record: StoreRecord, positions: NDArray[np.float64], bad: NDArray[np.bool_], what: str) -> None:
    if not bad.any():
        return
    first = int(np.argmax(bad))
    y, x = positions[first].tolist()
    raise SchemaError(
        f"{record.path}: the position of frame {first} is ({y:.6g}, {x:.6g}), {what}; so are those of "
        f"{np.count_nonzero(bad)} of {len(positions)} frames",
        code="physics.positions",
        hint="convert again with the right --positions, --pixel-size-m and --position-origin",
    )


def _mean_energy(path: Path, valid: Tensor | None) -> float:
    total, n = 0.0, 0
    for batch in ScanStream(path, StreamConfig(batches="sequential"), labels=False):
        energy = batch.diffraction.double().square()
        total += float((energy if valid is None else energy[..., valid]).sum())
        n += len(batch.diffraction)
    return total / n


class ScanPasses:
    """Passes over a store in `sequential` order, read ahead also from one pass into the next; call it for a pass.

    The batches and their bits are the same for any `num_workers`. Use it as a context, so that readers end with it.
    """

    def __init__(self, scene: Scene, *, batch_pixels: int, n_modes: int, num_workers: int = 0) -> None:
        """Nothing is read before the first pass."""
        self.batch_size = max(batch_pixels // (n_modes * scene.side**2), 1)
        config = StreamConfig(batch_size=self.batch_size, batches="sequential", epochs=_ENDLESS)
        self._stream = ScanStream(scene.record.path, config, labels=False)
        self._n_batches = self._stream.plan(0).n_steps
        self._scale = scene.photons_scale
        self._workers = num_workers
        self._batches: TimedBatches | None = None
        self._waited_before_s = 0.0

    @property
    def waited_s(self) -> float:
        """Seconds for which frames were waited for; not for the first batch, which nothing can be read ahead of."""
        return self._waited_before_s + (0.0 if self._batches is None else self._batches.waited_s)

    def __call__(self) -> Iterator[Frames]:
        """All frames that are not invalid, once."""
        done = 0
        try:
            while done < self._n_batches:
                batch = self._next()
                done += 1
                yield Frames(
                    intensity=photons(batch.diffraction[:, 0], photons_scale=self._scale),
                    positions=batch.positions[:, 0],
                    index=batch.indices[:, 0],
                )
        finally:
            if done < self._n_batches:  # given up in the middle: the next pass begins at its beginning
                self.close()

    def _next(self) -> Batch:
        if self._batches is None:
            self._batches = TimedBatches(self._stream, num_workers=self._workers)
        return next(self._batches)

    def close(self) -> None:
        """End the readers; another pass would begin anew."""
        if self._batches is not None:
            self._waited_before_s = self.waited_s
            self._batches.close()
            self._batches = None
            self._stream.load_state_dict({**self._stream.state_dict(), "epoch": 0, "step": 0})

    def __enter__(self) -> ScanPasses:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
