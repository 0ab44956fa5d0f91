"""An estimate in the gauge of the source, and how far its object is from one that the store holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.metrics import compare_objects, scored_box
from pipeline.evaluation.result import Result
from pipeline.learning.estimate import Estimate
from pipeline.physics.forward import CanvasGeometry
from pipeline.physics.passes import Scene
from pipeline.scan.chunks import read_all


def result_of(scene: Scene, found: Estimate) -> Result:
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
        frame_loss=found.fit.frame_loss,
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
