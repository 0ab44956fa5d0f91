"""The model `canvas`: a network that improves an object estimate, trained without truth on frames that it never saw.

The frames are halved; a solve of one half is what the network sees, the frames of the other half judge what it makes of
it. So nothing is learned from a frame's own noise. Everything is in the gauge of `physics.gauge`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.config import LossName, SolverConfig
from pipeline.errors import PlanError
from pipeline.learning.networks import UNet
from pipeline.physics.forward import (
    CanvasGeometry,
    Frames,
    Optics,
    Passes,
    canvas_gradient,
    fields_of,
    intensity_of,
    pad_canvas,
    scatter,
    to_corner,
    windows_of,
    with_gain,
)
from pipeline.physics.gauge import BLANK, photons
from pipeline.physics.losses import loss_of, loss_slope, without_bad
from pipeline.physics.prior import Prior
from pipeline.physics.refine import moved_frames
from pipeline.physics.solver import (
    SolverState,
    add_gradient,
    advance,
    blank_state,
    chosen_frames,
    data_gradient,
    kept,
    look_ahead,
    rules_of,
)
from pipeline.seeding import Purpose, permutation, words
from pipeline.stream.scan_stream import Batch

INPUTS: Final = 5
N_SPLITS: Final = 2
MULTIPLE: Final = 4
"""Sides that the network takes are multiples of this, 2^depth."""

BACKGROUND: Final = 0.01
"""b of the loss that the network is trained with, photons per pixel; that of the refinement where there was one."""
_CORRECTION: Final = 0.05
_AROUND: Final = 96
_BRIGHT: Final = 0.1
_SYMMETRIES: Final = 8


# --- halves


@dataclass(frozen=True, kw_only=True, slots=True)
class HalvesState:
    """Both solves of a split after a pass; the first axis of every tensor is the half. See `SolverState`."""

    canvas: Tensor
    momentum: Tensor
    den: Tensor
    iteration: int

    def half(self, number: int) -> SolverState:
        """One of the two solves."""
        return SolverState(
            canvas=self.canvas[number],
            momentum=self.momentum[number],
            den=self.den[number],
            iteration=self.iteration,
        )


def halves_of(split: int, *, seed: int, n_frames: int) -> NDArray[np.bool_]:
    """Which frames are in each half of a split. (2, frame) bool."""
    first = np.zeros(n_frames, np.bool_)
    first[permutation(seed, Purpose.HALVES, split, n=n_frames)[: n_frames // 2]] = True
    return np.stack([first, ~first])


def blank_halves(passes: Passes, optics: Optics, *, halves: NDArray[np.bool_]) -> HalvesState:
    """Both solves before their first pass. Reads the scan twice."""
    return _joined([blank_state(passes, optics, use=half) for half in halves])


def _joined(states: Sequence[SolverState]) -> HalvesState:
    return HalvesState(
        canvas=torch.stack([state.canvas for state in states]),
        momentum=torch.stack([state.momentum for state in states]),
        den=torch.stack([state.den for state in states]),
        iteration=states[0].iteration,
    )


def solve_halves(
    passes: Passes,
    optics: Optics,
    *,
    prior: Prior,
    config: SolverConfig,
    start: HalvesState,
    halves: NDArray[np.bool_],
) -> Iterator[HalvesState]:
    """Both solves after each pass: `solver.solve` of either half, with one reading of the scan for both."""
    state = start
    rules = [rules_of(prior, optics, den, config=config) for den in start.den]
    for pair in zip(*rules, strict=True):
        while pair[0].first <= state.iteration < pair[0].stop:
            before = [state.half(number) for number in range(2)]
            ahead = [look_ahead(half, first=pair[0].first) for half in before]
            padded = [pad_canvas(canvas, outside=BLANK) for canvas in ahead]
            sums = [pad_canvas(torch.zeros_like(canvas), outside=0) for canvas in ahead]
            for batch in passes():
                for number in range(2):
                    for frames in kept([batch], halves[number]):
                        add_gradient(frames, padded[number], optics, config=config, onto=sums[number])
            state = _joined(
                [
                    advance(before[number], ahead[number], sums[number][1:-1, 1:-1], rule=pair[number])
                    for number in range(2)
                ]
            )
            yield state


# --- what the network sees, and what it makes of it


@dataclass(frozen=True, kw_only=True, slots=True)
class Start:
    """An object estimate as the network meets it.

    canvas : (y, x) complex. turn : the unit factor that gives it zero mean phase where light fell.
    inputs : (5, Y, X) float32, sides padded to multiples of 4: 5 (Re o - 0.7), 5 Im o, 20 Re g, 20 Im g,
        min(den / median, 4) / 2 - 0.5, with g = G / (den + 0.05); outside the canvas blank object without light.
    """

    canvas: Tensor
    turn: Tensor
    inputs: Tensor


def start_of(canvas: Tensor, den: Tensor, gradient: Tensor) -> Start:
    """The start from a solve's canvas, the light on it, and the G of its frames there; all (y, x)."""
    bright = canvas[den > _BRIGHT * den.max()]
    mean = bright.mean()
    turn = mean.conj() / mean.abs()
    turned, asked = canvas * turn, gradient * turn / (den + 0.05)
    light = (den / den[den > 0].median()).clamp(max=4) / 2 - 0.5
    planes = torch.stack([5 * (turned.real - BLANK), 5 * turned.imag, 20 * asked.real, 20 * asked.imag, light]).float()
    shape = [MULTIPLE * math.ceil(n / MULTIPLE) for n in canvas.shape]
    inputs = planes.new_zeros((INPUTS, *shape))
    inputs[-1] = -0.5
    inputs[:, : canvas.shape[0], : canvas.shape[1]] = planes
    return Start(canvas=canvas, turn=turn, inputs=inputs)


