"""Small simulated scans as passes of frames, for the tests of `pipeline.physics`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.physics.forward import CanvasGeometry, Frames, Passes
from pipeline.simulate.forward import dose_scale, expected_intensity, extract_patches, poisson_counts
from pipeline.simulate.objects import make_object
from pipeline.simulate.positions import uniform_positions
from pipeline.simulate.probes import hermite_modes, zone_plate_probe

BATCH = 50


@dataclass(frozen=True, kw_only=True)
class Scan:
    """A true object, what saw it, and the frames: intensity (frame, N, N) float64, positions (frame, 2) (y, x)."""

    truth: NDArray[np.complex64]
    probe: NDArray[np.complex64]
    positions: NDArray[np.float64]
    intensity: NDArray[np.float64]

    @property
    def geometry(self) -> CanvasGeometry:
        """The object's own grid."""
        return CanvasGeometry(origin=(0, 0), shape=(self.truth.shape[0], self.truth.shape[1]))


def make_scan(
    *,
    noise: bool,
    n_frames: int = 160,
    n: int = 32,
    side: int = 80,
    modes: int = 1,
    photons: float = 3e4,
    texture: str = "lines",
) -> Scan:
    """An object of independent amplitude and phase on a random scan, the probe calibrated to the dose."""
    truth = make_object(texture, texture, side, 3)
    probe = zone_plate_probe(n)
    if modes > 1:
        probe = hermite_modes(probe, modes, [0.8, *[0.2 / (modes - 1)] * (modes - 1)])
    positions = uniform_positions(n_frames, side, n, 5)
    seen = extract_patches(truth.astype(np.complex128), positions, n)
    total = expected_intensity(seen, probe).sum() / n_frames
    probe = (probe * dose_scale(float(total), photons)).astype(np.complex64)
    expected = expected_intensity(seen, probe.astype(np.complex128))
    intensity = poisson_counts(expected, 0, 7).astype(np.float64) if noise else expected
    return Scan(truth=truth, probe=probe, positions=positions, intensity=intensity)


def passes_over(intensity: NDArray[np.floating], positions: NDArray[np.float64], *, batch: int = BATCH) -> Passes:
    """Frames in RAM, in order."""
    frames, where = torch.from_numpy(intensity.astype(np.float32)), torch.from_numpy(positions)

    def passes() -> Iterator[Frames]:
        for first in range(0, len(frames), batch):
            rows = slice(first, min(first + batch, len(frames)))
            yield Frames(frames[rows], where[rows], torch.arange(rows.start, rows.stop))

    return passes


def passes_of(scan: Scan, *, batch: int = BATCH) -> Passes:
    """The scan's frames in order."""
    return passes_over(scan.intensity, scan.positions, batch=batch)


def nrmse(found: NDArray[np.complexfloating], truth: NDArray[np.complexfloating], *, margin: int = 20) -> float:
    """Complex NRMSE inside a margin after one complex least-squares factor."""
    inside = slice(margin, -margin)
    a, b = found[inside, inside].ravel(), truth[inside, inside].ravel()
    return float(np.linalg.norm(np.vdot(a, b) / np.vdot(a, a) * a - b) / np.linalg.norm(b))
