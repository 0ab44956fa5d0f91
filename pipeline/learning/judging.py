"""Priors tried on the frames that are not held out, and judged by those that are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, Protocol, TypeAlias, TypeVar

import torch
from torch import Tensor

from pipeline.config import SolverConfig
from pipeline.errors import DivergedError
from pipeline.learning.journal import Journal
from pipeline.physics.choice import HeldOutWitness, Split, held_out_scores
from pipeline.physics.forward import Optics, Passes, blank_canvas
from pipeline.physics.gauge import BLANK
from pipeline.physics.losses import REPORTED_BACKGROUND
from pipeline.physics.passes import ScanPasses
from pipeline.physics.prior import Prior
from pipeline.physics.refine import RefineState
from pipeline.physics.solver import SolverState, blank_state, solve, stages_of


class _HasCanvas(Protocol):
    """Any state with an object."""

    @property
    def canvas(self) -> Tensor:
        """Complex."""


State = TypeVar("State", bound=_HasCanvas)
Curve: TypeAlias = tuple[tuple[int, float], ...]

_TV_START: Final = "choice tv start"
_UNBOUND: Final = 1000
"""A solve has diverged where its object is so many times the blank one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Judged:
    """A prior after its solve on the frames not held out.

    loss, floor : per good pixel of the frames that judge; floor is None where photons are unknown.
    curve : (iteration, loss) on the way.
    """

    prior: Prior
    iterations: int
    loss: float
    floor: float | None
    curve: Curve


@dataclass(frozen=True, kw_only=True, slots=True)
class Judging:
    """What it takes to judge any prior.

    frames : the passes with positions and gains adjusted. clock : the reading below them, which knows its waiting.
    solver : of the solves.
    """

    frames: Passes
    clock: ScanPasses
    optics: Optics
    solver: SolverConfig
    split: Split
    journal: Journal


def judge_all(judging: Judging, candidates: Sequence[Prior]) -> tuple[Judged, ...]:
    """Every candidate judged; each is settled once. Those of total variation share their quadratic start.

    Raises
    ------
    DivergedError
        See `finite`.
    """
    trials = []
    for prior in candidates:
        name = f"choice {prior}"

        def find(prior: Prior = prior, name: str = name) -> dict[str, Any]:
            start = None
            if prior.name == "tv" and judging.solver.start_iterations:
                only_start = replace(judging, solver=replace(judging.solver, iterations=0))
                start, _ = _solved(only_start, prior, name=_TV_START)
            return asdict(judge(judging, prior, name=name, start=start))

        facts = judging.journal.settle(name, find)
        curve = tuple((int(number), float(loss)) for number, loss in facts["curve"])
        trials.append(Judged(**{**facts, "prior": prior, "curve": curve}))
    return tuple(trials)


def judge(judging: Judging, prior: Prior, *, name: str, start: SolverState | None = None) -> Judged:
    """A prior's solve on the frames not held out, from a blank object or `start`, and how well it predicts the others.

    Raises
    ------
    DivergedError
        See `finite`.
    """
    state, told = _solved(judging, prior, name=name, start=start)
    loss, floor = _scores(judging, state.canvas)
    curve = (*curve_of(told), (state.iteration, loss))
    return Judged(prior=prior, iterations=state.iteration, loss=loss, floor=floor, curve=curve)


def flat_loss(judging: Judging) -> float:
    """What a candidate's loss would be with the flat object: how much there is to gain."""

    def find() -> dict[str, float]:
        return {"loss": _scores(judging, blank_canvas(judging.optics))[0]}

    return float(judging.journal.settle("flat", find)["loss"])


def _scores(judging: Judging, canvas: Tensor) -> tuple[float, float | None]:
    """Loss and floor, per good pixel of the frames that judge."""
    solver = judging.solver
    return held_out_scores(
        judging.frames, canvas, judging.optics, split=judging.split, loss=solver.loss,
        background=reported_background(solver),
    )  # fmt: skip


def _solved(
    judging: Judging, prior: Prior, *, name: str, start: SolverState | None = None
) -> tuple[SolverState, list[Mapping[str, Any]]]:
    """A solve on the frames not held out, and the loss of those that judge before each pass."""
    frames, optics, solver, use = judging.frames, judging.optics, judging.solver, judging.split.solved
    witness = HeldOutWitness(optics, split=judging.split, loss=solver.loss, background=reported_background(solver))
    return judging.journal.carry_on(
        name,
        SolverState,
        passes=length_of(prior, solver),
        begin=lambda: blank_state(frames, optics, use=use) if start is None else start,
        states=lambda state: finite(
            solve(frames, optics, prior=prior, config=solver, start=state, use=use, witness=witness), name
        ),
        done=lambda state: state.iteration,
        waited=lambda: judging.clock.waited_s,
        watch=lambda state: noted(state.iteration, witness),
    )


def noted(number: int, witness: HeldOutWitness) -> Mapping[str, Any]:
    """What a witness saw during pass `number`: the object as it was before."""
    return {"iteration": number - 1, "held_out_loss": witness.told()}


def curve_of(told: Sequence[Mapping[str, Any]]) -> Curve:
    """(iteration, loss) of what was noted."""
    return tuple((one["iteration"], one["held_out_loss"]) for one in told)


def reported_background(config: SolverConfig) -> float:
    """The b of reported losses, photons per pixel."""
    return config.background if config.loss == "poisson-background" else REPORTED_BACKGROUND


def length_of(prior: Prior, config: SolverConfig) -> int:
    """Passes of a solve with this prior, those of its start included."""
    return sum(length for _, length in stages_of(prior, config))


def finite(states: Iterator[State], name: str) -> Iterator[State]:
    """The same states.

    Raises
    ------
    DivergedError
        An object grew without bound, or a number is none any more; names phase and pass.
    """
    for number, state in enumerate(states, 1):
        largest = float(torch.view_as_real(state.canvas).abs().max())
        lost = isinstance(state, RefineState) and not bool(torch.isfinite(torch.view_as_real(state.probe)).all())
        if lost or not largest < _UNBOUND * BLANK:  # nor NaN
            found = f"an object of up to {largest:.3g} (a blank one: {BLANK})"
            raise DivergedError(
                f"{name}: pass {number} of this sitting left {'a probe that is not finite' if lost else found}",
                code="solver.diverged",
                hint="a smaller --set solver.step",
            )
        yield state
