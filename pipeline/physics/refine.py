"""Probe, modes, positions and gains mended with the object, where what a file holds does not explain its frames.

The recipe for measured data: a few passes of ePIE, more probe modes made from the first, then all frames at once: one
pass over the scan moves object and probe by preconditioned steps with momentum, from time to time also each frame's
position and gain. Every sum runs over the frames in one order, so that a refinement gives the same bits every time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.config import RefineConfig, SolverConfig
from pipeline.physics.forward import (
    Frames,
    Optics,
    Passes,
    Windows,
    blank_canvas,
    extract,
    far_field,
    fields_through,
    intensity_of,
    near_field,
    pad_canvas,
    scatter,
    to_corner,
    windows_of,
    with_gain,
)
from pipeline.physics.gauge import BLANK
from pipeline.physics.losses import residual_factor, without_bad
from pipeline.physics.precondition import phase_filter
from pipeline.physics.prior import Prior, laplacian_spectrum, prior_denominator
from pipeline.physics.solver import SolverState, StepRule, advance, kept, step_scale

MOST_MODES: Final = 6
MODES_BY_EVIDENCE: Final = 4
"""Modes of a probe that evidence asked to refine; 6 explain frames a little better and cost a fifth more."""

REFINING_PRIOR: Final = Prior(name="tv", weight=0.01)
"""What the object is believed to be while probe and positions are found."""

_MODE_SHARE: Final = 0.05
_FIRST_MOVE, _MOVE_EVERY, _MOVE_STEP = 6, 2, 1.5
_LEAST_AMPLITUDE: Final = 1e-6
_REFRESH_EVERY: Final = 5
_LEAST_SLOPE: Final = 1e-3
"""Of an object that tells a position, in its own amplitude per pixel."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RefineState:
    """What a pass leaves behind, enough to go on to the same bits. Solver's gauge.

    canvas, momentum : (canvas_y, canvas_x) complex, the object and its last change.
    probe, probe_momentum : (mode, N, N) complex, sqrt(photon).
    den : (canvas_y, canvas_x) real, as in `SolverState`; of the last refresh.
    shift : (frame, 2) float64, what is added to each position (y, x), object pixels.
    gain : (frame,) float64, light of each frame over the mean.
    boost : (canvas_y, canvas_x//2 + 1) real, the phase preconditioner of the last refresh.
    start_passes : of ePIE, done; iteration : passes after them.
    """

    canvas: Tensor
    momentum: Tensor
    probe: Tensor
    probe_momentum: Tensor
    den: Tensor
    boost: Tensor
    shift: Tensor
    gain: Tensor
    start_passes: int
    iteration: int


def adjusted(passes: Passes, state: RefineState) -> Passes:
    """The same passes with the refined positions and gains of a state."""
    return moved(passes, shift=state.shift, gain=state.gain)


def moved(passes: Passes, *, shift: Tensor | None, gain: Tensor | None) -> Passes:
    """The same passes with shifts (frame, 2) added to the positions and with gains (frame,); None leaves them."""

    def again() -> Iterator[Frames]:
        for batch in passes():
            yield moved_frames(batch, shift=shift, gain=gain)

    return again


def moved_frames(batch: Frames, *, shift: Tensor | None, gain: Tensor | None) -> Frames:
    """A batch of `moved`."""
    return batch._replace(
        positions=batch.positions if shift is None else batch.positions + shift[batch.index],
        gain=batch.gain if gain is None else gain[batch.index],
    )


