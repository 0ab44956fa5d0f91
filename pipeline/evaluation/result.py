"""What a reconstruction leaves for programs: `reconstruction.zarr`, the same bytes for the same inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipeline.scan.audit_run import RESULT_NAME
from pipeline.scan.record import StoreRecord
from pipeline.scan.schema import RECONSTRUCTION_FORMAT
from pipeline.scan.staging import staged_folder
from pipeline.scan.store import StoreWriter, spec_of

NAME: Final = RESULT_NAME


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """An object and what it was found with, in the gauge of the source. Pairs are (y, x).

    object : (y, x) complex64. coverage : (y, x) float32, light on each pixel over the largest.
    origin_px : grid coordinate of element [0, 0].
    probe : (mode, N, N) complex64, the one used.
    frame_index : (frame,) int64, as in the store. positions, shift : (frame, 2) float64 pixels, as used and used minus
        stored. gain : (frame,) float64, light over the mean. frame_loss : (frame,) float64, NaN where not used.
    object_solver : (y, x) complex64, the solver's own object where `object` is a network's; else None.
    """

    object: NDArray[np.complex64]
    coverage: NDArray[np.float32]
    origin_px: tuple[int, int]
    probe: NDArray[np.complex64]
    frame_index: NDArray[np.int64]
    positions: NDArray[np.float64]
    shift: NDArray[np.float64]
    gain: NDArray[np.float64]
    frame_loss: NDArray[np.float64]
    object_solver: NDArray[np.complex64] | None = None


_GRID: Final = ("object_y", "object_x")


def _variables(result: Result) -> Mapping[str, tuple[tuple[str, ...], NDArray[Any], dict[str, str]]]:
    """Name -> dims, values, attributes."""
    pixel, frame = {"units": "pixel"}, ("frame",)
    beside = {} if result.object_solver is None else {"object_solver": result.object_solver}
    solver = {name: (_GRID, values, {"long_name": "what the solver alone found"}) for name, values in beside.items()}
    return {
        **solver,
        "object": (_GRID, result.object, {"long_name": "complex transmission of the sample", "role": "reconstruction"}),
        "coverage": (_GRID, result.coverage, {"long_name": "light on each pixel over the largest", "units": "1"}),
        "probe": (
            ("probe_mode", "probe_y", "probe_x"),
            result.probe,
            {"long_name": "complex illumination at the sample, as used"},
        ),
        "frame_index": (frame, result.frame_index, {"long_name": "index of the frame in the source"}),
        "position_y": (frame, result.positions[:, 0], {"long_name": "scan position used, down", **pixel}),
        "position_x": (frame, result.positions[:, 1], {"long_name": "scan position used, right", **pixel}),
        "position_shift": (
            ("frame", "axis"),
            result.shift,
            {"long_name": "position used minus stored, (y, x)", **pixel},
        ),
        "gain": (frame, result.gain, {"long_name": "light of the frame over the mean", "units": "1"}),
        "frame_loss": (
            frame,
            result.frame_loss,
            {"long_name": "mean loss per good pixel; NaN where the frame was not used", "units": "1"},
        ),
    }


def write_result(result: Result, target: Path, *, attrs: Mapping[str, Any]) -> StoreRecord:
    """Write a result as a store at `target`, whole and read back, or not at all; its record.

    `pipeline.verify` and plain `xarray.open_zarr` open it like any store.

    Raises
    ------
    TargetExistsError
        Something is at `target`.
    """
    with staged_folder(target) as stage:
        writer = StoreWriter(stage)
        for name, (dims, values, about) in _variables(result).items():
            values = np.ascontiguousarray(values)
            spec = spec_of(name, dims, values.shape, values.dtype, attrs=about)
            writer.add(spec, _blocks(values, spec.layout.chunk[0]))
        record = writer.finish(
            {"ptychozarr_format": RECONSTRUCTION_FORMAT, "origin_px": list(result.origin_px), **attrs},
        )
        writer.check(record)
    return record


def _blocks(values: NDArray[Any], rows: int) -> Iterator[NDArray[Any]]:
    for first in range(0, len(values), rows):
        yield values[first : first + rows]
