"""The object from streamed frames: one pass over the scan is one step, and only canvases are kept between passes."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.config import SolverConfig
from pipeline.errors import SchemaError
from pipeline.physics.forward import (
    CanvasGeometry,
    Frames,
    Optics,
    Passes,
    blank_canvas,
    canvas_gradient,
    fields_of,
    intensity_of,
    make_optics,
    pad_canvas,
    scatter,
    support_side,
    to_corner,
    windows_of,
    with_gain,
)
from pipeline.physics.gauge import BLANK, Gauge
from pipeline.physics.losses import light_of_probe, residual_factor, without_bad
from pipeline.physics.precondition import boost_phase, phase_filter
from pipeline.physics.prior import Prior, laplacian_spectrum, prior_denominator, prior_gradient_spectrum

_LEAST_LIGHT: Final = 0.05


@dataclass(frozen=True, kw_only=True, slots=True)
class SolverState:
    """What a pass leaves behind, enough to go on to the same bits.

    canvas : o, (canvas_y, canvas_x) complex, solver's gauge; `Gauge.object_to_source` leads to the source's.
    momentum : the last change of it.
    iteration : passes done.
    den : (canvas_y, canvas_x) real, the light that fell on each pixel: scattered sum |P|^2 / max |P|^2.
    """

    canvas: Tensor
    momentum: Tensor
    iteration: int
    den: Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Survey:
    """What one pass tells about a scan before anything is solved.

    n_frames : frames that count. gauge : from their light. lowest, highest : corners (y, x) of the box of positions.
    photons_per_frame : mean light of a frame. mean_counts : photons per good pixel.
    """

    n_frames: int
    gauge: Gauge
    lowest: tuple[float, float]
    highest: tuple[float, float]
    photons_per_frame: float
    mean_counts: float


def kept(
    batches: Iterable[Frames], use: NDArray[np.bool_] | None, *, others: Callable[[Frames], None] = lambda frames: None
) -> Iterator[Frames]:
    """Batches without the frames that do not count; batches left empty are passed over.

    Parameters
    ----------
    use : (frame,) bool, by index in the scan; None where all count.
    others : is handed those that do not.
    """
    for batch in batches:
        counts = None if use is None else torch.from_numpy(use)[batch.index]
        if counts is None or bool(counts.all()):
            yield batch
            continue
        others(chosen_frames(batch, (~counts).nonzero()[:, 0]))
        if bool(counts.any()):
            yield chosen_frames(batch, counts.nonzero()[:, 0])


def chosen_frames(batch: Frames, rows: Tensor) -> Frames:
    """Some frames of a batch. (k,) int64 places in it."""
    return Frames(
        intensity=batch.intensity.index_select(0, rows),
        positions=batch.positions.index_select(0, rows),
        index=batch.index.index_select(0, rows),
        gain=None if batch.gain is None else batch.gain.index_select(0, rows),
    )


class Witness(Protocol):
    """Sees the frames that a solve may not use, and the canvas of the moment (canvas_y, canvas_x) complex."""

    def __call__(self, frames: Frames, canvas: Tensor) -> None:
        """Look at some frames."""


def ignore(frames: Frames, canvas: Tensor) -> None:
    """The witness that looks away."""


def good_light(intensity: Tensor, bad: Tensor | None) -> Tensor:
    """Photons of each frame on its good pixels. (B, N, N) and (N, N) bool in the same order -> (B,) float64."""
    light = intensity if bad is None else intensity.masked_fill(bad, 0)
    return light.sum((1, 2), dtype=torch.float64)


def survey_scan(
    passes: Passes, probe: Tensor, *, valid: Tensor | None = None, use: NDArray[np.bool_] | None = None
) -> Survey:
    """One pass over the scan: its gauge, its light and the box of its positions.

    Parameters
    ----------
    probe : (mode, N, N) complex, in the source's scale.
    valid : (N, N) bool, True = good, zero frequency at [N//2, N//2]; None where all are.
    use : (frame,) bool, the frames that count; None where all do.

    Raises
    ------
    SchemaError
        No frame counts, positions are not finite, or probe or frames hold no light.
    """
    n, roots, photons = 0, 0.0, 0.0
    bad = None if valid is None else ~valid
    lowest, highest = torch.full((2,), math.inf).double(), torch.full((2,), -math.inf).double()
    for batch in kept(passes(), use):
        totals = good_light(batch.intensity, bad)
        if not bool(batch.positions.isfinite().all()):
            raise SchemaError("positions of some frames are not finite", code="physics.positions")
        n, roots, photons = n + len(totals), roots + float(totals.sqrt().sum()), photons + float(totals.sum())
        lowest = torch.minimum(lowest, batch.positions.amin(0))
        highest = torch.maximum(highest, batch.positions.amax(0))
    if n == 0:
        raise SchemaError("no frame counts, so there is nothing to solve", code="physics.no_frames")
    light = light_of_probe(probe, None if bad is None else to_corner(bad))
    n_good = probe.shape[-1] ** 2 - (0 if bad is None else int(bad.sum()))
    return Survey(
        n_frames=n,
        gauge=Gauge(blank_in_source=roots / n / math.sqrt(light) if light > 0 else math.nan),
        lowest=(float(lowest[0]), float(lowest[1])),
        highest=(float(highest[0]), float(highest[1])),
        photons_per_frame=photons / n,
        mean_counts=photons / n / max(n_good, 1),
    )


def canvas_over(survey: Survey, *, side: int, margin: float = 0.0) -> CanvasGeometry:
    """The smallest canvas in which every frame's window lies whole.

    Parameters
    ----------
    side : of a window, N; a smaller support lies inside it.
    margin : by how much a position may still move, pixels.
    """
    first = tuple(math.floor(p - margin) - side // 2 for p in survey.lowest)
    after = tuple(math.floor(p + margin) - side // 2 + side + 1 for p in survey.highest)
    return CanvasGeometry(origin=(first[0], first[1]), shape=(after[0] - first[0], after[1] - first[1]))


def prepare(
    survey: Survey,
    probe: Tensor,
    *,
    config: SolverConfig,
    geometry: CanvasGeometry,
    valid: Tensor | None = None,
) -> Optics:
    """The optics of a scan whose probe is known, in the solver's gauge.

    Parameters
    ----------
    probe : (mode, N, N) complex, in the source's scale; its precision is the solver's.
    valid : (N, N) bool, True = good, zero frequency at [N//2, N//2].
    """
    support = support_side(probe, energy=config.support_energy)
    return make_optics(probe, gauge=survey.gauge, geometry=geometry, support=support, valid=valid)


def data_gradient(batches: Iterable[Frames], canvas: Tensor, optics: Optics, *, config: SolverConfig) -> Tensor:
    """G: what the frames ask the canvas to become, summed in the order of the batches. (y, x) complex.

    G = scattered sum over modes of IFFT(r) conj(P) / max |P|^2, r the residual field of `losses.residual_factor`.
    """
    padded, onto = pad_canvas(canvas, outside=BLANK), pad_canvas(torch.zeros_like(canvas), outside=0)
    for batch in batches:
        add_gradient(batch, padded, optics, config=config, onto=onto)
    return onto[1:-1, 1:-1]


def add_gradient(batch: Frames, padded: Tensor, optics: Optics, *, config: SolverConfig, onto: Tensor) -> None:
    """Add one batch's part of G to `onto`, so that several solves can share a pass.

    Parameters
    ----------
    padded, onto : (canvas_y + 2, canvas_x + 2) complex, the canvas in its border of blank object, and the sum.
    """
    windows = windows_of(batch.positions, optics)
    fields = with_gain(fields_of(padded, windows, optics), batch.gain)
    measured = to_corner(batch.intensity).to(fields.real.dtype)
    factor = residual_factor(config.loss, measured, intensity_of(fields), background=config.background)
    torch.view_as_real(fields).mul_(without_bad(factor, optics.bad)[:, None, :, :, None])
    with_gain(fields, batch.gain)
    scatter(canvas_gradient(fields, optics), windows, onto=onto)


def light_on_canvas(batches: Iterable[Frames], optics: Optics) -> Tensor:
    """Den = scattered sum over modes of |P|^2 / max |P|^2. (canvas_y, canvas_x) real."""
    light = optics.support_probe.abs().square().sum(0) / optics.peak
    onto = pad_canvas(light.new_zeros(optics.geometry.shape), outside=0)
    for batch in batches:
        windows = windows_of(batch.positions, optics)
        scatter(light.expand(len(batch.index), -1, -1), windows, onto=onto)
    return onto[1:-1, 1:-1].clone()


def step_scale(den: Tensor, *, quantile: float) -> float:
    """q99(den), over the pixels that any light fell on, so that empty margins do not count.

    Raises
    ------
    SchemaError
        No light fell on the canvas: it lies elsewhere than the positions.
    """
    seen = den[den > 0].sort().values
    if len(seen) == 0:
        raise SchemaError("no frame's window touches the canvas", code="physics.positions")
    return float(seen[round(quantile * (len(seen) - 1))])


@dataclass(frozen=True, kw_only=True, slots=True)
class StepRule:
    """How a gradient becomes a step, for the iterations first ... stop - 1 of a solve.

    denominator : (canvas_y, canvas_x) real, q99(den) + the prior's part, in FFT order.
    boost : (canvas_y, canvas_x//2 + 1) real, the phase preconditioner B(k).
    """

    first: int
    stop: int
    prior: Prior
    peak: float
    laplacian: Tensor
    denominator: Tensor
    boost: Tensor
    step: float


def stages_of(prior: Prior, config: SolverConfig) -> tuple[tuple[Prior, int], ...]:
    """Priors and their numbers of iterations, one after the other: TV starts from a weak quadratic prior."""
    last = (prior, config.iterations)
    if prior.name != "tv":
        return (last,)
    return (Prior(name="quadratic", weight=config.start_weight), config.start_iterations), last


def rules_of(prior: Prior, optics: Optics, den: Tensor, *, config: SolverConfig) -> tuple[StepRule, ...]:
    """The step rules of a solve, one per stage; they follow from optics and den alone."""
    laplacian = laplacian_spectrum(optics.geometry.shape, dtype=den.dtype)
    boost = phase_filter(optics.probe, optics.geometry.shape, dtype=den.dtype)
    scale, first, rules = step_scale(den, quantile=config.quantile), 0, []
    for stage, length in stages_of(prior, config):
        rules.append(
            StepRule(
                first=first,
                stop=first + length,
                prior=stage,
                peak=optics.peak,
                laplacian=laplacian,
                denominator=scale + prior_denominator(stage, laplacian, peak=optics.peak),
                boost=boost,
                step=config.step,
            )
        )
        first += length
    return tuple(rules)


def blank_state(passes: Passes, optics: Optics, *, use: NDArray[np.bool_] | None = None) -> SolverState:
    """The state before the first iteration: blank object, no momentum. Reads the scan once, for den.

    Parameters
    ----------
    use : (frame,) bool, the frames that count, by index in the scan; None where all do.
    """
    canvas = blank_canvas(optics)
    den = light_on_canvas(kept(passes(), use), optics)
    return SolverState(canvas=canvas, momentum=torch.zeros_like(canvas), iteration=0, den=den)


def look_ahead(state: SolverState, *, first: int) -> Tensor:
    """y, where the next gradient is taken: the canvas carried on by its momentum (Nesterov). (y, x) complex.

    o + k / (k + 3) (o - o_before), k iterations after `first`, where a stage began.
    """
    k = state.iteration - first
    return state.canvas + k / (k + 3) * state.momentum


def advance(state: SolverState, ahead: Tensor, gradient: Tensor, *, rule: StepRule) -> SolverState:
    """The state after a step from `ahead`: o = y + step u'.

    u = IFFT[(FFT(G) - FFT(prior gradient)) / denominator], then its phase part filtered (`boost_phase`).

    Parameters
    ----------
    ahead, gradient : (canvas_y, canvas_x) complex, y and the G of `data_gradient` there.
    """
    spectrum = torch.fft.fft2(gradient)
    spectrum -= prior_gradient_spectrum(rule.prior, ahead, rule.laplacian, peak=rule.peak)
    update = boost_phase(torch.fft.ifft2(spectrum / rule.denominator), ahead, rule.boost)
    canvas = ahead + rule.step * update
    return SolverState(canvas=canvas, momentum=canvas - state.canvas, iteration=state.iteration + 1, den=state.den)


def solve(
    passes: Passes,
    optics: Optics,
    *,
    prior: Prior,
    config: SolverConfig,
    start: SolverState,
    use: NDArray[np.bool_] | None = None,
    witness: Witness = ignore,
) -> Iterator[SolverState]:
    """The solver's state after each pass, until `config.iterations` with the prior are done.

    A TV prior is preceded by `config.start_iterations` with the quadratic prior of `config.start_weight`.

    Parameters
    ----------
    start : `blank_state`, or any state of the same solve, to go on to the same bits.
    use : (frame,) bool, the frames that count, by index in the scan; None where all do.
    witness : is handed the frames that do not count, beside the canvas at which the gradient is taken.
    """
    state = start
    for rule in rules_of(prior, optics, start.den, config=config):
        while rule.first <= state.iteration < rule.stop:
            ahead = look_ahead(state, first=rule.first)
            counting = kept(passes(), use, others=functools.partial(witness, canvas=ahead))
            gradient = data_gradient(counting, ahead, optics, config=config)
            state = advance(state, ahead, gradient, rule=rule)
            yield state


def project_amplitude(
    passes: Passes, optics: Optics, *, start: SolverState, use: NDArray[np.bool_] | None = None
) -> Iterator[SolverState]:
    """The usual way, to compare with: amplitude residual, no prior, no preconditioner, each pixel by its own light.

    o = y + G / (den + 0.05 max den): ePIE's step of length 1 with all frames at once, and the solver's momentum, for
    it is far slower without. Endless: the caller stops.
    """
    config = SolverConfig(loss="amplitude")
    state, weight = start, start.den + _LEAST_LIGHT * start.den.max()
    while True:
        ahead = look_ahead(state, first=0)
        canvas = ahead + data_gradient(kept(passes(), use), ahead, optics, config=config) / weight
        state = SolverState(canvas=canvas, momentum=canvas - state.canvas, iteration=state.iteration + 1, den=state.den)
        yield state
