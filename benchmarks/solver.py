"""The solver as measured: error over CPU-seconds, the prior chosen, a measured scan with its probe held or refined.

    python -m benchmarks.solver --data FOLDER [--more 6]

FOLDER holds lines_ci_n1e5_test.npz (simulated) and siemens516_full.npz (measured). Frames are streamed from stores, one
thread computes, scoring is not timed.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, count, islice
from pathlib import Path
from typing import Final, TypeVar

import torch
from torch import Tensor

from pipeline.config import ReconstructConfig, SolverConfig
from pipeline.evaluation.metrics import complex_nrmse
from pipeline.learning.allocator import keep_memory
from pipeline.learning.determinism import make_deterministic
from pipeline.learning.estimate import EVIDENCE_PRIOR, Estimate, estimate
from pipeline.learning.journal import Journal
from pipeline.physics.choice import Split, held_out_scores, split_frames
from pipeline.physics.fit import fit_of
from pipeline.physics.forward import Frames, Optics, Passes
from pipeline.physics.passes import ScanPasses, Scene, open_scene
from pipeline.physics.refine import REFINING_PRIOR, RefineState, adjusted, epie, refine, start_refinement, with_probe
from pipeline.physics.solver import blank_state, canvas_over, prepare, project_amplitude, solve, survey_scan
from pipeline.scan.chunks import read_all
from pipeline.scan.declaration import Declaration
from pipeline.scan.ingest import ingest, plan_ingest
from pipeline.seeding import Purpose, permutation
from pipeline.simulate.recipe import recipe_named
from pipeline.simulate.scan import plan_simulation
from pipeline.simulate.write import write_store

State = TypeVar("State")
LOSS: Final = "poisson-background"


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """How much is done; iterations at which something is scored are called `at`.

    scored : first and end of the rows and columns of a known object that count. modes : of the refinements.
    epie_steps : the length of the steps, of object and probe, in each pass.
    """

    config: ReconstructConfig = field(default_factory=ReconstructConfig)
    scored: tuple[int, int] = (43, 211)
    known_at: Sequence[int] = (5, 10, 20, 30, 40, 60, 120)
    held_at: Sequence[int] = (10, 40)
    refined_at: Sequence[int] = (10, 20, 30, 40)
    modes: Sequence[int] = (1, 2, 4)
    epie_steps: Sequence[float] = (1.0,) * 5 + (0.2,) * 40

    def passes(self, scene: Scene, n_modes: int) -> ScanPasses:
        """Passes in batches for so many probe modes."""
        return ScanPasses(scene, batch_pixels=self.config.solver.batch_pixels, n_modes=n_modes)


def timed(states: Iterable[State]) -> Iterator[tuple[State, float]]:
    """States beside the CPU-seconds that they and those before took; what happens in between is not counted."""
    spent, begun = 0.0, time.process_time()
    for state in states:
        spent += time.process_time() - begun
        yield state, spent
        begun = time.process_time()


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Rows of cells as markdown."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows))


def optics_of(scene: Scene, passes: Passes, config: SolverConfig, *, margin: float = 0.0) -> Optics:
    """The optics of the stored probe, the canvas wider by `margin` pixels on each side."""
    survey = survey_scan(passes, scene.probe, valid=scene.valid)
    geometry = canvas_over(survey, side=scene.side, margin=margin)
    return prepare(survey, scene.probe, config=config, geometry=geometry, valid=scene.valid)


@dataclass(frozen=True, kw_only=True, slots=True)
class Known:
    """What was measured on a scan whose object is known.

    courses : name of a method -> complex NRMSE and CPU-seconds after each number of iterations.
    found : what `estimate` made; error : complex NRMSE of its object; cpu_s : of its parts, and of all of it.
    """

    title: str
    courses: dict[str, list[tuple[float, float]]]
    found: Estimate
    error: float
    cpu_s: dict[str, float]


def error_of(canvas: Tensor, optics: Optics, scene: Scene, scored: tuple[int, int]) -> float:
    """Complex NRMSE in the scored rows and columns of the stored object's grid."""
    (start, stop), there = scored, read_all(scene.record, "object")
    here = tuple(slice(start - first, stop - first) for first in optics.geometry.origin)
    return complex_nrmse(canvas.numpy()[here], there[start:stop, start:stop])


