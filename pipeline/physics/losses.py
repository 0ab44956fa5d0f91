"""How far a predicted intensity is from a measured one, and which change of the field would mend it.

Poisson where intensities are photons, amplitude where their scale is unknown. `b` is the background in photons.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from pipeline.config import LossName

REPORTED_BACKGROUND: Final = 0.05
"""b of reported losses, photons per pixel; 0.1 where the probe was refined."""

_LEAST_COUNT: Final = 1e-3


def poisson_nll(measured: Tensor, predicted: Tensor, *, background: float) -> Tensor:
    """Half the Poisson deviance of each pixel, 0 where the prediction is the measurement. Shape kept.

    (l + b) - I log(l + b) - I + I log max(I, 1e-3): the negative log-likelihood without what depends on I alone.

    Parameters
    ----------
    measured, predicted : (...) real photons, I and l; l without background.
    background : b, photons per pixel.
    """
    light = predicted + background
    return light - measured + measured * (measured.clamp(min=_LEAST_COUNT).log() - light.log())


def amplitude_loss(measured: Tensor, predicted: Tensor, *, background: float) -> Tensor:
    """2 (sqrt I - sqrt(l + b))^2 of each pixel: `poisson_nll` near its minimum, at any scale. Shape kept."""
    return (measured.sqrt() - (predicted + background).sqrt()).square() * 2


def loss_of(name: LossName, measured: Tensor, predicted: Tensor, *, background: float) -> Tensor:
    """The named loss of each pixel; see `poisson_nll` and `amplitude_loss`."""
    if name == "amplitude":
        return amplitude_loss(measured, predicted, background=background)
    return poisson_nll(measured, predicted, background=background)


def loss_slope(name: LossName, measured: Tensor, predicted: Tensor, *, background: float) -> Tensor:
    """The derivative of `loss_of` by the predicted light l of each pixel. Shape kept, real, per photon.

    Poisson: 1 - I / (l + b); amplitude: 2 (1 - sqrt(I / (l + b))).
    """
    share = measured / (predicted + background)
    if name == "amplitude":
        return share.sqrt_().neg_().add_(1).mul_(2)
    return share.neg_().add_(1)


def residual_factor(name: LossName, measured: Tensor, predicted: Tensor, *, background: float) -> Tensor:
    """What the detector field is multiplied by to give the residual field. Shape kept, real.

    Poisson: 0.5 (I - l) / (l + b); amplitude: (sqrt I - sqrt l) / sqrt(l + b), which is the same to first order.
    Both vanish where prediction and measurement agree: b steadies the quotient and is no light. With
    "poisson-background" it is light: 0.5 (I / (l + b) - 1).
    """
    steady = predicted + background
    if name == "poisson-background":
        return (measured / steady).sub_(1).mul_(0.5)
    if name == "poisson":
        return (measured - predicted).div_(steady).mul_(0.5)
    return (measured.sqrt() - predicted.sqrt()).div_(steady.sqrt_())


def without_bad(values: Tensor, bad: Tensor | None) -> Tensor:
    """Values with 0 at bad pixels, whatever stood there. (..., N, N), changed in place and returned."""
    return values if bad is None else values.masked_fill_(bad, 0)


def light_of_probe(probe: Tensor, bad: Tensor | None) -> float:
    """Photons of the probe alone on good pixels: the sum of |FFT P|^2 over them and over modes.

    Parameters
    ----------
    probe : (mode, N, N) complex.
    bad : (N, N) bool in FFT order, or None.
    """
    fields = torch.fft.fft2(probe.to(torch.complex128), norm="ortho")
    return float(without_bad(fields.abs().square(), bad).sum())
