"""The object estimate of a scan: refine or not, which prior, the solve on all frames; held-out frames decide."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pipeline.config import LossName, ReconstructConfig, RefineChoice, RefineConfig, SolverConfig
from pipeline.errors import ConfigError
from pipeline.learning.journal import Journal
from pipeline.learning.judging import (
    Curve,
    Judged,
    Judging,
    curve_of,
    finite,
    flat_loss,
    judge,
    judge_all,
    length_of,
    noted,
    reported_background,
)
from pipeline.physics.choice import (
    HeldOutWitness,
    Split,
    candidates_of,
    split_frames,
)
from pipeline.physics.fit import Fit, fit_of
from pipeline.physics.forward import Optics, Passes
from pipeline.physics.losses import REPORTED_BACKGROUND
from pipeline.physics.passes import ScanPasses, Scene
from pipeline.physics.prior import Prior
from pipeline.physics.refine import (
    MODES_BY_EVIDENCE,
    MOST_MODES,
    REFINING_PRIOR,
    RefineState,
    adjusted,
    ignore,
    refine,
    start_refinement,
    with_probe,
)
from pipeline.physics.solver import (
    SolverState,
    Survey,
    blank_state,
    canvas_over,
    prepare,
    solve,
    survey_scan,
)
from pipeline.seeding import Purpose, permutation

EVIDENCE_PRIOR: Final = Prior(name="quadratic", weight=0.03)
_EVIDENCE_ITERATIONS: Final = 20
_EXCESS, _EXCESS_OF_COUNTS = 0.10, 0.005


@dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
    """How well the stored probe explains frames that a solve has not seen.

    nll, floor : per good pixel, found and what photon noise alone would leave. counts_per_pixel : mean photons.
    """

    nll: float
    floor: float
    counts_per_pixel: float

    @property
    def asks_to_refine(self) -> bool:
        """The loss exceeds the floor by more than 10 % and by more than 0.005 of the mean counts."""
        return self._excess > _EXCESS * self.floor and self._excess > _EXCESS_OF_COUNTS * self.counts_per_pixel

    @property
    def _excess(self) -> float:
        return self.nll - self.floor

    def in_words(self) -> str:
        """What was found and what follows, for people."""
        found = f"held-out NLL {self.nll:.4g} a pixel with the stored probe, photon noise alone {self.floor:.4g}"
        if self.asks_to_refine:
            return f"{found}: the stored probe and positions do not explain the frames"
        if self._excess <= _EXCESS * self.floor:
            return f"{found}: not more than {100 * _EXCESS:.0f} % above"
        return f"{found}: above it by not more than {_EXCESS_OF_COUNTS} of the mean counts"


def reason_to_refine(asked: RefineChoice, evidence: Evidence | None) -> str:
    """Why a scan was refined or not, for people: what was `asked` for, or what the evidence says where it decided."""
    if evidence is not None:
        return evidence.in_words()
    if asked == "auto":
        return "the photon scale is unknown, so there is no noise floor to compare with"
    return "that was not asked for" if asked == "none" else "that was asked for"


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A scan solved on all its frames, and what led there. Tensors in the solver's gauge of `optics`.

    refined : "none", "probe" or "probe,positions"; reason : why, in words.
    trials : each candidate judged; chosen : the one that the estimate was made with.
    flat_loss : theirs, of the flat object. refining : the loss of the held-out frames over a refinement of the others.
    canvas : (y, x) complex; den : (y, x) real. optics : its probe is the one used.
    shift : (frame, 2) float64 and gain : (frame,) float64, None where they are as stored.
    fit : to the frames it was made from.
    background : b of the reported losses. solver : configuration of the final solve.
    held, holding : optics and configuration of further solves of the scan, with probe, positions and gains as they are.
    """

    refined: str
    reason: str
    evidence: Evidence | None
    split: Split
    survey: Survey
    trials: tuple[Judged, ...]
    chosen: Judged
    flat_loss: float
    refining: Curve
    canvas: Tensor
    den: Tensor
    optics: Optics
    shift: Tensor | None
    gain: Tensor | None
    fit: Fit
    background: float
    solver: SolverConfig
    held: Optics
    holding: SolverConfig


def refuse_modes(config: RefineConfig, *, stored: int) -> None:
    """Refuse more probe modes than the store has where nothing can make them, before any work.

    Raises
    ------
    ConfigError
    """
    asked = config.modes or stored
    if config.what == "none" and asked > stored:
        raise ConfigError(
            f"{asked} probe modes, and the store has {stored}; only a refinement makes more",
            code="config.modes",
            hint="--refine probe",
        )
    if asked > max(stored, MOST_MODES):
        raise ConfigError(
            f"{asked} probe modes, and the store has {stored}; a refinement makes at most {MOST_MODES}",
            code="config.modes",
            hint=f"--modes {MOST_MODES}",
        )


