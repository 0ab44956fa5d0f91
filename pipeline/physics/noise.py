"""How far frames are from a prediction, beside what photon noise alone would leave. Pure: numpy, no torch.

Noise floors are expectations over I ~ Poisson(l). Below 512 photons they are sums over the distribution at knots,
512 to an octave, with straight lines between; above, asymptotic series. Errors stay below 1e-6 of the value (1.7e-4
for |sqrt I - sqrt l|, at 512 photons).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln, xlogy

Doubles = NDArray[np.float64]
Frames = NDArray[Any]

_BITS_BETWEEN_KNOTS: Final = 14  # of a float32's 23 bits of mantissa
_KNOTS_PER_OCTAVE: Final = 512
_EXACT_BELOW: Final = 512.0
_BLOCK: Final = 1 << 15  # pixels whose intermediate values stay in the cache


def r_factor_parts(
    measured: Frames, predicted: Frames, *, good: NDArray[np.bool_] | None = None
) -> tuple[Doubles, Doubles]:
    """Numerator and denominator of R_F = sum |sqrt I - sqrt l| / sum sqrt I of each frame. Two (B,) float64.

    Sums of both over frames, batch after batch, give the R factor of a scan.

    Parameters
    ----------
    measured, predicted : (B, N, N) real, I and l >= 0 on good pixels, in one unit of intensity.
    good : (N, N) bool, pixels that count; None for all.
    """
    root, predicted_root = (np.sqrt(_good_pixels(frames, good), dtype=np.float64) for frames in (measured, predicted))
    return np.abs(root - predicted_root).sum(axis=1), root.sum(axis=1)


def expected_r_factor_parts(predicted: Frames, *, good: NDArray[np.bool_] | None = None) -> tuple[Doubles, Doubles]:
    """The noise floor of `r_factor_parts`: what is expected of both if counts are Poisson(l). Two (B,) float64.

    Parameters
    ----------
    predicted : (B, N, N) real photons, l >= 0 on good pixels, background included. NaN where l is no finite number.
    good : (N, N) bool, pixels that count; None for all.
    """
    light = _good_pixels(predicted, good)
    return _between_knots(_root_deviation(), light).sum(axis=1), _between_knots(_mean_root(), light).sum(axis=1)


def poisson_floor(light: NDArray[Any], *, background: float) -> Doubles:
    """The noise floor of the reported Poisson loss of each pixel: what is expected of it if counts are Poisson(l).

    The loss is half the deviance, (l + b) - I log(l + b) - I + I log max(I, 1e-3). Its mean tends to b in the dark and
    to 1/2 in the light. Where the background is light that makes counts, give l + b as `light` and 0 as `background`.

    Parameters
    ----------
    light : any shape, real photons, l >= 0, that make the counts. NaN where it is no finite number.
    background : b >= 0, photons per pixel that the loss adds to l and that make no counts.

    Returns
    -------
    float64 of the shape of `light`.

    Examples
    --------
    >>> import numpy as np
    >>> poisson_floor(np.array([0.0, 0.1, 1.0, 1e4]), background=0.05).round(4).tolist()
    [0.05, 0.2465, 0.5746, 0.5]
    """
    return _between_knots(_mean_loss(background), light)


def _good_pixels(frames: Frames, good: NDArray[np.bool_] | None) -> Frames:
    """(B, N, N) -> (B, pixel)."""
    n_frames, height, width = frames.shape
    return frames.reshape(n_frames, height * width) if good is None else frames[:, good]


def _between_knots(at_knots: Doubles, light: NDArray[Any]) -> Doubles:
    """A table read at any light, straight lines between its knots. Shape kept, float64; NaN where light is < 0 or NaN.

    A float32's upper bits number the knot below it, its lower bits are the share of the way to the next: no logarithm
    and no search.
    """
    flat = np.ravel(light).astype(np.float32) + np.float32(0)  # makes 0 of -0, whose bits are those of a large number
    values = np.empty(flat.size)
    for first in range(0, flat.size, _BLOCK):
        bits = flat[first : first + _BLOCK].view(np.uint32)
        knot = (bits >> np.uint32(_BITS_BETWEEN_KNOTS)).astype(np.intp)
        share = (bits & np.uint32((1 << _BITS_BETWEEN_KNOTS) - 1)) * 2.0**-_BITS_BETWEEN_KNOTS
        below = at_knots.take(knot, mode="clip")
        values[first : first + _BLOCK] = below + share * (at_knots.take(knot + 1, mode="clip") - below)
    return values.reshape(np.shape(light))


@cache
def _knots() -> tuple[Doubles, Doubles]:
    """The float32 numbers whose last 14 bits are 0: those below 512 and those from there to 2^128. (knot,) twice."""
    infinity = int(np.float32(np.inf).view(np.uint32)) >> _BITS_BETWEEN_KNOTS
    bits = np.arange(infinity, dtype=np.uint32) << np.uint32(_BITS_BETWEEN_KNOTS)
    light = np.append(bits.view(np.float32).astype(np.float64), 2.0**128)
    n_dim = int(np.searchsorted(light, _EXACT_BELOW))
    return light[:n_dim], light[n_dim:]


@cache
def _excess_of_log() -> Doubles:
    """E[I log I] - l log l at every knot; from 512 photons on 1/2 + 1/(12 l) + 1/(12 l^2) + O(l^-3)."""
    dim, bright = _knots()
    mean = _mean_over_counts(lambda counts, _: counts * np.log(np.maximum(counts, 1)))
    return _table(mean - dim * np.log(np.where(dim > 0, dim, 1)), 0.5 + (1 + 1 / bright) / (12 * bright))


@lru_cache(maxsize=16)
def _mean_loss(background: float) -> Doubles:
    """E of the Poisson loss at every knot: b - l log(1 + b / l) + E[I log I] - l log l."""
    light = np.concatenate(_knots())
    relative = background / np.where(light > 0, light, 1)
    return _table(background - light * np.log1p(relative)) + _excess_of_log()


@cache
def _mean_root() -> Doubles:
    """E[sqrt I] at every knot; from 512 photons on sqrt l (1 - 1/(8 l) - 7/(128 l^2) + O(l^-3))."""
    bright = _knots()[1]
    mean = _mean_over_counts(lambda counts, _: np.sqrt(counts))
    return _table(mean, np.sqrt(bright) * (1 - (1 + 7 / (16 * bright)) / (8 * bright)))


@cache
def _root_deviation() -> Doubles:
    """E|sqrt I - sqrt l| at every knot; from 512 photons on (1 + 1/(6 l)) / sqrt(2 pi).

    That is its mean over a step of 1 in l; it is up to 1/(12 sqrt(2 pi) l) smaller where l is a whole number.
    """
    bright = _knots()[1]
    mean = _mean_over_counts(lambda counts, light: np.abs(np.sqrt(counts) - np.sqrt(light)))
    return _table(mean, (1 + 1 / (6 * bright)) / np.sqrt(2 * np.pi))


def _mean_over_counts(term: Callable[[Doubles, Doubles], Doubles]) -> Doubles:
    """E[term(I, l)] for I ~ Poisson(l) at every knot below 512, summed to 12 standard deviations. (knot,) float64."""
    dim = _knots()[0]
    means = np.empty_like(dim)
    for first in range(0, len(dim), _KNOTS_PER_OCTAVE):
        light = dim[first : first + _KNOTS_PER_OCTAVE, np.newaxis]
        brightest = float(light[-1, 0])
        counts = np.arange(np.ceil(brightest + 12 * np.sqrt(brightest) + 12))
        chance = np.exp(xlogy(counts, light) - light - gammaln(counts + 1))
        means[first : first + _KNOTS_PER_OCTAVE] = (chance * term(counts, light)).sum(axis=1)
    return means


def _table(*values: Doubles) -> Doubles:
    """Values at all knots and one NaN behind them, where the bits of negative numbers and of NaN lead."""
    return np.concatenate([*values, [np.nan]])