def started(
    passes: Passes, optics: Optics, state: SolverState, *, config: SolverConfig, use: NDArray[np.bool_] | None
) -> Start:
    """The start from a finished solve. Reads the scan once, for its gradient."""
    gradient = data_gradient(kept(passes(), use), state.canvas, optics, config=config)
    return start_of(state.canvas, state.den, gradient)


def symmetric(planes: Tensor, number: int) -> Tensor:
    """One of the 8 symmetries of the square: bit 0 transposes, bits 1 and 2 then flip rows and columns. (..., y, x)."""
    if number & 1:
        planes = planes.transpose(-2, -1)
    flips = [axis for bit, axis in ((2, -2), (4, -1)) if number & bit]
    return planes.flip(flips) if flips else planes


def unsymmetric(planes: Tensor, number: int) -> Tensor:
    """The inverse of `symmetric`."""
    flips = [axis for bit, axis in ((2, -2), (4, -1)) if number & bit]
    planes = planes.flip(flips) if flips else planes
    return planes.transpose(-2, -1) if number & 1 else planes


def correction(network: UNet, inputs: Tensor, *, symmetry: int) -> Tensor:
    """What the network adds to an object, seen in one symmetry. (5, y, x) float32 -> (y, x) complex64, turned gauge."""
    seen = symmetric(inputs, symmetry)[None].contiguous(memory_format=torch.channels_last)
    out = _CORRECTION * unsymmetric(network(seen).float()[0], symmetry)
    return torch.complex(out[0].contiguous(), out[1].contiguous())


# --- what the frames say about it


