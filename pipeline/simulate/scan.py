"""A recipe carried out: a scan whose frames are computed block by block when they are asked for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
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
    """A scan ready to be computed; `probe` is calibrated so that frames hold `photons_per_frame` on average.

    about : what was asked for, as provenance has it. noise_seed : of the photons. frames : (n,) int64, which of the
    geometry's positions are frames of this scan; the photons of a frame are its own, whichever others are taken.
    """

    about: Mapping[str, Any]
    noise_seed: int
    photons_per_frame: float
    object: NDArray[np.complex64]
    geometry: Geometry
    frames: NDArray[np.int64]
    dtype: np.dtype[Any]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(frame, y, x)."""
        side = self.geometry.probe.shape[1]
        return len(self.frames), side, side

    @property
    def positions(self) -> NDArray[np.float64]:
        """(n, 2) float64 pairs (y, x) of the frames, object pixels."""
        return self.geometry.positions[self.frames]

    def counts(self, start: int, stop: int) -> NDArray[Any]:
        """Photon counts of the frames start ... stop - 1: (k, y, x), the same however frames are cut into blocks."""
        counts = np.empty((stop - start, *self.shape[1:]), self.dtype)
        for first in range(start, stop, BLOCK_FRAMES):
            taken = self.frames[first : min(first + BLOCK_FRAMES, stop)]
            for row, (frame, expected) in enumerate(
                zip(taken, _expected(self.object, self.geometry, taken), strict=True), start=first - start
            ):
                drawn = poisson_counts(expected[np.newaxis], int(frame), self.noise_seed)[0]
                assert drawn.max() <= np.iinfo(self.dtype).max, "the peak was looked at before"
                counts[row] = drawn
        return counts

    def labels(self, start: int, stop: int) -> NDArray[np.complex64]:
        """What the frames start ... stop - 1 see of the object: (k, y, x) complex64."""
        positions = self.positions[start:stop]
        return extract_patches(self.object.astype(np.complex128), positions, self.shape[1]).astype(np.complex64)


def _expected(obj: NDArray[np.complex64], geometry: Geometry, frames: NDArray[np.int64]) -> NDArray[np.float64]:
    patches = extract_patches(obj.astype(np.complex128), geometry.positions[frames], geometry.probe.shape[1])
    return expected_intensity(patches, geometry.probe.astype(np.complex128))


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
    about = {
        "recipe": recipe.name, "seed": seed, "photons_per_frame": photons, "amplitude": recipe.amplitude,
        "phase": recipe.phase, "like": geometry.taken_from,
    }  # fmt: skip
    return calibrated(obj, geometry, photons_per_frame=photons, noise_seed=stream, about=about)


def plan_resimulation(base: Path, said: Declaration, *, seed: int, photons_per_frame: float) -> Simulation:
    """The scan `base` again, frame by frame, with the photons of another dose.

    Parameters
    ----------
    base
        A store or a legacy NPZ with object, probe and positions; its frames are not looked at.
    said
        What is declared of an NPZ. That its object is the true one is taken for granted.

    Raises
    ------
    ConfigError
        The dose is not positive, or the peak exceeds 32 bits.
    SourceError
        There is no object or no probe, one is zero or not finite, frames are not square or see nothing of the object.
    """
    obj, geometry = _base(base, said)
    for name, values in (("object", obj), ("probe", geometry.probe)):
        if not np.isfinite(values).all() or not values.any():
            found = "is zero everywhere" if np.isfinite(values).all() else "holds values that are not finite"
            raise SourceError(f"{base}: its {name} {found}", code="simulate.no_light")
    side = geometry.probe.shape[1]
    corner = geometry.positions - side // 2
    beside = ((corner + side <= 0) | (corner >= geometry.object_shape)).any(axis=1)
    if beside.any():
        first = int(np.argmax(beside))
        raise SourceError(
            f"{base}: frame {first} at {geometry.positions[first].tolist()} (y, x) sees nothing of its object of "
            f"{obj.shape[0]} x {obj.shape[1]} pixels",
            code="simulate.positions",
            hint="--position-origin or --positions, where the coordinates mean something else",
        )
    about = {"base": geometry.taken_from, "seed": seed, "photons_per_frame": photons_per_frame}
    return calibrated(obj, geometry, photons_per_frame=photons_per_frame, noise_seed=seed, about=about)


def calibrated(
    obj: NDArray[np.complex64], geometry: Geometry, *, photons_per_frame: float, noise_seed: int,
    about: Mapping[str, Any],
) -> Simulation:  # fmt: skip
    """The scan of an object, its probe multiplied so that frames hold so many photons on average.

    Raises
    ------
    ConfigError
        The dose is not positive, or the peak exceeds 32 bits.
    """
    totals, peak = 0.0, 0.0
    frames = np.arange(len(geometry.positions), dtype=np.int64)
    for first in range(0, len(frames), BLOCK_FRAMES):
        expected = _expected(obj, geometry, frames[first : first + BLOCK_FRAMES])
        totals += float(expected.sum())
        peak = max(peak, float(expected.max()))
    scale = dose_scale(totals / len(frames), photons_per_frame)
    return Simulation(
        about=about,
        noise_seed=noise_seed,
        photons_per_frame=photons_per_frame,
        object=obj,
        geometry=replace(geometry, probe=(geometry.probe * scale).astype(np.complex64)),
        frames=frames,
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
    values, taken_from = _values_of(source, Declaration())
    probe, positions = _probe_and_positions(source, values)
    if positions.min() < 0:
        raise SourceError(f"{source}: has positions below 0, which lie outside any object", code="simulate.positions")
    if "object" in values:
        shape = values["object"].shape
    else:
        shape = tuple(int(n) for n in np.ceil(positions.max(axis=0)) + probe.shape[1] // 2 + 1)
    return Geometry(probe=probe, positions=positions, object_shape=(shape[0], shape[1]), taken_from=taken_from)


def _base(source: Path, said: Declaration) -> tuple[NDArray[np.complex64], Geometry]:
    """Object, probe and positions of a scan."""
    values, taken_from = _values_of(source, said)
    probe, positions = _probe_and_positions(source, values)
    if "object" not in values:
        raise SourceError(f"{source}: has no object to simulate from", code="simulate.no_object")
    obj = values["object"]
    shape = (obj.shape[0], obj.shape[1])
    return obj, Geometry(probe=probe, positions=positions, object_shape=shape, taken_from=taken_from)


def _values_of(source: Path, said: Declaration) -> tuple[Mapping[str, NDArray[Any]], str]:
    """The variables of a scan but its frames and labels, and what to call it in provenance."""
    there = locate(source)
    if there.kind == "store":
        record = open_record(there.path)
        names = [name for name in record.variables if name not in ("diffraction", "label")]
        return {name: read_all(record, name) for name in names}, f"store {record.store_sha256}"
    return canonical_values(plan_ingest(there.path, said)), f"npz {sha256_file(there.path)}"


def _probe_and_positions(
    source: Path, values: Mapping[str, NDArray[Any]]
) -> tuple[NDArray[np.complex64], NDArray[np.float64]]:
    if "probe" not in values:
        raise SourceError(f"{source}: has no probe to take", code="simulate.no_probe")
    if values["probe"].shape[1] != values["probe"].shape[2]:
        raise SourceError(
            f"{source}: frames of {values['probe'].shape[1:]}; only square ones are simulated",
            code="simulate.not_square",
        )
    return values["probe"], np.stack([values["position_y"], values["position_x"]], axis=1)
