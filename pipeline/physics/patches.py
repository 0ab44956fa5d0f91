"""What a frame says about the patch of object that it saw: the patch carried to the detector, and back.

A patch is the object on S x S pixels around a frame's position, sampled where the frame stood, between the pixels of
the scan's grid where need be; outside it the object is taken to be flat. Everything is in the gauge of `physics.gauge`
and in FFT order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from pipeline.config import LossName
from pipeline.physics.forward import Optics, far_field, near_field
from pipeline.physics.losses import light_of_probe, loss_of, loss_slope, without_bad

_LEAST_INTENSITY: Final = 1e-6
"""Photons: the phase of a darker field says nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PatchOptics:
    """Everything that stands between a patch and its frame, prepared once.

    probe : (mode, S, S) complex, sqrt(photon), inside the support.
    surround : (mode, N, N) complex, the far field of an object of 1 outside the support and 0 inside it.
    light : (S, S) real, sum over modes of |P|^2 / peak. peak : its largest value, photons.
    bad : (N, N) bool in FFT order, pixels without meaning, or None.
    energy : photons on good pixels of a frame of an object of 1.
    """

    probe: Tensor
    surround: Tensor
    light: Tensor
    peak: float
    bad: Tensor | None
    energy: float

    @property
    def support(self) -> int:
        """S."""
        return int(self.probe.shape[-1])

    @property
    def side(self) -> int:
        """N."""
        return int(self.surround.shape[-1])


def patch_optics(optics: Optics) -> PatchOptics:
    """The optics of a scan, for patches of its support."""
    outside, first = optics.probe.clone(), optics.inside.start
    outside[:, optics.inside, optics.inside] = 0
    probe = optics.support_probe.clone()
    return PatchOptics(
        probe=probe,
        surround=far_field(outside.roll((-first, -first), (-2, -1))),
        light=probe.abs().square().sum(0) / optics.peak,
        peak=optics.peak,
        bad=optics.bad,
        energy=light_of_probe(optics.probe, optics.bad),
    )


def mean_amplitude(measured: Tensor, optics: PatchOptics) -> Tensor:
    """The flat object as bright as the frame, sqrt(sum I / sum |FFT P|^2) over good pixels. (F, N, N) -> (F,)."""
    light = measured if optics.bad is None else measured.masked_fill(optics.bad, 0)
    return (light.sum((1, 2)) / optics.energy).sqrt()


def flat_patches(level: Tensor, optics: PatchOptics) -> Tensor:
    """The flat object that an estimate starts from. (F,) real -> (F, S, S) complex."""
    flat = level.to(optics.probe.dtype)[:, None, None]
    return flat.expand(-1, optics.support, optics.support)


def patch_fields(patches: Tensor, level: Tensor, optics: PatchOptics) -> Tensor:
    """The detector field of each patch and mode, differentiable. (F, mode, N, N) complex, sqrt(photon).

    A window moved to the corner changes the phase of a far field by a fixed ramp that no intensity shows, so patches
    are padded behind alone.

    Parameters
    ----------
    patches : (F, S, S) complex.
    level : (F,) real, the object outside the patches.
    """
    waves = optics.probe * patches[:, None]
    fields: Tensor = torch.fft.fft2(waves, s=(optics.side, optics.side), norm="ortho")
    return torch.addcmul(fields, level.to(fields.dtype)[:, None, None, None], optics.surround)


def patch_intensity(fields: Tensor) -> Tensor:
    """Photons per pixel, modes adding as intensities, differentiable. (F, mode, N, N) complex -> (F, N, N) real."""
    parts = torch.view_as_real(fields)
    return parts.square().sum((1, -1))


def asked_change(patches: Tensor, level: Tensor, measured: Tensor, optics: PatchOptics, *, damping: float) -> Tensor:
    """The change of each patch that its frame asks for, differentiable by the patches. (F, S, S) complex.

    sum over modes of IFFT(r) conj(P) / (sum |P|^2 + damping max |P|^2), r = (A - m) F / m, m = |F| over all modes.

    Parameters
    ----------
    measured : (F, N, N) real photons, A^2.
    """
    fields = patch_fields(patches, level, optics)
    magnitude = patch_intensity(fields).clamp(min=_LEAST_INTENSITY).sqrt()
    factor = measured.sqrt() / magnitude - 1
    if optics.bad is not None:
        factor = factor.masked_fill(optics.bad, 0)
    residual = torch.view_as_complex(torch.view_as_real(fields) * factor[:, None, :, :, None])
    waves = near_field(residual)[..., : optics.support, : optics.support]
    weight = optics.probe.conj() / (optics.peak * (optics.light + damping))
    return (waves * weight).sum(1)


class _PatchLoss(torch.autograd.Function):
    """Mean loss of frames that patches predict; its gradient is the exact adjoint."""

    @staticmethod
    def forward(
        ctx: Any, patches: Tensor, level: Tensor, measured: Tensor, optics: PatchOptics, loss: LossName,
        background: float,
    ) -> Tensor:  # fmt: skip
        """The mean over frames and good pixels, and the gradient for `backward`."""
        fields = patch_fields(patches, level, optics)
        light, measured = patch_intensity(fields), without_bad(measured.clone(), optics.bad)
        losses = without_bad(loss_of(loss, measured, light, background=background), optics.bad)
        slope = without_bad(loss_slope(loss, measured, light, background=background), optics.bad)
        n = len(patches) * (optics.side**2 - (0 if optics.bad is None else int(optics.bad.sum())))
        torch.view_as_real(fields).mul_(2 / n * slope[:, None, :, :, None])
        waves = near_field(fields)[..., : optics.support, : optics.support]
        ctx.save_for_backward((waves * optics.probe.conj()).sum(1))
        return losses.sum(dtype=torch.float64).div(n).to(light.dtype)

    @staticmethod
    def backward(ctx: Any, *outer: Any) -> Any:
        """By the patches alone."""
        (gradient,) = ctx.saved_tensors
        return gradient * outer[0], None, None, None, None, None


def patch_loss(
    patches: Tensor, level: Tensor, measured: Tensor, optics: PatchOptics, *, loss: LossName, background: float
) -> Tensor:
    """Mean loss over frames and good pixels, differentiable by the patches. Scalar.

    Parameters
    ----------
    patches : (F, S, S) complex. level : (F,) real, the object outside them.
    measured : (F, N, N) real photons.
    background : b, photons per pixel.
    """
    apply = _PatchLoss.apply  # torch leaves it without types
    found: Tensor = apply(patches, level, measured, optics, loss, background)  # type: ignore[no-untyped-call]
    return found
