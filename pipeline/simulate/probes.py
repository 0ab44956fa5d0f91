"""What illuminates the sample: complex probes built by formula.

Every probe is complex64 (probe_mode, n, n), centred on pixel [n//2, n//2], and has the energy 1 over all its modes;
`pipeline.simulate.forward.dose_scale` says what to multiply it by to reach a number of photons.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, special

from pipeline.errors import ConfigError


def disk_probe(n: int, *, scale: float = 0.7, curvature_rad: float = 3 * np.pi) -> NDArray[np.complex64]:
    """A soft disc with a spherical wavefront. (1, n, n) complex64, energy 1.

    Where a Gaussian of standard deviation n/(scale pi^2) exceeds 0.5, blurred by one pixel, plus 1e-9: the disc's
    radius is 0.170 n for the default scale.

    Parameters
    ----------
    n : side in pixels.
    scale : the larger, the smaller the disc.
    curvature_rad : phase at the disc's rim; it grows with the square of the radius from 0 in the centre and spreads
        the light over the detector (at n = 64 and 3 pi over half of it). 0 gives the plain real disc.
    """
    r = _radius_px(n)
    sigma_px = n / (scale * np.pi**2)
    rim_px = sigma_px * np.sqrt(2 * np.log(2))
    disc = ndimage.gaussian_filter((r < rim_px).astype(np.float64), 1.0) + 1e-9
    return _unit_energy((disc * np.exp(1j * curvature_rad * (r / rim_px) ** 2))[None])


def zone_plate_probe(
    n: int, *, pupil_radius: float = 0.66, stop_radius: float = 0.14, disc_radius: float = 0.144, edge: float = 0.032
) -> NDArray[np.complex64]:
    """The defocused beam of a Fresnel zone plate with a central stop. (1, n, n) complex64, energy 1.

    In the far field it is a bright ring of the plate's pupil; at the sample, out of focus, a disc with a dark centre
    and fringes. Defocus by z adds the phase -pi lambda z f^2 to the pupil at the spatial frequency f (Fresnel
    propagation; Goodman, Introduction to Fourier Optics, 4.2), which sends its light to the distance lambda z f from
    the axis: hence -pi d f^2 / p, where the pupil's rim p is sent to d.

    Parameters
    ----------
    n : side in pixels, of the probe and of the detector. The other lengths are in units of n.
    pupil_radius : of the ring on the detector, at most 1. Above 0.5 the ring reaches over the detector's edges, and
        what falls beyond comes back in on the other side: the field is sampled at the object's pixels.
    stop_radius : of the dark centre on the detector.
    disc_radius : of the disc of light at the sample, by rays.
    edge : softness (standard deviation) of rim and stop on the detector.

    Notes
    -----
    The default is the illumination of the recipes; at n = 64, 99.9 % of its energy lies in a square of 28 pixels.
    """
    f = _radius_px(2 * n) / n
    ring = special.ndtr((pupil_radius - f) / edge) - special.ndtr((stop_radius - f) / edge)
    pupil = ring * np.exp(-1j * np.pi * n * disc_radius / pupil_radius * f**2)
    field = np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(pupil)))
    first = n % 2  # of the half pixels: the axis, at [n, n], must fall on [n//2, n//2]
    return _unit_energy(field[None, first::2, first::2])


def hermite_modes(
    probe: NDArray[np.complexfloating], n_modes: int, fractions: Sequence[float]
) -> NDArray[np.complex64]:
    """Incoherent modes: the probe, then itself times Hermite polynomials. (n_modes, n, n) complex64, energy 1.

    Parameters
    ----------
    probe : (1, n, n) or (n, n) complex; it becomes mode 0, up to its scale.
    n_modes : how many; their polynomials are 1, y, x, y^2 - 1, xy, x^2 - 1, ... in units of the probe's width,
        about the centroid of its energy, made orthogonal one after the other (Gram-Schmidt).
    fractions : share of the energy of each mode, positive, summing to 1.

    Raises
    ------
    ConfigError
        `fractions` are not `n_modes` positive numbers of sum 1.
    """
    shares = np.asarray(fractions, dtype=np.float64)
    if shares.shape != (n_modes,) or not (shares > 0).all() or not np.isclose(shares.sum(), 1):
        raise ConfigError(
            f"the energies of {n_modes} modes are {list(fractions)}; expected {n_modes} positive numbers of sum 1",
            code="simulate.mode_fractions",
        )
    main = probe.reshape(probe.shape[-2:]).astype(np.complex128)
    modes: list[NDArray[np.complex128]] = []
    for polynomial in _hermite_products(main, n_modes):
        modes.append(_orthogonal(main * polynomial, modes))
    return (np.sqrt(shares)[:, None, None] * np.stack(modes)).astype(np.complex64)


def _hermite_products(probe: NDArray[np.complex128], n_modes: int) -> list[NDArray[np.float64]]:
    """Products He_i(y) He_j(x) by rising i + j on the grid of a probe (n, n). n_modes times (n, n) float64."""
    energy = np.abs(probe) ** 2 / (np.abs(probe) ** 2).sum()
    axes = []
    for pixels in np.ogrid[: probe.shape[0], : probe.shape[1]]:
        centred = pixels - (energy * pixels).sum()
        axes.append(centred / np.sqrt((energy * centred**2).sum()))
    orders = sorted(((i, j) for i in range(n_modes) for j in range(n_modes)), key=lambda o: (o[0] + o[1], -o[0]))
    return [special.eval_hermitenorm(i, axes[0]) * special.eval_hermitenorm(j, axes[1]) for i, j in orders[:n_modes]]


def _orthogonal(candidate: NDArray[np.complex128], modes: Sequence[NDArray[np.complex128]]) -> NDArray[np.complex128]:
    """What is left of a candidate beside the modes (of energy 1), brought to energy 1. (n, n) complex128."""
    for mode in modes:
        candidate = candidate - (mode.conj() * candidate).sum() * mode
    norm = float(np.sqrt((np.abs(candidate) ** 2).sum()))
    return candidate / norm


def _radius_px(n: int) -> NDArray[np.float64]:
    """Distance from pixel [n//2, n//2]. (n, n) float64."""
    centred = np.arange(n, dtype=np.float64) - n // 2
    return np.hypot(centred[:, None], centred[None, :])


def _unit_energy(probe: NDArray[np.complex128]) -> NDArray[np.complex64]:
    """The probe scaled so that the sum of |P|^2 over all modes is 1. Same shape, complex64."""
    norm = float(np.sqrt((np.abs(probe) ** 2).sum()))
    return (probe / norm).astype(np.complex64)