class _FrameLoss(torch.autograd.Function):
    """Mean loss of frames that a canvas predicts; its gradient is the solver's own adjoint, batch after batch."""

    @staticmethod
    def forward(
        ctx: Any, canvas: Tensor, frames: Frames, optics: Optics, loss: LossName, background: float, batch_size: int
    ) -> Tensor:
        """The mean over frames and good pixels, and the gradient for `backward`."""
        padded = pad_canvas(canvas.detach(), outside=BLANK)
        onto, total = torch.zeros_like(padded), 0.0
        good = optics.probe.shape[-1] ** 2 - (0 if optics.bad is None else int(optics.bad.sum()))
        for first in range(0, len(frames.index), batch_size):
            rows = torch.arange(first, min(first + batch_size, len(frames.index)))
            some = chosen_frames(frames, rows)
            windows = windows_of(some.positions, optics)
            fields = with_gain(fields_of(padded, windows, optics), some.gain)
            light, measured = intensity_of(fields), without_bad(to_corner(some.intensity), optics.bad)
            losses = without_bad(loss_of(loss, measured, light, background=background), optics.bad)
            total += float(losses.sum(dtype=torch.float64))
            slope = without_bad(loss_slope(loss, measured, light, background=background), optics.bad)
            torch.view_as_real(fields).mul_(2 * slope[:, None, :, :, None])
            scatter(canvas_gradient(with_gain(fields, some.gain), optics) * optics.peak, windows, onto=onto)
        n = good * len(frames.index)
        ctx.save_for_backward(onto[1:-1, 1:-1] / n)
        return canvas.real.new_tensor(total / n)

    @staticmethod
    def backward(ctx: Any, *outer: Any) -> Any:
        """By the canvas alone."""
        (gradient,) = ctx.saved_tensors
        return gradient * outer[0], None, None, None, None, None


def frame_loss(
    canvas: Tensor, frames: Frames, optics: Optics, *, loss: LossName, background: float, batch_size: int
) -> Tensor:
    """Mean loss over frames and good pixels, differentiable by the canvas. Scalar.

    Parameters
    ----------
    canvas : (canvas_y, canvas_x) complex64 of the optics' geometry, solver's gauge.
    background : b, photons per pixel.
    batch_size : frames whose fields are in memory at a time.
    """
    apply = _FrameLoss.apply  # torch leaves it without types
    found: Tensor = apply(canvas, frames, optics, loss, background, batch_size)  # type: ignore[no-untyped-call]
    return found


@dataclass(frozen=True, kw_only=True, slots=True)
class CanvasTask:
    """Everything that a training step needs besides its batch; `loss(batch, step)` is all that `fit` knows.

    starts : of each half of each split: 2 split + half. halves : (split, 2, frame) bool.
    shift, gain : (frame, 2) and (frame,) float64, None where they are as stored.
    batch_size : frames whose fields are in memory at a time.
    """

    network: UNet
    starts: tuple[Start, ...]
    halves: NDArray[np.bool_]
    optics: Optics
    photons_scale: float
    shift: Tensor | None
    gain: Tensor | None
    loss_name: LossName
    background: float
    seed: int
    batch_size: int

    def loss(self, batch: Batch, step: int) -> Tensor:
        """The loss of a step: a random pair, a crop around the batch's first frame, a random symmetry. Scalar.

        Raises
        ------
        PlanError
            No frame of the target half lies inside the crop.
        """
        first, second = words(self.seed, Purpose.STEP, step, n=2).tolist()
        pair, symmetry = int(first % len(self.starts)), int(second % _SYMMETRIES)
        split, half = divmod(pair, 2)
        frames = self._frames(batch)
        start = self.starts[pair]
        crop = crop_around(frames.positions[0], self.optics, shape=tuple(start.inputs.shape[1:]))
        target = torch.from_numpy(self.halves[split, 1 - half])[frames.index]
        rows = (target & inside(frames.positions, crop, self.optics)).nonzero()[:, 0]
        if len(rows) == 0:
            raise PlanError(
                f"step {step}: none of {len(frames.index)} frames of the batch lies {self.optics.support // 2 + 1} px "
                f"inside a crop of {crop.shape[0]} x {crop.shape[1]} px and belongs to the target half",
                code="canvas.crop",
                hint="--batch-size",
            )
        at = [begin - origin for begin, origin in zip(crop.origin, self.optics.geometry.origin, strict=True)]
        cut = (slice(at[0], at[0] + crop.shape[0]), slice(at[1], at[1] + crop.shape[1]))
        added = correction(self.network, start.inputs[(slice(None), *cut)], symmetry=symmetry)
        canvas = _padded_to(start.canvas, start.inputs.shape[1:])[cut] + added * start.turn.conj()
        return frame_loss(
            canvas,
            chosen_frames(frames, rows),
            replace(self.optics, geometry=crop),
            loss=self.loss_name,
            background=self.background,
            batch_size=self.batch_size,
        )

    def _frames(self, batch: Batch) -> Frames:
        frames = Frames(
            intensity=photons(batch.diffraction[:, 0], photons_scale=self.photons_scale),
            positions=batch.positions[:, 0],
            index=batch.indices[:, 0],
        )
        return moved_frames(frames, shift=self.shift, gain=self.gain)