def split_of(seed: int, positions: NDArray[np.float64], eligible: NDArray[np.bool_]) -> Split:
    """The frames that the seed holds out; see `split_frames`."""
    return split_frames(permutation(seed, Purpose.HELD_OUT, n=len(positions)), positions, eligible)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Work:
    """What every step of an estimate needs."""

    scene: Scene
    config: ReconstructConfig
    split: Split
    journal: Journal

    def passes(self, *, n_modes: int) -> ScanPasses:
        """Passes in batches for so many probe modes."""
        pixels, workers = self.config.solver.batch_pixels, self.config.num_workers
        return ScanPasses(self.scene, batch_pixels=pixels, n_modes=n_modes, num_workers=workers)

    def judging(self, frames: Passes, *, clock: ScanPasses, optics: Optics, solver: SolverConfig) -> Judging:
        """Judging on the held-out frames of this scan."""
        return Judging(frames=frames, clock=clock, optics=optics, solver=solver, split=self.split, journal=self.journal)


def estimate(scene: Scene, config: ReconstructConfig, journal: Journal) -> Estimate:
    """Find the object of a scene. What the journal knows already is not done again.

    Raises
    ------
    ConfigError, PlanError, SchemaError
        See `refuse_modes`, `split_frames` and `survey_scan`.
    DivergedError
        A solve met numbers that are not finite.
    """
    refuse_modes(config.refine, stored=len(scene.probe))
    if config.refine.modes is not None:
        scene = replace(scene, probe=scene.probe[: config.refine.modes])
    split = split_of(config.seed, scene.positions, scene.eligible)
    work = _Work(scene=scene, config=config, split=split, journal=journal)
    if config.refine.what not in ("auto", "none"):
        return _refined(work, config.refine, evidence=None)
    with work.passes(n_modes=len(scene.probe)) as passes:
        survey = survey_scan(passes, scene.probe, valid=scene.valid)
        solver = replace(config.solver, loss=scene.loss)
        optics = prepare(
            survey, scene.probe, config=solver, geometry=canvas_over(survey, side=scene.side), valid=scene.valid
        )
        decides = config.refine.what == "auto" and scene.loss != "amplitude"
        evidence = _gather(work, passes, optics, survey, solver) if decides else None
        if evidence is None or not evidence.asks_to_refine:
            return _known(work, passes, optics, survey, solver, evidence=evidence)
    modes = config.refine.modes or max(MODES_BY_EVIDENCE, len(scene.probe))
    refine_config = replace(config.refine, what="probe,positions", modes=modes)
    return _refined(work, refine_config, evidence=evidence)


def _gather(work: _Work, passes: ScanPasses, optics: Optics, survey: Survey, solver: SolverConfig) -> Evidence:
    """One solve on the frames not held out, with the probe as stored."""

    def find() -> dict[str, Any]:
        briefly = replace(solver, iterations=_EVIDENCE_ITERATIONS)
        judging = work.judging(passes, clock=passes, optics=optics, solver=briefly)
        judged = judge(judging, EVIDENCE_PRIOR, name="evidence")
        return {"nll": judged.loss, "floor": judged.floor, "counts_per_pixel": survey.mean_counts}

    return Evidence(**work.journal.settle("evidence", find))


def _known(
    work: _Work,
    passes: ScanPasses,
    optics: Optics,
    survey: Survey,
    solver: SolverConfig,
    *,
    evidence: Evidence | None,
) -> Estimate:
    """The estimate with probe and positions as stored."""
    choosing = replace(solver, iterations=min(work.config.prior.choice_iterations, solver.iterations))
    judging = work.judging(passes, clock=passes, optics=optics, solver=choosing)
    trials = judge_all(judging, candidates_of(work.config.prior))
    chosen = min(trials, key=lambda trial: trial.loss)
    state, _ = work.journal.carry_on(
        "solve",
        SolverState,
        passes=length_of(chosen.prior, solver),
        begin=lambda: blank_state(passes, optics),
        states=lambda state: finite(solve(passes, optics, prior=chosen.prior, config=solver, start=state), "solve"),
        done=lambda state: state.iteration,
        waited=lambda: passes.waited_s,
    )
    return Estimate(
        refined="none",
        reason=reason_to_refine(work.config.refine.what, evidence),
        evidence=evidence,
        split=work.split,
        survey=survey,
        trials=trials,
        chosen=chosen,
        flat_loss=flat_loss(judging),
        refining=(),
        canvas=state.canvas,
        den=state.den,
        optics=optics,
        shift=None,
        gain=None,
        fit=_fit(passes, state.canvas, optics, scene=work.scene, solver=solver),
        background=REPORTED_BACKGROUND,
        solver=solver,
        held=optics,
        holding=solver,
    )


