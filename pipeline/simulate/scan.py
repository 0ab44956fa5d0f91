"""A recipe carried out: a scan whose frames are computed block by block when they are asked for."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError, SourceError
from pipeline.scan.chunks import read_all
from pipeline.scan.declaration import Declaration
from pipeline.scan.ingest import canonical_values, plan_ingest
from pipeline.scan.locate import locate
from pipeline.scan.npz import sha256_file
from pipeline.scan.record import open_record
from pipeline.simulate.forward import dose_scale, expected_intensity, extract_patches, poisson_counts
from pipeline.simulate.objects import make_object
from pipeline.simulate.positions import raster_positions, spiral_positions, uniform_positions
from pipeline.simulate.probes import disk_probe, hermite_modes, zone_plate_probe
from pipeline.simulate.recipe import Recipe

BLOCK_FRAMES: Final = 64
_MODE_SHARES: Final = (0.8, 0.15, 0.05)


@dataclass(frozen=True, kw_only=True, slots=True)
class Geometry:
    """Probe (mode, N, N) complex64, positions (n, 2) float64 (y, x), object sides, and where they were taken from."""

    probe: NDArray[np.complex64]
    positions: NDArray[np.float64]
    object_shape: tuple[int, int]
    taken_from: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Simulation:
    """A scan ready to be computed; `probe` is calibrated so that frames hold `photons_per_frame` on average."""

    recipe: Recipe
    seed: int
    photons_per_frame: float
    object: NDArray[np.complex64]
    geometry: Geometry
    dtype: np.dtype[Any]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(frame, y, x)."""
        side = self.geometry.probe.shape[1]
        return len(self.geometry.positions), side, side

    def counts(self, start: int, stop: int) -> NDArray[Any]:
        """Photon counts of the frames start ... stop - 1: (k, y, x), the same however frames are cut into blocks."""
        blocks = []
        for first, expected in self._expected(start, stop):
            counts = poisson_counts(expected, first, self.recipe.stream_seed(self.seed))
            assert counts.max(initial=0) <= np.iinfo(self.dtype).max, "the peak was looked at before"
            blocks.append(counts.astype(self.dtype, copy=False))
        return np.concatenate(blocks)

    def _expected(self, start: int, stop: int) -> Iterator[tuple[int, NDArray[np.float64]]]:
        return _expected_blocks(self.object, self.geometry, start, stop)


def _expected_blocks(
    obj: NDArray[np.complex64], geometry: Geometry, start: int, stop: int
) -> Iterator[tuple[int, NDArray[np.float64]]]:
    for first in range(start, stop, BLOCK_FRAMES):
        positions = geometry.positions[first : min(first + BLOCK_FRAMES, stop)]
        patches = extract_patches(obj.astype(np.complex128), positions, geometry.probe.shape[1])
        yield first, expected_intensity(patches, geometry.probe.astype(np.complex128))


def plan_simulation(
    recipe: Recipe, *, seed: int, photons_per_frame: float | None = None, like: Path | None = None
) -> Simulation:
    """Object, probe and positions of a recipe, the probe calibrated to the dose.

    Parameters
    ----------
    photons_per_frame
        Mean over the frames; the recipe's where None.
    like
        A store or a legacy NPZ to take probe and positions from.

    Raises
    ------
    ConfigError
        The dose is not positive, or the peak exceeds 32 bits.
    SourceError
        `like` has no probe, frames that are not square, or negative positions.
    """
    photons = photons_per_frame if photons_per_frame is not None else recipe.photons_per_frame
    stream = recipe.stream_seed(seed)
    geometry = _geometry_of(like) if like is not None else _geometry(recipe, stream)
    side = max(geometry.object_shape)
    obj = np.ascontiguousarray(
        make_object(recipe.amplitude, recipe.phase, side, stream)[
            : geometry.object_shape[0], : geometry.object_shape[1]
        ]
    )
    totals, peak = 0.0, 0.0
    n_frames = len(geometry.positions)
    for _, expected in _expected_blocks(obj, geometry, 0, n_frames):
        totals += float(expected.sum())
        peak = max(peak, float(expected.max()))
    scale = dose_scale(totals / n_frames, photons)
    calibrated = Geometry(
        probe=(geometry.probe * scale).astype(np.complex64),
        positions=geometry.positions,
        object_shape=geometry.object_shape,
        taken_from=geometry.taken_from,
    )
    return Simulation(
        recipe=recipe,
        seed=seed,
        photons_per_frame=photons,
        object=obj,
        geometry=calibrated,
        dtype=_count_dtype(peak * scale**2),
    )


def _count_dtype(peak: float) -> np.dtype[Any]:
    """uint16 where no draw around `peak` photons can exceed it (20 standard deviations away), else uint32."""
    largest = peak + 20 * math.sqrt(peak) + 100
    if largest > np.iinfo(np.uint32).max:
        raise ConfigError(
            f"the brightest pixel expects {peak:.3g} photons, more than 32 bits hold",
            code="simulate.counts_overflow",
            hint="lower --photons-per-frame",
        )
    return np.dtype(np.uint16 if largest <= np.iinfo(np.uint16).max else np.uint32)


def _geometry(recipe: Recipe, stream: int) -> Geometry:
    probe = zone_plate_probe(recipe.frame_side) if recipe.probe == "zone-plate" else disk_probe(recipe.frame_side)
    if recipe.probe_modes > 1:
        shares = _MODE_SHARES[: recipe.probe_modes]
        probe = hermite_modes(probe, recipe.probe_modes, [share / sum(shares) for share in shares])
    n, side, frame = recipe.n_frames, recipe.object_side, recipe.frame_side
    positions = {
        "uniform": lambda: uniform_positions(n, side, frame, stream),
        "raster": lambda: raster_positions(n, side, frame, stream),
        "spiral": lambda: spiral_positions(n, side, frame),
    }[recipe.positions]()
    return Geometry(probe=probe, positions=positions, object_shape=(side, side))


def _geometry_of(source: Path) -> Geometry:
    """Probe and positions of another scan; the object as large as its object, or as its positions ask for."""
    there = locate(source)
    path = there.path
    if there.kind == "store":
        record = open_record(path)
        values = {name: read_all(record, name) for name in record.variables if name not in ("diffraction", "label")}
        taken_from = f"store {record.store_sha256}"
    else:
        values = canonical_values(plan_ingest(path, Declaration()))
        taken_from = f"npz {sha256_file(path)}"
    if "probe" not in values:
        raise SourceError(f"{path}: has no probe to take", code="simulate.no_probe")
    if values["probe"].shape[1] != values["probe"].shape[2]:
        raise SourceError(
            f"{path}: frames of {values['probe'].shape[1:]}; only square ones are simulated", code="simulate.not_square"
        )
    positions = np.stack([values["position_y"], values["position_x"]], axis=1)
    if positions.min() < 0:
        raise SourceError(f"{path}: has positions below 0, which lie outside any object", code="simulate.positions")
    if "object" in values:
        shape = values["object"].shape
    else:
        shape = tuple(int(n) for n in np.ceil(positions.max(axis=0)) + values["probe"].shape[1] // 2 + 1)
    return Geometry(
        probe=values["probe"], positions=positions, object_shape=(shape[0], shape[1]), taken_from=taken_from
    )
