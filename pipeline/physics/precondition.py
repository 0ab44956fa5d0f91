"""How strongly frames answer to phase of each spatial frequency, and the filter that evens it out.

Slow phase changes hardly change a frame, so plain steps restore them last. The answer follows from the probe alone.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import torch
from torch import Tensor

_N_FREQUENCIES: Final = 24
_FLOOR: Final = 0.01
_LEAST_AMPLITUDE: Final = 0.05


def phase_response(probe: Tensor) -> tuple[Tensor, Tensor]:
    """h(k), by which a weak phase wave of frequency k changes the amplitudes of a frame, made to rise with k.

    h(k) = half the sum over {cos, sin} x {x, y} of
    sum(Re[conj(F0)/|F0| FFT(i P cos 2 pi k x)]^2) / sum |F0|^2, F0 = FFT P; several modes add inside Re with
    |F0|^2 = sum over modes. Then the running maximum.

    Parameters
    ----------
    probe : (mode, N, N) complex.

    Returns
    -------
    Frequencies (24,) float64 in cycles per pixel from 0 to 0.5, and h (24,) float64, 0 to about 1.
    """
    waves = probe.to(torch.complex128)
    pixels = torch.arange(probe.shape[-1], dtype=torch.float64) - probe.shape[-1] // 2
    frequencies = torch.linspace(0, 0.5, _N_FREQUENCIES, dtype=torch.float64)
    blank = torch.fft.fft2(waves, norm="ortho")
    light = blank.abs().square().sum(0)
    unit = blank.conj() / light.sqrt().clamp(min=1e-150)
    angles = 2 * math.pi * frequencies[:, None] * pixels
    response = torch.zeros(_N_FREQUENCIES, dtype=torch.float64)
    for wave in (angles.cos(), angles.sin()):
        for grid in (wave[:, None, :, None], wave[:, None, None, :]):
            change = (unit * torch.fft.fft2(1j * waves * grid, norm="ortho")).real.sum(1)
            response += change.square().sum((-2, -1))
    return frequencies, torch.cummax(response / (2 * light.sum()), 0).values


def phase_filter(probe: Tensor, shape: tuple[int, int], *, dtype: torch.dtype) -> Tensor:
    """B(k) = (h_max + 0.01) / (h(|k|) + 0.01) on the half spectrum of a canvas. (y, x//2 + 1) real, FFT order.

    Between the frequencies of `phase_response` h is interpolated; beyond 0.5, in the corners, it stays.
    """
    frequencies, response = phase_response(probe)
    ky = torch.fft.fftfreq(shape[0], dtype=torch.float64)[:, None]
    kx = torch.fft.rfftfreq(shape[1], dtype=torch.float64)
    there = np.interp(torch.hypot(ky, kx).numpy(), frequencies.numpy(), response.numpy())
    return ((response.max() + _FLOOR) / (torch.from_numpy(there) + _FLOOR)).to(dtype)


def boost_phase(update: Tensor, canvas: Tensor, boost: Tensor) -> Tensor:
    """The update with its phase part filtered by B(k). (y, x) complex, dtype kept.

    q = u / y, whose imaginary part is the change of phase; Im q is filtered; u' = q y. Where |y| <= 0.05 stands 0.05.

    Parameters
    ----------
    update, canvas : (y, x) complex, u and y.
    boost : (y, x//2 + 1) real, from `phase_filter`.
    """
    base = canvas.masked_fill(canvas.abs() <= _LEAST_AMPLITUDE, _LEAST_AMPLITUDE)
    ratio = update / base
    phase = torch.fft.irfft2(torch.fft.rfft2(ratio.imag).mul_(boost), s=update.shape)
    return torch.complex(ratio.real, phase) * base
