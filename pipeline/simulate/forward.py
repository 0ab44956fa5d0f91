"""What the detector counts: object patches times probe, propagated to the far field, with photon noise.

Every function works on a block of frames, so memory is the caller's choice, and no result depends on how frames are
cut into blocks.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError
from pipeline.seeding import Purpose, rng_for

Complex = TypeVar("Complex", np.complex64, np.complex128)


def extract_patches(obj: NDArray[Complex], positions: NDArray[np.float64], n: int) -> NDArray[Complex]:
    """What each frame sees of the object, bilinear between pixels and zero outside.

    Parameters
    ----------
    obj : (object_y, object_x) complex64 or complex128 object.
    positions : (frame, 2) float64 pairs (y, x), object pixels: a frame at p sees rows p_y - n/2 ... p_y + n/2 - 1.
    n : side of a patch.

    Returns
    -------
    (frame, n, n) of the object's dtype, in which the interpolation is done.
    """
    corner = positions - n // 2
    whole = np.floor(corner)
    part = (corner - whole).astype(obj.real.dtype)[:, :, None, None]
    index = whole[:, :, None].astype(np.int64) + np.arange(n + 1)
    rows, columns = (np.clip(index[:, a] + 1, 0, obj.shape[a] + 1) for a in (0, 1))
    window: NDArray[Complex] = np.pad(obj, 1)[rows[:, :, None], columns[:, None, :]]
    window = window[:, :-1] * (1 - part[:, 0]) + window[:, 1:] * part[:, 0]
    return np.asarray(window[:, :, :-1] * (1 - part[:, 1]) + window[:, :, 1:] * part[:, 1], dtype=obj.dtype)


def expected_intensity(patches: NDArray[np.complexfloating], probe: NDArray[np.complexfloating]) -> NDArray[np.float64]:
    """The far-field intensity of each frame, summed over incoherent probe modes.

    I = sum over modes of |FFT(P O)|^2 with the unitary transform, so a frame's total equals the sum of |P O|^2
    (Parseval): photons, if the probe is in sqrt(photon).

    Parameters
    ----------
    patches : (frame, n, n) complex object patches.
    probe : (probe_mode, n, n) complex.

    Returns
    -------
    (frame, n, n) float64 with zero frequency at [n//2, n//2].
    """
    intensity = np.zeros(patches.shape, dtype=np.float64)
    for mode in probe:
        far_field = np.fft.fft2(patches * mode, norm="ortho")
        intensity += far_field.real.astype(np.float64) ** 2 + far_field.imag.astype(np.float64) ** 2
    return np.fft.fftshift(intensity, axes=(-2, -1))


def dose_scale(mean_total: float, photons_per_frame: float) -> float:
    """What to multiply the probe by so that frames of a mean total intensity hold so many photons on average.

    sqrt(photons_per_frame / mean_total), for amplitudes; intensities scale by its square.

    Raises
    ------
    ConfigError
        One of the two is not a positive number.
    """
    ratio = photons_per_frame / mean_total if mean_total > 0 else np.nan
    if not (np.isfinite(ratio) and ratio > 0):
        raise ConfigError(
            f"{photons_per_frame} photons per frame cannot be reached from a mean intensity of {mean_total}; "
            "both must be positive",
            code="simulate.no_light",
        )
    return float(np.sqrt(ratio))


def poisson_counts(
    expected: NDArray[np.float64], first_frame: int, seed: int
) -> NDArray[np.uint16] | NDArray[np.uint32]:
    """Photon counts drawn around the expected intensity of each frame.

    Parameters
    ----------
    expected : (frame, n, n) float64 photons.
    first_frame : index in the scan of the block's first frame; frame i draws from the stream (POISSON, i).
    seed : of the scan.

    Returns
    -------
    (frame, n, n) uint16 where all counts of the block fit, else uint32: a scan takes the wider of its blocks.

    Raises
    ------
    ConfigError
        A count exceeds 32 bits.
    """
    counts = np.empty(expected.shape, dtype=np.uint32)
    for i, photons in enumerate(expected):
        drawn = rng_for(seed, Purpose.POISSON, first_frame + i).poisson(photons)
        if drawn.size and drawn.max() > np.iinfo(np.uint32).max:
            raise ConfigError(
                f"frame {first_frame + i} holds a pixel of {drawn.max()} photons, more than 32 bits",
                code="simulate.counts_overflow",
                hint="lower --photons-per-frame",
            )
        counts[i] = drawn
    fits = counts.max(initial=0) <= np.iinfo(np.uint16).max
    return counts.astype(np.uint16) if fits else counts
