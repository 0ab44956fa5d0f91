"""How well an estimate explains every frame, and how far its object is from one that the store holds. One pass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.evaluation.metrics import compare_objects, scored_box
from pipeline.evaluation.result import Result
from pipeline.learning.estimate import Estimate
from pipeline.physics.forward import (
    CanvasGeometry,
    Frames,
    Passes,
    fields_of,
    intensity_of,
    pad_canvas,
    to_corner,
    windows_of,
    with_gain,
)
from pipeline.physics.gauge import BLANK
from pipeline.physics.losses import loss_of
from pipeline.physics.noise import expected_r_factor_parts, r_factor_parts
from pipeline.physics.passes import Scene
from pipeline.physics.solver import chosen_frames
from pipeline.scan.chunks import read_all

_PIECE: Final = 32


@dataclass(frozen=True, kw_only=True, slots=True)
class Fit:
    """How well an object explains the frames it was made from.

    frame_loss : (frame,) float64, mean per good pixel; NaN where a frame was not used.
    r_factor, r_factor_floor : sum |sqrt I - sqrt l| / sum sqrt I, found and expected of photon noise alone (None where
        photons are unknown).
    """

    frame_loss: NDArray[np.float64]
    r_factor: float
    r_factor_floor: float | None


def fit_of(passes: Passes, found: Estimate, *, n_frames: int) -> Fit:
    """The fit of an estimate over all frames of the passes. Reads the scan once."""
    frame_loss = np.full(n_frames, np.nan)
    padded = pad_canvas(found.canvas, outside=BLANK)
    bad = found.optics.bad
    mask = None if bad is None else ~bad.numpy()
    sums = np.zeros(4)
    for batch in passes():
        for few in _few_at_a_time(batch):
            frames = few if found.gain is None else _adjusted(few, found)
            fields = with_gain(fields_of(padded, windows_of(frames.positions, found.optics), found.optics), frames.gain)
            light, measured = intensity_of(fields).double(), to_corner(frames.intensity).double()
            losses = loss_of(found.solver.loss, measured, light, background=found.background)
            frame_loss[frames.index.numpy()] = losses.flatten(1).mean(1) if bad is None else losses[:, ~bad].mean(1)
            if found.solver.loss == "poisson-background":
                light += found.background
            parts = r_factor_parts(measured.numpy(), light.numpy(), good=mask)
            sums += [part.sum() for part in (*parts, *expected_r_factor_parts(light.numpy(), good=mask))]
    floor = None if found.solver.loss == "amplitude" else float(sums[2] / sums[3])
    return Fit(frame_loss=frame_loss, r_factor=float(sums[0] / sums[1]), r_factor_floor=floor)


def _few_at_a_time(batch: Frames) -> Iterator[Frames]:
    """The frames of a batch in pieces whose float64 values stay small beside a solver's batch."""
    for first in range(0, len(batch.index), _PIECE):
        yield chosen_frames(batch, torch.arange(first, min(first + _PIECE, len(batch.index))))


def _adjusted(batch: Frames, found: Estimate) -> Frames:
    assert found.gain is not None
    positions = batch.positions if found.shift is None else batch.positions + found.shift[batch.index]
    return batch._replace(positions=positions, gain=found.gain[batch.index])


def result_of(scene: Scene, found: Estimate, fit: Fit) -> Result:
    """An estimate in the gauge of the source."""
    gauge, n = found.optics.gauge, scene.n_frames
    shift = np.zeros((n, 2)) if found.shift is None else found.shift.numpy()
    return Result(
        object=gauge.object_to_source(found.canvas).numpy(),
        coverage=(found.den / found.den.max()).numpy(),
        origin_px=found.optics.geometry.origin,
        probe=gauge.probe_to_source(found.optics.probe).numpy(),
        frame_index=read_all(scene.record, "frame_index"),
        positions=scene.positions + shift,
        shift=shift,
        gain=np.ones(n) if found.gain is None else found.gain.numpy(),
        frame_loss=fit.frame_loss,
    )


def reference_of(scene: Scene, geometry: CanvasGeometry) -> NDArray[np.complex64] | None:
    """The object that a store holds, on the grid of a canvas; NaN where it does not reach. None where it holds none."""
    if "object" not in scene.record.arrays:
        return None
    stored: NDArray[np.complex64] = read_all(scene.record, "object")
    on_grid = np.full(geometry.shape, np.nan + 0j, np.complex64)
    cuts = []
    for first, length, extent in zip(geometry.origin, geometry.shape, stored.shape, strict=True):
        start, stop = max(first, 0), min(first + length, extent)
        cuts.append((slice(start - first, max(stop, start) - first), slice(start, max(stop, start))))
    on_grid[cuts[0][0], cuts[1][0]] = stored[cuts[0][1], cuts[1][1]]
    return on_grid


def compare_with(
    reference: NDArray[np.complex64] | None, result: Result, *, role: str, used: NDArray[np.bool_]
) -> Mapping[str, Any] | None:
    """Metrics of an object beside those of a flat one, between the outermost positions; None without reference there.

    Parameters
    ----------
    reference : (y, x) complex64 on the result's grid, NaN outside. role : "truth" or "guess".
    used : (frame,) bool.
    """
    if reference is None:
        return None
    shape = (result.object.shape[0], result.object.shape[1])
    box = scored_box(result.positions[used], origin=result.origin_px, shape=shape)
    truth, found = reference[box], result.object[box]
    if truth.size == 0 or not np.isfinite(truth).all() or not np.any(truth):
        return None
    rows, columns = ([part.start + o, part.stop + o] for part, o in zip(box, result.origin_px, strict=True))
    return {
        "role": role,
        "box_px": [rows, columns],
        "object": asdict(compare_objects(found, truth)),
        "flat": asdict(compare_objects(np.ones_like(truth), truth)),
    }
