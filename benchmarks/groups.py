"""What groups of gridsize 2 cost to read: members from the whole scan, and from a window of chunks.

    python -m benchmarks.groups [--frames 20000 100000] [--timed 20000]

Frames of 64 x 64 (256 a chunk) on a jittered raster and on a Fermat spiral. Scans of up to `timed` frames are written
and gone through once, alternatives in turn: decodes per chunk, CPU-seconds per GB. Of all: how much further from their
seed members lie than free ones do.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from benchmarks.solver import table
from pipeline.config import NeighborsWithin, StreamConfig
from pipeline.sampling.grouping import contiguous_windows, group_frames
from pipeline.scan.quantity import DIVIDE_F64
from pipeline.scan.schema import root_attributes
from pipeline.scan.store import write_scan
from pipeline.stream.measure import iterate
from pipeline.stream.scan_stream import NEIGHBOUR_CHUNKS, ScanStream

_SIDE: Final = 64
_STEP_PX: Final = 8.0
_CHUNK_FRAMES: Final = 256


def raster(n: int) -> NDArray[np.float64]:
    """The largest square raster of up to n frames, line after line, 1 px of jitter. (frame, 2) (y, x)."""
    lines = int(np.sqrt(n))
    where = np.stack(np.divmod(np.arange(lines**2), lines), axis=1) * _STEP_PX
    return np.asarray(where + np.random.default_rng(0).normal(0, 1, where.shape))


def spiral(n: int) -> NDArray[np.float64]:
    """A Fermat spiral from its middle outwards. (frame, 2) (y, x)."""
    turn = np.arange(n) * np.pi * (3 - np.sqrt(5))
    radius = np.sqrt(np.arange(n)) * _STEP_PX / 2
    return np.stack([radius * np.sin(turn), radius * np.cos(turn)], axis=1)


PLACES: Final[tuple[tuple[str, NeighborsWithin | None], ...]] = (("the scan", None), ("a window", "window"))
"""Where members may come from."""

PATHS: Final[Mapping[str, Callable[[int], NDArray[np.float64]]]] = {"raster": raster, "spiral": spiral}


def further(positions: NDArray[np.float64]) -> float:
    """Mean distance of members within a window from their seed, over that of free ones, less 1."""
    chunk = np.arange(len(positions)) // _CHUNK_FRAMES
    window = contiguous_windows(int(chunk[-1]) + 1, most=NEIGHBOUR_CHUNKS)[chunk]
    free, within = (
        group_frames(positions, gridsize=2, n_groups=len(positions), seed=0, window_of=one).members
        for one in (None, window)
    )
    distances = [np.linalg.norm(positions[m[:, 1:]] - positions[m[:, :1]], axis=-1).mean() for m in (free, within)]
    return float(distances[1] / distances[0] - 1)


def write(positions: NDArray[np.float64], path: Path) -> Path:
    """A store of Poisson counts with these positions."""
    n, unit = len(positions), {"units": "pixel"}
    counts = np.random.default_rng(0).poisson(3, (_CHUNK_FRAMES, _SIDE, _SIDE)).astype(np.uint16)
    frames = np.resize(counts, (n, _SIDE, _SIDE))
    scan = xr.Dataset(
        {
            "diffraction": (
                ("frame", "detector_y", "detector_x"), frames, {"quantity": "counts", "units": "photon"},
            ),
            "position_y": (("frame",), positions[:, 0].copy(), unit),
            "position_x": (("frame",), positions[:, 1].copy(), unit),
            "frame_index": (("frame",), np.arange(n, dtype=np.int64)),
        },
        attrs=root_attributes(photons_scale=1.0, amplitude_formula=DIVIDE_F64),
    )  # fmt: skip
    write_scan(scan, path)
    return path


def costs(store: Path, within: NeighborsWithin | None) -> list[str]:
    """Decodes per chunk, CPU-seconds per GB and frames a second of one epoch."""
    stream = ScanStream(store, StreamConfig(batch_size=64, gridsize=2, neighbors_within=within))
    told = iterate(stream)
    assert told.chunks_decoded is not None, "known without workers"
    per_chunk = told.chunks_decoded / stream.record.arrays["diffraction"].layout.n_chunks
    return [f"{per_chunk:.3f}", f"{told.cpu_s_per_gb(4 * _SIDE**2):.2f}", f"{told.frames_per_s:,.0f}"]


def rows(frames: Sequence[int], *, timed: int, folder: Path) -> list[list[str]]:
    """A row for each path, length and place that members come from."""
    found = []
    for name, path in PATHS.items():
        for n in frames:
            positions = path(n)
            store = write(positions, folder / f"{name}-{n}.zarr") if n <= timed else None
            for title, within in PLACES:
                cost = ["-"] * 3 if store is None else costs(store, within)
                more = "" if within is None else f"{100 * further(positions):+.1f} %"
                found.append([name, f"{len(positions):,}", title, *cost, more])
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, nargs="+", default=[20_000, 100_000])
    parser.add_argument("--timed", type=int, default=20_000)
    options = parser.parse_args(argv)
    head = ["scan", "frames", "members from", "decodes a chunk", "CPU-s per GB", "frames/s", "distance"]
    with tempfile.TemporaryDirectory() as name:
        print(table(head, rows(options.frames, timed=options.timed, folder=Path(name))))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
