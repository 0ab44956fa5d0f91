"""What arrays look like: real and complex images as pixels.

Every picture is (h, w, 3) uint8 sRGB. Brightness is even by construction: colours are chosen in OKLCH (lightness,
chroma, hue; Ottosson 2020, "A perceptual color space for image processing"), where equal steps look equal.
Pixels that hold no number are grey, a colour no scale contains.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]
Limits = tuple[float, float]

# (lightness, chroma, hue in degrees) from dark violet to yellow, equally spaced in lightness and all inside sRGB
_ANCHORS = np.array(
    [
        (0.18, 0.07, 305.0),
        (0.34, 0.12, 290.0),
        (0.50, 0.095, 240.0),
        (0.66, 0.095, 190.0),
        (0.82, 0.15, 145.0),
        (0.97, 0.12, 108.0),
    ]
)
_WHEEL_LIGHTNESS, _WHEEL_CHROMA, _WHEEL_HUE_OF_ZERO = 0.75, 0.12, 30.0  # every hue of it exists in sRGB
_NOT_A_NUMBER = 128


def linear_image(values: NDArray[Any], limits: Limits | None = None) -> Pixels:
    """Real values on the palette, dark to bright. (h, w) -> (h, w, 3) uint8.

    `limits` are the values of the darkest and brightest colour, by default those of the finite data.
    """
    return _painted(np.asarray(values, dtype=np.float64), limits)


def log_image(counts: NDArray[Any], limits: Limits | None = None) -> Pixels:
    """log10(1 + counts) on the palette, dark to bright. (h, w) counts >= 0 -> (h, w, 3) uint8.

    `limits` are the counts of the darkest and brightest colour, by default those of the data.
    """
    log_limits = None if limits is None else (float(np.log10(1 + limits[0])), float(np.log10(1 + limits[1])))
    return _painted(np.log10(1 + np.asarray(counts, dtype=np.float64)), log_limits)


def complex_image(z: NDArray[np.complexfloating], amplitude_max: float | None = None) -> Pixels:
    """Phase as hue, amplitude as brightness. (h, w) complex -> (h, w, 3) uint8.

    Zero is black; `amplitude_max` (default: the largest in the data) and all above have full brightness.
    """
    amplitude = np.abs(z).astype(np.float64)
    top = _data_limits(amplitude)[1] if amplitude_max is None else amplitude_max
    return _wheel(np.angle(z).astype(np.float64), np.clip(amplitude / top, 0, 1) if top > 0 else amplitude)


def phase_image(phase_rad: NDArray[np.floating]) -> Pixels:
    """Phase as hue at one brightness; it wraps at 2 pi. (h, w) radians -> (h, w, 3) uint8."""
    return _wheel(np.asarray(phase_rad, dtype=np.float64), np.ones(phase_rad.shape))


def colour_wheel(side: int, background: tuple[int, int, int] = (255, 255, 255)) -> Pixels:
    """The legend of `complex_image`: a disc of all phases and amplitudes. (side, side, 3) uint8.

    Phase 0 lies to the right, a quarter turn up; the amplitude rises from 0 in the centre to its largest at the rim.
    """
    from_centre = np.linspace(-1, 1, side)
    z = from_centre[None, :] - 1j * from_centre[:, None]
    rgb = complex_image(z, amplitude_max=1.0)
    rgb[np.abs(z) > 1] = background
    return rgb


def palette() -> Pixels:
    """256 colours of evenly rising lightness, dark violet to yellow. (256, 3) uint8."""
    at, stops = np.linspace(0, 1, 256), np.linspace(0, 1, len(_ANCHORS))
    lightness, chroma, hue = (np.interp(at, stops, column) for column in _ANCHORS.T)
    return _srgb(lightness, chroma, np.deg2rad(hue))


def upscale(rgb: Pixels, k: int) -> Pixels:
    """Every pixel as a k x k square. (h, w, 3) -> (k h, k w, 3)."""
    return rgb.repeat(k, axis=0).repeat(k, axis=1)


def save_png(path: Path, rgb: Pixels) -> None:
    """Write a PNG that holds the pixels and nothing else: the same pixels give the same bytes."""
    Image.fromarray(rgb).save(path, format="PNG", compress_level=9)


def _painted(values: NDArray[np.float64], limits: Limits | None) -> Pixels:
    """Values on the palette; grey where they are not finite. (h, w) -> (h, w, 3) uint8."""
    low, high = _data_limits(values) if limits is None else limits
    known = np.isfinite(values)
    unit = np.clip((np.where(known, values, low) - low) / (high - low), 0, 1) if high > low else np.zeros(values.shape)
    rgb: Pixels = palette()[np.rint(255 * unit).astype(np.intp)]
    rgb[~known] = _NOT_A_NUMBER
    return rgb


def _wheel(phase_rad: NDArray[np.float64], brightness: NDArray[np.float64]) -> Pixels:
    """Colours of phase and brightness 0...1; grey where they are not finite. (h, w) twice -> (h, w, 3) uint8."""
    known = np.isfinite(phase_rad) & np.isfinite(brightness)
    hue = np.where(known, phase_rad, 0) + np.deg2rad(_WHEEL_HUE_OF_ZERO)
    shade = np.where(known, brightness, 0)
    rgb = _srgb(_WHEEL_LIGHTNESS * shade, _WHEEL_CHROMA * shade, hue)
    rgb[~known] = _NOT_A_NUMBER
    return rgb


def _srgb(lightness: NDArray[np.float64], chroma: NDArray[np.float64], hue_rad: NDArray[np.float64]) -> Pixels:
    """OKLCH to 8-bit sRGB with Ottosson's published matrices. Equal shapes (...) -> (..., 3) uint8."""
    lab = np.stack([lightness, chroma * np.cos(hue_rad), chroma * np.sin(hue_rad)], axis=-1)
    cones = (lab @ _CONES_OF_LAB.T) ** 3
    linear = np.clip(cones @ _RGB_OF_CONES.T, 0, 1)
    encoded: NDArray[np.float64] = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.rint(255 * encoded).astype(np.uint8)


_CONES_OF_LAB = np.array(
    [[1, 0.3963377774, 0.2158037573], [1, -0.1055613458, -0.0638541728], [1, -0.0894841775, -1.2914855480]]
)
_RGB_OF_CONES = np.array(
    [
        [4.0767416621, -3.3077115913, 0.2309699292],
        [-1.2684380046, 2.6097574011, -0.3413193965],
        [-0.0041960863, -0.7034186147, 1.7076147010],
    ]
)


def _data_limits(values: NDArray[np.float64]) -> Limits:
    """The smallest and largest finite value; (0, 0) where there is none."""
    finite = values[np.isfinite(values)]
    return (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
