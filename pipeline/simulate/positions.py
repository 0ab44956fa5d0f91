"""Where the probe goes: scan positions as float64 (n, 2) pairs (y, x) in object pixels.

A frame at p sees object rows p_y - N/2 ... p_y + N/2 - 1, likewise columns. Every position here lies in
[N/2, M - N/2] on both axes (M side of the object, N of the probe), so no frame sees beyond the object.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError
from pipeline.seeding import Purpose, rng_for


def uniform_positions(n: int, object_side: int, probe_side: int, seed: int) -> NDArray[np.float64]:
    """Independent positions, each equally likely everywhere. (n, 2) float64, object pixels."""
    low, high = _limits(object_side, probe_side)
    return rng_for(seed, Purpose.POSITIONS).uniform(low, high, (n, 2))


def raster_positions(
    n: int, object_side: int, probe_side: int, seed: int, *, jitter_px: float = 1.5
) -> NDArray[np.float64]:
    """The first `n` points of a square raster, row by row, each moved a little. (n, 2) float64, object pixels.

    The raster spans the whole allowed square with ceil(sqrt(n)) points a side. Each point moves by up to `jitter_px`
    on either axis, uniformly, and is clipped to the square: an exact raster has the period of its step as an
    ambiguity.
    """
    low, high = _limits(object_side, probe_side)
    n_side = max(1, int(np.ceil(np.sqrt(n))))
    ticks = np.linspace(low, high, n_side) if n_side > 1 else np.array([(low + high) / 2])
    raster = np.stack(np.meshgrid(ticks, ticks, indexing="ij"), axis=-1).reshape(-1, 2)[:n]
    jitter = rng_for(seed, Purpose.POSITIONS).uniform(-jitter_px, jitter_px, (n, 2))
    return np.clip(raster + jitter, low, high)


def spiral_positions(n: int, object_side: int, probe_side: int) -> NDArray[np.float64]:
    """A Fermat spiral in the disc inside the allowed square, from its centre outwards. (n, 2) float64, object pixels.

    The k-th point lies at the radius R sqrt((k + 1/2)/n), turned by k golden angles: equal area for each (Vogel
    1979; for ptychography Huang et al. 2014).
    """
    low, high = _limits(object_side, probe_side)
    k = np.arange(n)
    radius: NDArray[np.float64] = (high - low) / 2 * np.sqrt((k + 0.5) / n)
    angle: NDArray[np.float64] = k * np.pi * (3 - np.sqrt(5))
    return np.stack([np.sin(angle), np.cos(angle)], axis=1) * radius[:, None] + (low + high) / 2


def _limits(object_side: int, probe_side: int) -> tuple[float, float]:
    """The smallest and largest position whose frame lies inside the object."""
    if object_side < probe_side:
        raise ConfigError(
            f"an object of {object_side} px is smaller than the probe of {probe_side} px",
            code="simulate.object_too_small",
            hint=f"make the object at least {probe_side} px wide",
        )
    return probe_side / 2, object_side - probe_side / 2