def measure_known(title: str, store: Path, journal: Journal, plan: Plan) -> Known:
    """Solver and amplitude projection from a blank start, then what `estimate` makes of the scan."""
    scene, last = open_scene(store), max(plan.known_at)
    config = replace(plan.config.solver, iterations=last)
    with plan.passes(scene, len(scene.probe)) as passes:
        optics = optics_of(scene, passes, config)
        start = blank_state(passes, optics)
        methods = {
            f"solver, {EVIDENCE_PRIOR}": solve(passes, optics, prior=EVIDENCE_PRIOR, config=config, start=start),
            "amplitude projection, no prior": project_amplitude(passes, optics, start=start),
        }
        courses = {
            name: [
                (error_of(state.canvas, optics, scene, plan.scored), spent)
                for state, spent in timed(islice(states, last))
                if state.iteration in plan.known_at
            ]
            for name, states in methods.items()
        }
    begun = time.process_time()
    found = estimate(scene, plan.config, journal)
    spent = time.process_time() - begun
    error = error_of(found.canvas, found.optics, scene, plan.scored)
    phases = {phase.name.split()[0]: 0.0 for phase in journal.phases}
    for phase in journal.phases:
        phases[phase.name.split()[0]] += phase.cpu_s
    return Known(title=title, courses=courses, found=found, error=error, cpu_s={**phases, "all": spent})


def known_tables(scans: Sequence[Known], plan: Plan) -> str:
    """Error over iterations; each candidate's held-out loss, the chosen one's in bold; what the choice led to."""
    courses = [
        [f"{scan.title}: {name}", *(f"{error:.4f} @{spent:.1f}" for error, spent in course)]
        for scan in scans
        for name, course in scan.courses.items()
    ]
    losses, chosen = list[list[str]](), list[list[str]]()
    for scan in scans:
        best, trials = scan.found.chosen, scan.found.trials
        cells = (f"**{trial.loss:.5f}**" if trial is best else f"{trial.loss:.5f}" for trial in trials)
        losses.append([scan.title, *cells, f"{best.floor:.5f}"])
        spent = map("{:.1f}".format, scan.cpu_s.values())
        chosen.append([scan.title, str(best.prior), f"{scan.error:.4f}", *spent])
    heads = (
        ["complex NRMSE @ CPU-s after iteration", *map(str, plan.known_at)],
        ["held-out loss", *(str(trial.prior) for trial in scans[0].found.trials), "photon noise alone"],
        ["estimate", "prior", "NRMSE", *(f"{part}, CPU-s" for part in scans[0].cpu_s)],
    )
    return "\n\n".join(map(table, heads, (courses, losses, chosen)))


@dataclass(frozen=True, slots=True)
class Score:
    """How well object and probe predict frames that they were not made from.

    nll : per good pixel of the frames that judge; floor : of photon noise alone. r_factor : of all frames.
    """

    method: str
    iteration: int
    nll: float
    floor: float | None
    r_factor: float
    cpu_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Bench:
    """A measured scan: what every method is given and judged by."""

    scene: Scene
    split: Split
    plan: Plan

    def score(self, canvas: Tensor, frames: Passes, optics: Optics) -> tuple[float, float | None, float]:
        """Held-out NLL, its floor and R_F of a canvas on the frames and optics that belong to it."""
        background = self.plan.config.refine.background
        nll, floor = held_out_scores(frames, canvas, optics, split=self.split, loss=LOSS, background=background)
        fit = fit_of(frames, canvas, optics, n_frames=self.scene.n_frames, loss=LOSS, background=background)
        return nll, floor, fit.r_factor

    def begin(self, passes: Passes) -> tuple[Optics, RefineState]:
        """What a refinement begins with: all of the stored probe, room for positions to move, a blank object."""
        config, margin = replace(self.plan.config.solver, support_energy=1.0), self.plan.config.refine.max_shift_px
        optics = optics_of(self.scene, passes, config, margin=margin)
        optics = with_probe(optics, optics.probe)
        return optics, start_refinement(optics, n_frames=self.scene.n_frames)


def measure_held(bench: Bench) -> Iterator[Score]:
    """The stored probe held fixed."""
    scene, at, use = bench.scene, bench.plan.held_at, bench.split.solved
    config, method = replace(bench.plan.config.solver, iterations=max(at)), f"stored probe held, {EVIDENCE_PRIOR}"
    with bench.plan.passes(scene, len(scene.probe)) as passes:
        optics = optics_of(scene, passes, config)
        start = blank_state(passes, optics, use=use)
        for state, spent in timed(solve(passes, optics, prior=EVIDENCE_PRIOR, config=config, start=start, use=use)):
            if state.iteration in at:
                yield Score(method, state.iteration, *bench.score(state.canvas, passes, optics), spent)


