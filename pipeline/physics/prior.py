"""What objects are believed to look like before a frame is seen: smooth, or flat in pieces.

A prior gives a gradient on the canvas and what it adds to the denominator of an update. Canvases are taken as
periodic; they end in blank object on every side.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from pipeline.config import PriorName

_REFERENCE_PEAK: Final = 1600.0
_TV_SMOOTHING: Final = 0.02


@dataclass(frozen=True, kw_only=True, slots=True)
class Prior:
    """A kind of prior and its weight lam, in units in which the probe's peak is 1,600 photons; 0 for "none"."""

    name: PriorName
    weight: float

    def __str__(self) -> str:
        return self.name if self.name == "none" else f"{self.name} {self.weight:g}"


NO_PRIOR: Final = Prior(name="none", weight=0.0)


def scaled_weight(prior: Prior, *, peak: float) -> float:
    """Lam' = 1600 lam / max |P|^2: the weight beside gradients that are divided by the probe's peak in photons."""
    return prior.weight * _REFERENCE_PEAK / peak


def laplacian_spectrum(shape: tuple[int, int], *, dtype: torch.dtype) -> Tensor:
    """L = 4 - 2 cos kx - 2 cos ky, minus the discrete Laplacian in Fourier space, in FFT order. (y, x) real."""
    ky, kx = (2 * math.pi * torch.fft.fftfreq(n, dtype=torch.float64) for n in shape)
    spectrum: Tensor = 4 - 2 * ky.cos()[:, None] - 2 * kx.cos()
    return spectrum.to(dtype)


def prior_denominator(prior: Prior, laplacian: Tensor, *, peak: float) -> Tensor:
    """What the prior adds to the denominator of an update in Fourier space. (y, x) real, FFT order.

    lam' L^3 for quadratic; (lam' / 0.02) L for TV, whose curvature is at most that; 0 for none.
    """
    weight = scaled_weight(prior, peak=peak)
    if prior.name == "quadratic":
        return weight * laplacian**3
    if prior.name == "tv":
        return weight / _TV_SMOOTHING * laplacian
    return torch.zeros_like(laplacian)


def prior_gradient_spectrum(prior: Prior, canvas: Tensor, laplacian: Tensor, *, peak: float) -> Tensor:
    """The Fourier transform of the prior's gradient. (y, x) complex -> (y, x) complex, FFT order.

    Parameters
    ----------
    canvas : (y, x) complex, solver's gauge.
    laplacian : (y, x) real, from `laplacian_spectrum`.
    peak : max |P|^2, photons.
    """
    weight = scaled_weight(prior, peak=peak)
    if prior.name == "none":
        return torch.zeros_like(canvas)
    spectrum: Tensor = torch.fft.fft2(tv_gradient(canvas) if prior.name == "tv" else canvas)
    return spectrum.mul_(weight if prior.name == "tv" else weight * laplacian**3)


def tv_gradient(canvas: Tensor) -> Tensor:
    """-div(grad y / sqrt(|grad y|^2 + 0.02^2)), forward differences, periodic. (y, x) complex, dtype kept.

    The gradient of the total variation of a complex image (Rudin, Osher, Fatemi 1992), its corner rounded off so that
    slopes below 0.02 per pixel count as noise.
    """
    down, right = canvas.roll(-1, 0) - canvas, canvas.roll(-1, 1) - canvas
    slope = (down.abs().square() + right.abs().square() + _TV_SMOOTHING**2).sqrt_()
    down, right = down / slope, right / slope
    return (down.roll(1, 0) - down) + (right.roll(1, 1) - right)