def start_refinement(optics: Optics, *, n_frames: int) -> RefineState:
    """Blank object, the probe of the optics, positions and gains as they are. Reads nothing.

    Parameters
    ----------
    n_frames : of the scan, those that do not count included.
    """
    canvas = blank_canvas(optics)
    return RefineState(
        canvas=canvas,
        momentum=torch.zeros_like(canvas),
        probe=optics.probe,
        probe_momentum=torch.zeros_like(optics.probe),
        den=torch.zeros_like(canvas.real),
        boost=canvas.real.new_ones((canvas.shape[0], canvas.shape[1] // 2 + 1)),
        shift=torch.zeros((n_frames, 2), dtype=torch.float64),
        gain=torch.ones(n_frames, dtype=torch.float64),
        start_passes=0,
        iteration=0,
    )


def with_probe(optics: Optics, probe: Tensor) -> Optics:
    """The optics of another probe in the solver's gauge, its support the whole window. (mode, N, N) complex."""
    return replace(
        optics,
        probe=probe,
        blank_exit=probe * BLANK,
        support=probe.shape[-1],
        peak=float(probe.abs().square().sum(0).max()),
    )


def with_modes(probe: Tensor, n_modes: int) -> Tensor:
    """A probe of `n_modes` modes: its own, and for those missing the first times x, y, xy, x^2 - s, y^2 - s.

    The shape goes by the mode's number from 2 on; each made one gets 5 % of the energy.

    Parameters
    ----------
    probe : (mode, N, N) complex; its total energy is kept.
    n_modes : at most 6, or as many as the probe has.
    """
    own = probe[:n_modes]
    missing = n_modes - len(own)
    assert missing == 0 or n_modes <= MOST_MODES, "more were refused before any work"
    if missing == 0:
        return own.clone()
    energy = own.abs().square().sum()
    light = own[0].abs().square()
    line = torch.arange(probe.shape[-1], dtype=light.dtype)
    y = (line - (light.sum(1) * line).sum() / light.sum())[:, None]
    x = (line - (light.sum(0) * line).sum() / light.sum())[None, :]
    spread_y, spread_x = ((light * axis.square()).sum() / light.sum() for axis in (y, x))
    shapes = (x + 0 * y, y + 0 * x, x * y, x.square() - spread_x + 0 * y, y.square() - spread_y + 0 * x)
    made = torch.stack([own[0] * shape for shape in shapes[len(own) - 1 : n_modes - 1]])
    made *= (_MODE_SHARE * energy / made.abs().square().sum((1, 2), keepdim=True)).sqrt()
    return torch.cat([own * (1 - _MODE_SHARE * missing) ** 0.5, made])


Witness = Callable[[Tensor, Tensor, Tensor], None]


def ignore(index: Tensor, measured: Tensor, predicted: Tensor) -> None:
    """The witness that looks away."""


def epie(
    passes: Passes,
    optics: Optics,
    *,
    start: RefineState,
    object_step: float = 1.0,
    probe_step: float = 1.0,
    use: NDArray[np.bool_] | None = None,
) -> Iterator[RefineState]:
    """The extended ptychographic iterative engine: the state after each pass, frame after frame in store order.

    o += a conj(P) d / max |P|^2 and P += b conj(o) d / max |o|^2, d the change of the exit wave that gives a frame its
    amplitudes, bad pixels left as they are (Maiden and Rodenburg 2009). Endless: the caller stops.

    Parameters
    ----------
    object_step, probe_step : a and b.
    use : (frame,) bool, the frames that count; None where all do.
    """
    state = start
    while True:
        padded, probe = pad_canvas(state.canvas, outside=BLANK), state.probe.clone()
        for batch in kept(passes(), use):
            windows = windows_of(batch.positions, with_probe(optics, probe))
            measured = to_corner(batch.intensity).to(probe.real.dtype).sqrt()
            for row in range(len(measured)):
                window = Windows(*(values[row : row + 1] for values in windows))
                patch = extract(padded, window)[0]
                change = _change_of_wave(probe * patch, measured[row], optics.bad)
                towards = (change * probe.conj()).sum(0) * (object_step / float(probe.abs().square().sum(0).max()))
                probe += change * patch.conj() * (probe_step / float(patch.abs().square().max()))
                scatter(towards[None], window, onto=padded)
        canvas = padded[1:-1, 1:-1].clone()
        state = replace(state, canvas=canvas, probe=probe, start_passes=state.start_passes + 1)
        yield state


def _change_of_wave(waves: Tensor, measured: Tensor, bad: Tensor | None) -> Tensor:
    """What brings a frame's exit waves (mode, N, N) to its measured amplitudes (N, N), both in FFT order."""
    fields = far_field(waves)
    predicted = fields.abs().square().sum(0).sqrt_()
    ratio = without_bad(measured / predicted.clamp(min=_LEAST_AMPLITUDE) - 1, bad)
    return near_field(fields * ratio)


def refine(
    passes: Passes,
    optics: Optics,
    *,
    prior: Prior,
    solver: SolverConfig,
    config: RefineConfig,
    start: RefineState,
    use: NDArray[np.bool_] | None = None,
    witness: Witness = ignore,
) -> Iterator[RefineState]:
    """The state after each pass until `config.iterations` are done; ePIE's come first, then the modes are made.

    Object and probe come from the frames that count; shifts and gains are found for every frame that streams, those
    held out included: three numbers for N^2 pixels.

    Parameters
    ----------
    passes : all frames, positions as stored.
    solver : its loss, background and step count.
    config : positions are refined where `what` names them.
    start : `start_refinement`, or any state of the same refinement, to go on to the same bits.
    use : (frame,) bool, the frames that count; None where all do.
    witness : is handed index, measured and predicted photons of every batch, but not in the passes of ePIE.
    """
    state, starting = start, epie(passes, optics, start=start, use=use)
    while state.start_passes < config.start_passes:
        state = next(starting)
        yield state
    laplacian = laplacian_spectrum(optics.geometry.shape, dtype=state.den.dtype)
    while state.iteration < config.iterations:
        if state.iteration == 0:
            probe = with_modes(state.probe, config.modes or len(state.probe))
            state = replace(state, probe=probe, probe_momentum=torch.zeros_like(probe))
        ahead = state.canvas + _carry(state) * state.momentum
        lens = with_probe(optics, state.probe + _carry(state) * state.probe_momentum)
        sums = _pass(
            passes(),
            pad_canvas(ahead, outside=BLANK),
            lens,
            state,
            solver=solver,
            config=config,
            use=use,
            witness=witness,
        )
        state = _advanced(state, ahead, lens, sums, prior=prior, laplacian=laplacian, solver=solver, config=config)
        yield state


def _carry(state: RefineState) -> float:
    """Nesterov's k / (k + 3)."""
    return state.iteration / (state.iteration + 3)


@dataclass(kw_only=True, slots=True)
class _Sums:
    """What one pass adds up, in place.

    canvas : padded G. probe : (mode, N, N), the sum of IFFT(r) conj(o); probe_light : (N, N), that of |o|^2.
    den : padded, where it is due. move : (frame, 2), where due. light : (frame, 2), measured and predicted.
    seen : (frame,) bool, those that streamed; counting : those of them that count.
    """

    canvas: Tensor
    probe: Tensor
    probe_light: Tensor
    den: Tensor | None
    move: Tensor | None
    light: Tensor
    seen: Tensor
    counting: Tensor


def _pass(
    batches: Iterable[Frames],
    padded: Tensor,
    lens: Optics,
    state: RefineState,
    *,
    solver: SolverConfig,
    config: RefineConfig,
    use: NDArray[np.bool_] | None,
    witness: Witness,
) -> _Sums:
    number, n_frames = state.iteration + 1, len(state.gain)
    moving = "positions" in config.what and number >= _FIRST_MOVE and (number - _FIRST_MOVE) % _MOVE_EVERY == 0
    sums = _Sums(
        canvas=torch.zeros_like(padded),
        probe=torch.zeros_like(lens.probe),
        probe_light=torch.zeros_like(lens.probe[0].real),
        den=torch.zeros_like(padded.real) if state.iteration % _REFRESH_EVERY == 0 else None,
        move=torch.zeros_like(state.shift) if moving else None,
        light=torch.zeros((n_frames, 2), dtype=torch.float64),
        seen=torch.zeros(n_frames, dtype=torch.bool),
        counting=torch.zeros(n_frames, dtype=torch.bool),
    )
    counts = None if use is None else torch.from_numpy(use)
    for batch in batches:
        _add_batch(
            moved_frames(batch, shift=state.shift, gain=state.gain),
            padded,
            lens,
            sums,
            solver=solver,
            counts=counts,
            witness=witness,
        )
    return sums


def _add_batch(
    batch: Frames,
    padded: Tensor,
    lens: Optics,
    sums: _Sums,
    *,
    solver: SolverConfig,
    counts: Tensor | None,
    witness: Witness,
) -> None:
    assert batch.gain is not None, "adjusted frames have one"
    windows = windows_of(batch.positions, lens)
    patches = extract(padded, windows)
    fields = with_gain(fields_through(patches, lens), batch.gain)
    predicted = intensity_of(fields)
    measured = without_bad(to_corner(batch.intensity).to(predicted.dtype), lens.bad)
    factor = without_bad(residual_factor(solver.loss, measured, predicted, background=solver.background), lens.bad)
    witness(batch.index, measured, predicted)
    sums.seen[batch.index] = True
    sums.counting[batch.index] = True if counts is None else counts[batch.index]
    sums.light[batch.index, 0] = measured.sum((1, 2), dtype=torch.float64)
    sums.light[batch.index, 1] = without_bad(predicted, lens.bad).sum((1, 2), dtype=torch.float64)
    torch.view_as_real(fields).mul_(factor[:, None, :, :, None])
    waves = with_gain(near_field(fields), batch.gain)
    asked = (waves * lens.probe.conj()).sum(1)
    if sums.move is not None:
        sums.move[batch.index] = _moves(asked, patches, lens, batch.gain)
    rows = None if counts is None else counts[batch.index].nonzero()[:, 0]
    if rows is not None and len(rows) < len(patches):
        waves, patches, asked = (values.index_select(0, rows) for values in (waves, patches, asked))
        windows = Windows(*(values.index_select(0, rows) for values in windows))
    scatter(asked / lens.peak, windows, onto=sums.canvas)
    sums.probe += (waves * patches.conj()[:, None]).sum(0)
    sums.probe_light += patches.abs().square().sum(0)
    if sums.den is not None:
        light = lens.probe.abs().square().sum(0) / lens.peak
        scatter(light.expand(len(patches), -1, -1), windows, onto=sums.den)


def _moves(asked: Tensor, patches: Tensor, lens: Optics, gain: Tensor) -> Tensor:
    """By how much each frame's position should change: the least squares of IFFT(r) on sqrt(g) P grad o.

    Moves fade out where the slope is less than 1/1,000 of the object's amplitude per pixel: a flat object tells none.

    Parameters
    ----------
    asked : (B, N, N) complex, the sum over modes of sqrt(g) conj(P) IFFT(r).
    patches : (B, N, N) complex, what each frame sees.

    Returns
    -------
    (B, 2) float64 (y, x), object pixels.
    """
    down, right = torch.gradient(patches, dim=(1, 2))
    light = lens.probe.abs().square().sum(0)

    def total(values: Tensor) -> Tensor:
        return values.sum((1, 2), dtype=torch.float64)

    across = gain * total((down.conj() * right).real * light)
    rows = [
        torch.stack([gain * total(down.abs().square_() * light), across], dim=1),
        torch.stack([across, gain * total(right.abs().square_() * light)], dim=1),
    ]
    towards = torch.stack([total((slope.conj() * asked).real) for slope in (down, right)], dim=1)
    ridge = (_LEAST_SLOPE**2 * gain * total(patches.abs().square_() * light)).clamp(min=1e-30)
    metric = torch.stack(rows, dim=1) + ridge[:, None, None] * torch.eye(2, dtype=torch.float64)
    moves: Tensor = torch.linalg.solve(metric, towards)
    return moves


def _advanced(
    state: RefineState,
    ahead: Tensor,
    lens: Optics,
    sums: _Sums,
    *,
    prior: Prior,
    laplacian: Tensor,
    solver: SolverConfig,
    config: RefineConfig,
) -> RefineState:
    den, boost = state.den, state.boost
    if sums.den is not None:
        den, boost = sums.den[1:-1, 1:-1].clone(), phase_filter(lens.probe, lens.geometry.shape, dtype=laplacian.dtype)
    rule = StepRule(
        first=0,
        stop=config.iterations,
        prior=prior,
        peak=lens.peak,
        laplacian=laplacian,
        denominator=step_scale(den, quantile=solver.quantile) + prior_denominator(prior, laplacian, peak=lens.peak),
        boost=boost,
        step=solver.step,
    )
    before = SolverState(canvas=state.canvas, momentum=state.momentum, iteration=state.iteration, den=den)
    after = advance(before, ahead, sums.canvas[1:-1, 1:-1], rule=rule)
    probe = lens.probe + sums.probe * (config.probe_step / float(sums.probe_light.max()))
    return RefineState(
        canvas=after.canvas,
        momentum=after.momentum,
        probe=probe,
        probe_momentum=probe - state.probe,
        den=den,
        boost=boost,
        shift=state.shift if sums.move is None else _moved(state, sums, config),
        gain=_gains(state, sums) if after.iteration % _REFRESH_EVERY == 0 else state.gain,
        start_passes=state.start_passes,
        iteration=after.iteration,
    )


def _moved(state: RefineState, sums: _Sums, config: RefineConfig) -> Tensor:
    """Shifts after a step, bounded before and after their mean is removed, which would only move the object."""
    assert sums.move is not None
    step = (_MOVE_STEP * sums.move).clamp(-config.max_step_px, config.max_step_px)
    shift = state.shift + step
    shift = shift - shift[sums.counting].mean(0)
    return (shift.clamp(-config.max_shift_px, config.max_shift_px)) * sums.seen[:, None]


def _gains(state: RefineState, sums: _Sums) -> Tensor:
    """Each frame's light over the mean of those that count; 1 for frames without light or not seen."""
    measured, predicted = sums.light.T
    known = sums.seen & (measured > 0) & (predicted > 0)
    gain = torch.where(known, state.gain * measured / predicted.clamp(min=1e-30), torch.ones_like(state.gain))
    return torch.where(known, gain / gain[known & sums.counting].mean(), gain)