def at_random(passes: Passes) -> Passes:
    """The same frames from memory, in a new order in each pass."""
    parts, numbers = [torch.cat(values) for values in zip(*(batch[:3] for batch in passes()), strict=True)], count()

    def again() -> Iterator[Frames]:
        order = torch.from_numpy(permutation(0, Purpose.WINDOW_FRAMES, next(numbers), n=len(parts[0])))
        yield Frames(*(part[order] for part in parts))

    return again


def measure_epie(bench: Bench, order: str) -> Iterator[Score]:
    """Own ePIE with probe update, one mode: after the last of its passes, and after the one that predicts best."""
    steps, use, scores = bench.plan.epie_steps, bench.split.solved, list[Score]()
    with bench.plan.passes(bench.scene, 1) as passes:
        optics, start = bench.begin(passes)
        ordered = at_random(passes) if order == "random order" else passes

        def run() -> Iterator[RefineState]:
            state = start
            for step in steps:
                state = next(epie(ordered, optics, start=state, object_step=step, probe_step=step, use=use))
                yield state

        for state, spent in timed(run()):
            found = bench.score(state.canvas, passes, with_probe(optics, state.probe))
            scores.append(Score(f"own one-mode ePIE, {order}", state.start_passes, *found, spent))
    yield scores[-1]
    yield replace(min(scores, key=lambda score: score.nll), method="- its best pass")


def measure_refined(bench: Bench, modes: int) -> Iterator[Score]:
    """Probe, positions and gains refined; CPU-seconds include the passes of ePIE in front."""
    at, use, method = bench.plan.refined_at, bench.split.solved, f"refined, modes: {modes}; {REFINING_PRIOR}"
    config = replace(bench.plan.config.refine, what="probe,positions", modes=modes, iterations=max(at))
    solver = replace(bench.plan.config.solver, loss=LOSS, background=config.background)
    with bench.plan.passes(bench.scene, modes) as passes:
        optics, start = bench.begin(passes)
        states = refine(passes, optics, prior=REFINING_PRIOR, solver=solver, config=config, start=start, use=use)
        for state, spent in timed(states):
            if state.iteration in at:
                frames, lens = adjusted(passes, state), with_probe(optics, state.probe)
                yield Score(method, state.iteration, *bench.score(state.canvas, frames, lens), spent)


def measure_measured(store: Path, plan: Plan) -> list[Score]:
    """Every method on one scan, all judged by the same frames, which none of them solves with."""
    scene = open_scene(store)
    split = split_frames(permutation(0, Purpose.HELD_OUT, n=scene.n_frames), scene.positions, scene.eligible)
    bench = Bench(scene=scene, split=split, plan=plan)
    refined = (measure_refined(bench, modes) for modes in plan.modes)
    epies = (measure_epie(bench, order) for order in ("store order", "random order"))
    return list(chain(measure_held(bench), *epies, *refined))


def measured_table(scores: Sequence[Score]) -> str:
    """One row for each score."""
    head = ["method", "iterations", "held-out NLL", "photon noise alone", "R_F", "CPU-s"]
    cells = (map("{:.4f}".format, (score.nll, score.floor, score.r_factor)) for score in scores)
    return table(head, ([s.method, str(s.iteration), *c, f"{s.cpu_s:.1f}"] for s, c in zip(scores, cells, strict=True)))


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables of the simulated scans, then that of the measured one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with the two NPZ files")
    parser.add_argument("--more", type=int, nargs="+", default=[], help="refine with so many modes too")
    options = parser.parse_args(argv)
    make_deterministic(threads=1)
    keep_memory()
    with tempfile.TemporaryDirectory() as name:
        folder, source = Path(name), options.data / "lines_ci_n1e5_test.npz"
        stores = {title: folder / f"{title}.zarr" for title in ("lines", "mix", "siemens")}
        ingest(plan_ingest(source, Declaration()), stores["lines"])
        write_store(plan_simulation(recipe_named("mix-test"), seed=0, like=source), stores["mix"])
        said = Declaration(position_origin="n/2-0.5")
        ingest(plan_ingest(options.data / "siemens516_full.npz", said), stores["siemens"])
        plan, known = replace(Plan(), modes=(*Plan().modes, *options.more)), []
        for title in ("lines", "mix"):
            work = Path(tempfile.mkdtemp(dir=folder))
            journal = Journal(work, identity={}, tell=lambda name, passes: lambda done: None)
            known.append(measure_known(title, stores[title], journal, plan))
        print(f"{known_tables(known, plan)}\n", flush=True)
        print(measured_table(measure_measured(stores["siemens"], plan)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