def crop_around(position: Tensor, optics: Optics, *, shape: tuple[int, ...]) -> CanvasGeometry:
    """The crop of a step: side S + 96 rounded up to a multiple of 4, at most the canvas, moved to lie inside it.

    Parameters
    ----------
    position : (2,) float64 (y, x), its middle where possible. shape : of the padded canvas.
    """
    side = MULTIPLE * math.ceil((optics.support + _AROUND) / MULTIPLE)
    origin, sides = [], []
    for place, begin, extent in zip(position.tolist(), optics.geometry.origin, shape, strict=True):
        length = min(side, extent)
        origin.append(begin + min(max(round(place - begin - length / 2), 0), extent - length))
        sides.append(length)
    return CanvasGeometry(origin=(origin[0], origin[1]), shape=(sides[0], sides[1]))


def inside(positions: Tensor, crop: CanvasGeometry, optics: Optics) -> Tensor:
    """Which frames see the crop alone: at least S/2 + 1 px from its edges, any where it is the whole canvas. (B,)."""
    low = torch.tensor(crop.origin, dtype=positions.dtype)
    extent = torch.tensor(crop.shape, dtype=positions.dtype)
    margin = optics.support / 2 + 1
    whole = torch.tensor([c >= n for c, n in zip(crop.shape, optics.geometry.shape, strict=True)])
    within = (positions >= low + margin) & (positions <= low + extent - margin)
    return (within | whole).all(1)


def _padded_to(canvas: Tensor, shape: Sequence[int]) -> Tensor:
    padded = canvas.new_full(tuple(shape), BLANK)
    padded[: canvas.shape[0], : canvas.shape[1]] = canvas
    return padded


# --- inference

TILE: Final = 256
HALO: Final = 24
"""The network looks 18 px far."""


def improved(network: UNet, start: Start) -> Tensor:
    """The object that the network makes of an estimate: the mean over 8 symmetries, tile by tile. (y, x) complex64."""
    height, width = start.inputs.shape[1:]
    added = torch.zeros((height, width), dtype=torch.complex64)
    with torch.no_grad():
        for top in range(0, height, TILE):
            for left in range(0, width, TILE):
                _add_tile(network, start.inputs, added, top, left)
    height, width = start.canvas.shape
    return start.canvas + added[:height, :width] * start.turn.conj()


def _add_tile(network: UNet, inputs: Tensor, added: Tensor, top: int, left: int) -> None:
    height, width = added.shape
    outer = (
        slice(max(top - HALO, 0), min(top + TILE + HALO, height)),
        slice(max(left - HALO, 0), min(left + TILE + HALO, width)),
    )
    seen = inputs[(slice(None), *outer)]
    total = sum((correction(network, seen, symmetry=number) for number in range(_SYMMETRIES)), torch.zeros(()))
    inner = (slice(top, min(top + TILE, height)), slice(left, min(left + TILE, width)))
    cut = tuple(
        slice(part.start - whole.start, part.stop - whole.start) for part, whole in zip(inner, outer, strict=True)
    )
    added[inner] = total[cut] / _SYMMETRIES
