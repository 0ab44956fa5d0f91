"""Small stores that a solver can work on, and runs of it that are stopped on the way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from pipeline.scan.quantity import DIVIDE_F64
from pipeline.scan.schema import root_attributes
from pipeline.scan.store import write_scan
from tests.physics_scans import Scan


def store_of(
    scan: Scan, path: Path, *, probe: NDArray[np.complex64] | None = None,
    positions: NDArray[np.float64] | None = None, scale: float | None = 1.0, **variables: object,
) -> Path:  # fmt: skip
    """A scan's counts as a store; `probe` and `positions` may differ from those that made them.

    With `scale` None the store holds amplitudes of unknown scale. `variables` adds some, as (dims, values), or takes
    one out with None.
    """
    n = len(scan.positions)
    where = scan.positions if positions is None else positions
    unit = {"units": "pixel"}
    if scale is None:
        frames = np.sqrt(scan.intensity).astype(np.float32) * np.float32(0.37)
        about, known = {"quantity": "amplitude", "units": "1"}, {}
    else:
        frames, about = scan.intensity.astype(np.uint16), {"quantity": "counts", "units": "photon"}
        known = {"photons_scale": scale, "amplitude_formula": DIVIDE_F64}
    found = {
        "diffraction": (("frame", "detector_y", "detector_x"), frames, about),
        "position_y": (("frame",), where[:, 0].copy(), unit),
        "position_x": (("frame",), where[:, 1].copy(), unit),
        "frame_index": (("frame",), np.arange(n, dtype=np.int64)),
        "probe": (("probe_mode", "probe_y", "probe_x"), scan.probe if probe is None else probe),
        "object": (("object_y", "object_x"), scan.truth, {"role": "truth"}),
        **variables,
    }
    found = {name: value for name, value in found.items() if value is not None}
    write_scan(xr.Dataset(found, attrs=root_attributes(**known)), path)
    return path


def quiet(name: str, passes: int) -> Callable[[int], None]:
    """Progress that nobody looks at."""
    return lambda done: None


def stopped_after(passes: int) -> Callable[[str, int], Callable[[int], None]]:
    """Progress that behaves like Ctrl-C when so many passes were done in all phases together."""
    left = [passes]

    def tell(name: str, total: int) -> Callable[[int], None]:
        calls = [0]

        def advance(done: int) -> None:
            calls[0] += 1
            if calls[0] > 1:  # the first call tells what was done before
                left[0] -= done
            if left[0] < 0:
                raise KeyboardInterrupt

        return advance

    return tell
