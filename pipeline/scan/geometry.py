"""Where the probe was: source coordinates to object pixels, and what follows from positions alone. Pure.

Convention (docs/conventions.md): a frame at p sees the N object rows from p_y - N//2 on, likewise columns;
y down, x right; the last axis of any pair is (y, x).
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]

PIXEL_SPREAD: Final = 1.0
"""Coordinates that spread over more than this are pixels; metres never do."""

_CORNER_MARGIN: Final = 4.0


def origin_offset(origin: str, frame_side: int) -> float:
    """What is added to a source coordinate in pixels to obtain a canonical position, in pixels.

    A position is pixel N//2 of the window: half a pixel from the exact middle for even N, the middle itself for odd.
    """
    middle = (frame_side - 1) / 2
    return {"n/2": 0.0, "n/2-0.5": frame_side // 2 - middle, "corner": float(frame_side // 2)}[origin]


def to_pixels(values: NDArray[Any], origin: str, frame_side: int, pixel_size_m: float | None) -> Doubles:
    """Source coordinates as canonical positions: float64 pixels; `pixel_size_m` where they are metres, else None."""
    pixels = values.astype(np.float64)
    if pixel_size_m is not None:
        pixels = pixels / pixel_size_m
    offset = origin_offset(origin, frame_side)
    return pixels + offset if offset else pixels


def spread(y: Doubles, x: Doubles) -> float:
    """The larger extent of the coordinates along y and x, in their own unit."""
    return float(max(np.ptp(y), np.ptp(x))) if y.size else 0.0


def zero_frequency_is_central(frames: NDArray[Any]) -> bool:
    """False where frames (k, y, x) are more than four times as bright in their corners as in their middle.

    Compares the central quarter with the four corners that together have its area. A hint, with a wide margin: the
    shadow of a zone plate's stop darkens the middle, and a pupil that reaches past the detector brightens corners.
    """
    mean = frames.mean(axis=0, dtype=np.float64)
    quarter = [max(1, n // 4) for n in mean.shape]
    rolled = np.roll(mean, [n // 2 for n in mean.shape], axis=(0, 1))
    middle, corners = (
        np.roll(image, quarter, axis=(0, 1))[: 2 * quarter[0], : 2 * quarter[1]].sum() for image in (rolled, mean)
    )
    return bool(corners <= _CORNER_MARGIN * middle)


def nearest_step(positions: Doubles) -> float | None:
    """Median distance from each position to its nearest other, in pixels; None for fewer than two.

    Parameters
    ----------
    positions
        (n, 2) float64, (y, x).
    """
    if len(positions) < 2:
        return None
    from scipy.spatial import cKDTree  # 0.2 s of import that only this needs

    distance = np.asarray(cKDTree(positions).query(positions, k=2)[0])
    return float(np.median(distance[:, 1]))


def probe_diameter(probe: NDArray[np.complex64]) -> float:
    """Full width at half maximum of the probe's intensity as a disc: 2 sqrt(area / pi), in pixels.

    The area counts pixels of at least half the largest summed intensity. (mode, y, x) complex64.
    """
    intensity = np.sum(np.abs(probe).astype(np.float64) ** 2, axis=0)
    area = int(np.count_nonzero(intensity >= 0.5 * intensity.max()))
    return float(2.0 * np.sqrt(area / np.pi))


def disc_overlap(distance: float, diameter: float) -> float:
    """Shared fraction of two discs of `diameter` whose centres are `distance` apart, 0 to 1.

    f(d) = [2 R^2 acos(d / 2R) - (d/2) sqrt(4 R^2 - d^2)] / (pi R^2), the lens area over the disc's.

    >>> round(disc_overlap(9.6, 38.4), 6)
    0.685038
    """
    if distance >= diameter:
        return 0.0
    radius = diameter / 2
    lens = 2 * radius**2 * np.arccos(distance / diameter) - distance / 2 * np.sqrt(diameter**2 - distance**2)
    return float(lens / (np.pi * radius**2))
