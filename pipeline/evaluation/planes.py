"""The seen part of a reconstructed object as planes to look at. Pure: arrays to arrays, nothing is drawn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pipeline.picture import Limits

Extent: TypeAlias = tuple[float, float, float, float]

SEEN_FROM: Final = 0.1
"""Share of the largest coverage from which a pixel counts as seen."""

MOST_PIXELS: Final = 1500
"""Planes longer than this are shown as block means."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Planes:
    """What was seen of an object, NaN where nothing was, at most 1,500 pixels a side.

    object : (y, x) complex64, its mean phase 0.
    coverage : (y, x) float32, seen or not.
    reference : as `object`, times the complex number that brings it nearest to the object; all NaN where there is none.
    extent : left, right, bottom and top in coordinates of the grid: the outer edges of the outer pixels.
    """

    object: NDArray[np.complex64]
    coverage: NDArray[np.float32]
    reference: NDArray[np.complex64]
    extent: Extent

    @property
    def size(self) -> tuple[float, float]:
        """Height and width in pixels of the grid."""
        left, right, bottom, top = self.extent
        return bottom - top, right - left


def seen_part(
    obj: NDArray[np.complex64],
    coverage: NDArray[np.float32],
    *,
    origin_px: tuple[int, int],
    reference: NDArray[np.complex64] | None,
) -> Planes:
    """The box of what was seen with a rim of 4 %, or the whole grid where nothing was. All arrays (y, x) alike."""
    light = np.where(np.isfinite(coverage), coverage, np.float32(0))
    seen = (light > 0) & (light >= SEEN_FROM * light.max(initial=0)) & np.isfinite(obj)
    rows, columns = _span(seen.any(axis=1)), _span(seen.any(axis=0))
    seen, coverage = seen[rows, columns], coverage[rows, columns]
    shown = np.where(seen, obj[rows, columns], 0)
    shown = shown * np.complex64(np.exp(-1j * np.angle(shown.sum(dtype=np.complex128))))
    k = -(-max(seen.shape) // MOST_PIXELS)
    height, width = (k * -(-n // k) for n in seen.shape)
    none = np.full(seen.shape, np.nan, dtype=np.complex64)
    top, left = origin_px[0] + rows.start - 0.5, origin_px[1] + columns.start - 0.5
    return Planes(
        object=_block_mean(shown, seen, k),
        coverage=_block_mean(coverage, np.isfinite(coverage), k),
        reference=_aligned(none if reference is None else reference[rows, columns], shown, seen, k),
        extent=(left, left + width, top + height, top),
    )


def limits_of(values: NDArray[Any], *, tails: float = 0.5) -> Limits:
    """Two different numbers between which all finite values but `tails` per cent at each end lie."""
    known = values[np.isfinite(values)]
    if known.size == 0:
        return 0.0, 1.0
    low, high = (float(v) for v in np.percentile(known, (tails, 100 - tails)))
    least = 1e-3 * max(abs(low), abs(high)) or 1e-3
    return (low, high) if high - low >= least else ((low + high - least) / 2, (low + high + least) / 2)


def phase_limits_of(phase_rad: NDArray[Any]) -> Limits:
    """As `limits_of`; (-pi, pi) where the values take up nearly the whole circle."""
    low, high = limits_of(phase_rad)
    return (low, high) if high - low < 0.9 * 2 * np.pi else (-np.pi, np.pi)


def thinned(rows: NDArray[Any], most: int) -> NDArray[Any]:
    """Every k-th row, so that at most `most` are left."""
    return rows[:: max(1, -(-len(rows) // most))]


def mean_distance(positions: NDArray[np.float64]) -> float:
    """Distance of neighbours if all were spread evenly over their box, in their unit; infinite for a single place."""
    known = positions[np.isfinite(positions).all(axis=1)]
    if len(known) == 0:
        return float("inf")
    height, width = np.ptp(known, axis=0)
    return float(max(np.sqrt(height * width / len(known)), max(height, width) / len(known))) or float("inf")


def _span(hit: NDArray[np.bool_]) -> slice:
    """From the first hit to the last with a rim of 4 %; everything where there is none."""
    at = np.flatnonzero(hit)
    if len(at) == 0:
        return slice(0, len(hit))
    rim = max(2, int(at[-1] - at[0]) // 25)
    return slice(max(0, int(at[0]) - rim), min(len(hit), int(at[-1]) + rim + 1))


def _aligned(
    reference: NDArray[np.complex64], obj: NDArray[np.complex64], seen: NDArray[np.bool_], k: int
) -> NDArray[np.complex64]:
    """The reference in the object's gauge, by one least-squares factor over the seen pixels; blocks of k x k."""
    known = seen & np.isfinite(reference)
    r = np.where(known, reference, 0).astype(np.complex128)
    power = np.vdot(r, r).real
    factor = np.vdot(r, np.where(known, obj, 0)) / power if power > 0 else 1.0
    return _block_mean((factor * r).astype(np.complex64), known, k)


def _block_mean(values: NDArray[Any], known: NDArray[np.bool_], k: int) -> NDArray[Any]:
    """Means over the known pixels of blocks of k x k, NaN where there are none. (y, x) -> ceil of (y / k, x / k)."""
    height, width = known.shape
    pad = ((0, -height % k), (0, -width % k))
    blocks = (-(-height // k), k, -(-width // k), k)
    total = np.pad(np.where(known, values, 0), pad).reshape(blocks).sum(axis=(1, 3))
    n = np.pad(known, pad).reshape(blocks).sum(axis=(1, 3))
    means: NDArray[Any] = np.where(n > 0, total / np.maximum(n, 1), np.nan).astype(values.dtype)
    return means
