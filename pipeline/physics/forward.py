"""What each frame sees of the canvas, carried to the detector, with the exact adjoint of every step.

Bilinear extraction, probe modes, unitary FFT. Frames stay in FFT order (zero frequency at [0, 0]) inside; `to_corner`
and `to_centre` are where the order of disk and people, zero frequency at [N//2, N//2], comes in and goes out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from pipeline.physics.gauge import BLANK, Gauge


class Frames(NamedTuple):
    """Some frames of a scan, as they stream.

    intensity : (B, N, N) float32 photons, zero frequency at [N//2, N//2].
    positions : (B, 2) float64 pairs (y, x), object pixels: a frame at p sees rows p_y - N/2 ... p_y + N/2 - 1.
    index : (B,) int64, which frames of the scan.
    gain : (B,) real, light of each frame over the mean; None where all are equal.
    """

    intensity: Tensor
    positions: Tensor
    index: Tensor  # type: ignore[assignment]  # hides tuple.index, which nobody calls on frames
    gain: Tensor | None = None


Passes: TypeAlias = Callable[[], Iterable[Frames]]
"""Each call begins a pass: the same batches in the same order, so that sums have the same bits."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CanvasGeometry:
    """Where the canvas lies on the scan's pixel grid: `origin` (y, x) of its element [0, 0], and its `shape`."""

    origin: tuple[int, int]
    shape: tuple[int, int]


class Windows(NamedTuple):
    """Where frames touch the canvas.

    pixels : (B, S+1, S+1) int64 into the canvas padded by one pixel on each side, flattened.
    part_y, part_x : (B, 1, 1) float, the share of the next row and column.
    """

    pixels: Tensor
    part_y: Tensor
    part_x: Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Optics:
    """Everything that stands between canvas and frames, prepared once.

    probe : (mode, N, N) complex in the solver's gauge, sqrt(photon).
    blank_exit : (mode, N, N) complex, what leaves a blank object: the exit wave outside the support.
    bad : (N, N) bool in FFT order, pixels without meaning, or None.
    support : S, side in pixels of the central square of a frame's window that sees the canvas.
    peak : max over pixels of the sum over modes of |P|^2, photons.
    """

    probe: Tensor
    blank_exit: Tensor
    bad: Tensor | None
    support: int
    peak: float
    geometry: CanvasGeometry
    gauge: Gauge

    @property
    def inside(self) -> slice:
        """The support among the N rows (or columns) of a window."""
        return support_slice(self.probe.shape[-1], self.support)

    @property
    def support_probe(self) -> Tensor:
        """The probe inside the support. (mode, S, S) complex."""
        return self.probe[:, self.inside, self.inside]


def support_slice(n: int, support: int) -> slice:
    """The central `support` of `n` pixels, about pixel n//2."""
    first = n // 2 - support // 2
    return slice(first, first + support)


def support_side(probe: Tensor, *, energy: float) -> int:
    """S: side of the smallest even central square with this share of the probe's energy, at least N/2.

    Parameters
    ----------
    probe : (mode, N, N) complex.
    energy : share of the energy over all modes, 0 to 1.
    """
    n = probe.shape[-1]
    light = probe.abs().double().square().sum(0)
    for side in range(2 * -(-n // 4), n, 2):
        inside = support_slice(n, side)
        if float(light[inside, inside].sum()) >= energy * float(light.sum()):
            return side
    return n


def make_optics(
    probe: Tensor, *, gauge: Gauge, geometry: CanvasGeometry, support: int, valid: Tensor | None = None
) -> Optics:
    """The optics of a probe in the source's scale.

    Parameters
    ----------
    probe : (mode, N, N) complex64 or complex128, which sets the precision of everything after it.
    support : S; N for an object that reaches over whole windows.
    valid : (N, N) bool, True = good, zero frequency at [N//2, N//2].
    """
    scaled = gauge.probe_to_solver(probe)
    return Optics(
        probe=scaled,
        blank_exit=scaled * BLANK,
        bad=None if valid is None else ~to_corner(valid),
        support=support,
        peak=float(scaled.abs().square().sum(0).max()),
        geometry=geometry,
        gauge=gauge,
    )


def blank_canvas(optics: Optics) -> Tensor:
    """The blank object, 0.7 everywhere. (canvas_y, canvas_x) complex of the probe's dtype."""
    return torch.full(optics.geometry.shape, BLANK, dtype=optics.probe.dtype)


def pad_canvas(canvas: Tensor, *, outside: complex) -> Tensor:
    """The canvas with a border of one pixel that stands for everything outside it. (y + 2, x + 2)."""
    padded = canvas.new_full((canvas.shape[0] + 2, canvas.shape[1] + 2), outside)
    padded[1:-1, 1:-1] = canvas
    return padded


def windows_at(positions: Tensor, *, geometry: CanvasGeometry, support: int, dtype: torch.dtype) -> Windows:
    """The canvas pixels that frames at these positions see, any of them outside included.

    Parameters
    ----------
    positions : (B, 2) float64 (y, x), object pixels.
    support : S; the window's rows are p_y - S//2 ... p_y - S//2 + S - 1.
    dtype : real dtype of the interpolation.
    """
    corner = positions - torch.tensor(geometry.origin, dtype=positions.dtype) - support // 2
    whole = corner.floor()
    part = (corner - whole).to(dtype)[:, :, None, None]
    line = whole.long()[:, :, None] + torch.arange(1, support + 2)
    height, width = geometry.shape
    rows, columns = line[:, 0].clamp(0, height + 1), line[:, 1].clamp(0, width + 1)
    pixels = rows[:, :, None] * (width + 2) + columns[:, None, :]
    return Windows(pixels=pixels, part_y=part[:, 0], part_x=part[:, 1])


def extract(padded: Tensor, windows: Windows) -> Tensor:
    """What each frame sees, bilinear between pixels. (y + 2, x + 2) complex -> (B, S, S) of its dtype."""
    seen = padded.reshape(-1).index_select(0, windows.pixels.reshape(-1))
    return between(seen.view(windows.pixels.shape), windows)


def between(pixels: Tensor, windows: Windows) -> Tensor:
    """The bilinear step of `extract`: whole pixels to where the frame stood. (B, S+1, S+1) complex -> (B, S, S)."""
    seen = torch.view_as_real(pixels)
    seen = torch.lerp(seen[:, :-1], seen[:, 1:], windows.part_y[..., None])
    seen = torch.lerp(seen[:, :, :-1], seen[:, :, 1:], windows.part_x[..., None])
    return torch.view_as_complex(seen)


def scatter(patches: Tensor, windows: Windows, *, onto: Tensor) -> None:
    """Add to a padded canvas what the adjoint of `extract` makes of patches, frame after frame.

    Parameters
    ----------
    patches : (B, S, S), of the dtype of `onto`.
    onto : (y + 2, x + 2), changed in place; its border collects what fell outside. Adding in one dimension goes in
        the order of the index on a CPU, whatever the number of threads, so sums have the same bits every time.
    """
    onto.view(-1).index_add_(0, windows.pixels.reshape(-1), spread(patches, windows).view(-1))


def spread(patches: Tensor, windows: Windows) -> Tensor:
    """The adjoint of `between`: each value shared among the four pixels around it. (B, S, S) -> (B, S+1, S+1)."""
    b, s, _ = patches.shape
    wide = patches.new_zeros((b, s, s + 1))
    ahead = patches * windows.part_x
    wide[:, :, :-1] = patches - ahead
    wide[:, :, 1:] += ahead
    shared = patches.new_zeros((b, s + 1, s + 1))
    ahead = wide * windows.part_y
    shared[:, :-1] = wide - ahead
    shared[:, 1:] += ahead
    return shared


def far_field(exit_waves: Tensor) -> Tensor:
    """The field on the detector, unitary, in FFT order. (..., N, N) complex, dtype kept."""
    fields: Tensor = torch.fft.fft2(exit_waves, norm="ortho")
    return fields


def near_field(fields: Tensor) -> Tensor:
    """The adjoint, which is the inverse, of `far_field`. (..., N, N) complex, dtype kept."""
    exit_waves: Tensor = torch.fft.ifft2(fields, norm="ortho")
    return exit_waves


def to_corner(frames: Tensor) -> Tensor:
    """Zero frequency from [N//2, N//2] to [0, 0]: the order inside. (..., N, N), any dtype."""
    shifted: Tensor = torch.fft.ifftshift(frames, dim=(-2, -1))
    return shifted


def to_centre(frames: Tensor) -> Tensor:
    """Zero frequency from [0, 0] to [N//2, N//2]: the order outside. (..., N, N), any dtype."""
    shifted: Tensor = torch.fft.fftshift(frames, dim=(-2, -1))
    return shifted


def fields_of(padded: Tensor, windows: Windows, optics: Optics) -> Tensor:
    """The detector field of each frame and mode. (B, mode, N, N) complex in FFT order, sqrt(photon).

    F = FFT(P o), o the canvas inside the support and blank outside it.
    """
    return fields_through(extract(padded, windows), optics)


def fields_through(patches: Tensor, optics: Optics) -> Tensor:
    """`fields_of` for patches that were extracted already. (B, S, S) -> (B, mode, N, N) complex."""
    waves = optics.blank_exit.expand(len(patches), -1, -1, -1).clone()
    torch.mul(optics.support_probe, patches[:, None], out=waves[:, :, optics.inside, optics.inside])
    return far_field(waves)


def with_gain(fields: Tensor, gain: Tensor | None) -> Tensor:
    """Fields of frames that were lit more or less than the mean, changed in place. (B, mode, N, N) complex, (B,)."""
    if gain is not None:
        torch.view_as_real(fields).mul_(gain.sqrt().to(fields.real.dtype)[:, None, None, None, None])
    return fields


def intensity_of(fields: Tensor) -> Tensor:
    """Photons per pixel, modes adding as intensities. (B, mode, N, N) complex -> (B, N, N) real."""
    photons = fields.real.square().add_(fields.imag.square())
    return photons[:, 0] if photons.shape[1] == 1 else photons.sum(1)


def canvas_gradient(fields: Tensor, optics: Optics) -> Tensor:
    """The adjoint of `fields_of` up to `scatter`: sum over modes of IFFT(r) conj(P) / max |P|^2. (B, S, S) complex.

    Parameters
    ----------
    fields : (B, mode, N, N) complex residuals on the detector in FFT order.
    """
    waves = near_field(fields)[:, :, optics.inside, optics.inside]
    weighted = waves * (optics.support_probe.conj() / optics.peak)
    return weighted[:, 0] if weighted.shape[1] == 1 else weighted.sum(1)


def expected_intensity(canvas: Tensor, positions: Tensor, optics: Optics) -> Tensor:
    """The frames that a canvas predicts. (B, N, N) real photons, zero frequency at [N//2, N//2].

    Parameters
    ----------
    canvas : (canvas_y, canvas_x) complex in the solver's gauge, blank outside.
    positions : (B, 2) float64 (y, x), object pixels.
    """
    windows = windows_of(positions, optics)
    return to_centre(intensity_of(fields_of(pad_canvas(canvas, outside=BLANK), windows, optics)))


def windows_of(positions: Tensor, optics: Optics) -> Windows:
    """`windows_at` with the geometry, support and precision of the optics."""
    real = optics.probe.real.dtype
    return windows_at(positions, geometry=optics.geometry, support=optics.support, dtype=real)