def _refined(work: _Work, config: RefineConfig, *, evidence: Evidence | None) -> Estimate:
    """The estimate with probe and positions refined: on the frames not held out, to choose a prior, then on all."""
    scene, modes = work.scene, config.modes or len(work.scene.probe)
    config = replace(config, modes=modes)
    loss: LossName = "amplitude" if scene.loss == "amplitude" else "poisson-background"
    iterations = min(config.choice_iterations, work.config.solver.iterations)
    solver = replace(work.config.solver, loss=loss, background=config.background, support_energy=1.0)
    choosing = replace(solver, iterations=iterations, start_iterations=0)
    with work.passes(n_modes=modes) as passes:
        survey = survey_scan(passes, scene.probe, valid=scene.valid)
        geometry = canvas_over(survey, side=scene.side, margin=config.max_shift_px)
        optics = prepare(survey, scene.probe, config=solver, geometry=geometry, valid=scene.valid)
        optics = with_probe(optics, optics.probe)
        refining = _Refining(work=work, passes=passes, optics=optics, solver=solver, config=config)
        state, curve = refining.run("refine-held-out", REFINING_PRIOR, use=work.split.solved)
        frames = adjusted(passes, state)
        held = _held(frames, with_probe(optics, state.probe), scene)
        judging = work.judging(frames, clock=passes, optics=held, solver=choosing)
        trials = judge_all(judging, candidates_of(work.config.prior))
        flat = flat_loss(judging)
        chosen = min(trials, key=lambda trial: trial.loss)
        state, _ = refining.run("refine", chosen.prior, use=None)
        frames, optics = adjusted(passes, state), with_probe(optics, state.probe)
        fit = _fit(frames, state.canvas, optics, scene=scene, solver=solver)
        held = _held(frames, optics, scene)
    moved = "positions" in config.what
    return Estimate(
        refined=config.what,
        reason=reason_to_refine(work.config.refine.what, evidence),
        evidence=evidence,
        split=work.split,
        survey=survey,
        trials=trials,
        chosen=chosen,
        flat_loss=flat,
        refining=curve,
        canvas=state.canvas,
        den=state.den,
        optics=optics,
        shift=state.shift if moved else None,
        gain=state.gain,
        fit=fit,
        background=reported_background(solver),
        solver=solver,
        held=held,
        holding=choosing,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Refining:
    """Refinements of one scan from the same beginning."""

    work: _Work
    passes: ScanPasses
    optics: Optics
    solver: SolverConfig
    config: RefineConfig

    def run(self, name: str, prior: Prior, *, use: NDArray[np.bool_] | None) -> tuple[RefineState, Curve]:
        """On the frames that count, all where `use` is None; the others watch it, and their loss is the curve."""
        work, passes, optics, solver, config = self.work, self.passes, self.optics, self.solver, self.config
        unseen = use is not None
        witness = HeldOutWitness(optics, split=work.split, loss=solver.loss, background=config.background)
        compare = witness.compare if unseen else ignore
        state, told = work.journal.carry_on(
            name,
            RefineState,
            passes=config.start_passes + config.iterations,
            begin=lambda: start_refinement(optics, n_frames=work.scene.n_frames),
            states=lambda state: finite(
                refine(
                    passes, optics, prior=prior, solver=solver, config=config, start=state, use=use, witness=compare
                ),
                name,
            ),
            done=lambda state: state.start_passes + state.iteration,
            waited=lambda: passes.waited_s,
            watch=lambda state: noted(state.iteration, witness) if unseen and state.iteration else {},
        )
        return state, curve_of(told)


def _held(frames: Passes, optics: Optics, scene: Scene) -> Optics:
    """The optics of a refined probe that is held from here on, in a gauge of its own. Reads the scan once."""
    probe = optics.gauge.probe_to_source(optics.probe)
    gauge = survey_scan(frames, probe, valid=scene.valid).gauge
    return replace(with_probe(optics, gauge.probe_to_solver(probe)), gauge=gauge)


def _fit(passes: Passes, canvas: Tensor, optics: Optics, *, scene: Scene, solver: SolverConfig) -> Fit:
    return fit_of(
        passes, canvas, optics, n_frames=scene.n_frames, loss=solver.loss, background=reported_background(solver)
    )
