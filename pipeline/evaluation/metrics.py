"""How far an object is from the truth. Pure.

Objects are compared after one complex factor, the only part of their gauge that is removed here: no shift, no ramp.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from pipeline.errors import SchemaError

Doubles = NDArray[np.float64]

_SSIM_SIGMA, _SSIM_RADIUS, _SSIM_K1, _SSIM_K2 = 1.5, 5, 0.01, 0.03
_ROUNDING = 1e-6  # single precision makes a constant object vary by less than this


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectMetrics:
    """How far an object is from the truth; None is what cannot be known.

    complex_nrmse : see `complex_nrmse`.
    amplitude_mae : mean | |gamma found| - |truth| |, in units of the truth.
    phase_mae_rad : mean |arg(gamma found conj(truth))|, wrapped, over pixels where neither is 0; radians, 0 to pi.
    amplitude_ssim, phase_ssim : see `ssim`; phases from the direction of the truth's mean, which keeps them from
        wrapping while they spread over less than pi.
    amplitude_data_range, phase_data_range_rad : largest less smallest value of the truth, L of the SSIM.
    """

    complex_nrmse: float
    amplitude_mae: float
    phase_mae_rad: float | None
    amplitude_ssim: float | None
    phase_ssim: float | None
    amplitude_data_range: float
    phase_data_range_rad: float


def least_squares_factor(found: NDArray[Any], truth: NDArray[Any]) -> complex:
    """The gamma for which gamma found lies nearest the truth: <found, truth> / <found, found>; 0 if found is all 0.

    Parameters
    ----------
    found, truth : complex of one shape; sums are taken in complex128.
    """
    found, truth = found.astype(np.complex128), truth.astype(np.complex128)
    energy = np.vdot(found, found).real
    return complex(np.vdot(found, truth) / energy) if energy != 0 else 0j


def complex_nrmse(found: NDArray[Any], truth: NDArray[Any]) -> float:
    """||gamma found - truth|| / ||truth|| after the least-squares factor gamma: 0 for equal, 1 for unrelated.

    Parameters
    ----------
    found, truth : complex of one shape.

    Raises
    ------
    SchemaError
        The shapes differ, or the truth has no finite energy above 0.

    Examples
    --------
    >>> import numpy as np
    >>> truth = np.array([[1, 1j], [1, 1]])
    >>> complex_nrmse(2j * truth, truth), round(complex_nrmse(np.ones_like(truth), truth), 6)
    (0.0, 0.612372)
    """
    _check_comparable(found, truth)
    residual = least_squares_factor(found, truth) * found.astype(np.complex128) - truth
    return float(np.linalg.norm(residual) / np.linalg.norm(truth.astype(np.complex128)))


def compare_objects(found: NDArray[Any], truth: NDArray[Any]) -> ObjectMetrics:
    """Every metric of an object, its one complex factor removed.

    `compare_objects(np.ones_like(truth), truth)` is the flat object that stands beside every result: its
    `complex_nrmse` is sqrt(1 - |sum truth|^2 / (n sum |truth|^2)).

    Parameters
    ----------
    found, truth : (y, x) complex of one shape, on one pixel grid.

    Raises
    ------
    SchemaError
        The shapes differ, or the truth has no finite energy above 0.
    """
    nrmse = complex_nrmse(found, truth)
    truth = truth.astype(np.complex128)
    matched = least_squares_factor(found, truth) * found.astype(np.complex128)
    product = matched * truth.conj()
    has_phase = product != 0
    any_phase = bool(has_phase.any())
    amplitude, true_amplitude = np.abs(matched), np.abs(truth)
    upright = truth.sum().conj()
    phase, true_phase = np.angle(matched * upright), np.angle(truth * upright)
    amplitude_range, phase_range = float(np.ptp(true_amplitude)), float(np.ptp(true_phase))
    amplitude_varies = amplitude_range > _ROUNDING * float(true_amplitude.max())
    phase_varies = phase_range > _ROUNDING and any_phase
    return ObjectMetrics(
        complex_nrmse=nrmse,
        amplitude_mae=float(np.abs(amplitude - true_amplitude).mean()),
        phase_mae_rad=float(np.abs(np.angle(product[has_phase])).mean()) if any_phase else None,
        amplitude_ssim=ssim(amplitude, true_amplitude, data_range=amplitude_range) if amplitude_varies else None,
        phase_ssim=ssim(phase, true_phase, data_range=phase_range) if phase_varies else None,
        amplitude_data_range=amplitude_range,
        phase_data_range_rad=phase_range,
    )


def ssim(image: Doubles, reference: Doubles, *, data_range: float) -> float | None:
    """Mean structural similarity of two real images, 1 for equal ones; None where a side is below 11 pixels.

    Wang, Bovik, Sheikh and Simoncelli 2004, doi:10.1109/TIP.2003.819861, equation 13: a Gaussian window of sigma 1.5
    and 11 x 11 pixels, K1 = 0.01, K2 = 0.03, the mean over pixels whose window lies inside the image.

    Parameters
    ----------
    image, reference : (y, x) float64.
    data_range : L > 0, the extent of the values.
    """
    if min(image.shape) < 2 * _SSIM_RADIUS + 1:
        return None
    mean, reference_mean = _windowed(image), _windowed(reference)
    variance = _windowed(image**2) - mean**2
    reference_variance = _windowed(reference**2) - reference_mean**2
    covariance = _windowed(image * reference) - mean * reference_mean
    c1, c2 = (_SSIM_K1 * data_range) ** 2, (_SSIM_K2 * data_range) ** 2
    luminance = (2 * mean * reference_mean + c1) / (mean**2 + reference_mean**2 + c1)
    structure = (2 * covariance + c2) / (variance + reference_variance + c2)
    return float((luminance * structure).mean())


def scored_box(positions: Doubles, *, origin: tuple[int, int], shape: tuple[int, int]) -> tuple[slice, slice]:
    """Rows and columns of an object between the outermost scan positions, where it is scored.

    ceil(smallest position) to floor(largest position), both included, clipped to the object; empty where they miss it.

    Parameters
    ----------
    positions : (n, 2) float64, (y, x) in pixels of the object grid; n >= 1.
    origin : (y, x), the grid coordinate of the object's element [0, 0].
    shape : (y, x) of the object.

    Examples
    --------
    >>> import numpy as np
    >>> scored_box(np.array([[3.2, 5.0], [7.9, 9.0]]), origin=(2, 0), shape=(20, 8))
    (slice(2, 6, None), slice(5, 8, None))
    """
    start = np.clip(np.ceil(positions.min(axis=0)) - origin, 0, shape).astype(int).tolist()
    stop = np.clip(np.floor(positions.max(axis=0)) + 1 - origin, 0, shape).astype(int).tolist()
    return slice(start[0], stop[0]), slice(start[1], stop[1])


def _check_comparable(found: NDArray[Any], truth: NDArray[Any]) -> None:
    if found.shape != truth.shape:
        raise SchemaError(
            f"an object of shape {found.shape} cannot be compared with a truth of shape {truth.shape}; "
            "cut both to one box of the pixel grid",
            code="evaluation.shape",
        )
    energy = float(np.linalg.norm(truth.astype(np.complex128)))
    if not 0 < energy < float("inf"):
        raise SchemaError(
            f"the truth of shape {truth.shape} has the norm {energy}; expected a finite one above 0",
            code="evaluation.no_truth",
        )


def _windowed(image: Doubles) -> Doubles:
    """Gaussian mean around each pixel whose window lies inside. (y, x) -> (y - 10, x - 10)."""
    inside = slice(_SSIM_RADIUS, -_SSIM_RADIUS)
    return np.asarray(gaussian_filter(image, _SSIM_SIGMA, radius=_SSIM_RADIUS), dtype=np.float64)[inside, inside]
