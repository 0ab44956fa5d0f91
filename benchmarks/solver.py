"""The solver beside the amplitude projection on simulated frames: error and CPU-seconds over iterations.

python -m benchmarks.solver --data FOLDER, the folder that holds lines_ci_n1e5_test.npz. One thread.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.config import SolverConfig
from pipeline.physics.choice import HeldOut, Trial, choose_prior, held_out_frames, try_priors
from pipeline.physics.forward import CanvasGeometry, Frames, Passes
from pipeline.physics.losses import REPORTED_BACKGROUND
from pipeline.physics.prior import Prior
from pipeline.physics.solver import (
    SolverState,
    blank_state,
    prepare,
    project_amplitude,
    solve,
    stages_of,
    survey_scan,
)
from pipeline.scan.declaration import Declaration
from pipeline.scan.ingest import canonical_values, plan_ingest
from pipeline.seeding import Purpose, permutation
from pipeline.simulate.recipe import recipe_named
from pipeline.simulate.scan import plan_simulation

SCORED = slice(43, 211)
BATCH_PIXELS = 1 << 20


def batches_of(counts: NDArray[np.uint16], positions: NDArray[np.float64]) -> Passes:
    """Frames in RAM as passes of batches of 2^20 pixels, converted anew in every pass, as a stream does."""
    size = max(BATCH_PIXELS // counts[0].size, 1)

    def passes() -> Iterable[Frames]:
        for first in range(0, len(counts), size):
            rows = slice(first, min(first + size, len(counts)))
            yield Frames(
                torch.from_numpy(counts[rows].astype(np.float32)),
                torch.from_numpy(positions[rows]),
                torch.arange(rows.start, rows.stop),
            )

    return passes


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """A scan with its true object; `scored` are the rows and columns that count."""

    title: str
    counts: NDArray[Any]
    positions: NDArray[np.float64]
    probe: NDArray[np.complex64]
    truth: NDArray[np.complex64]
    scored: slice


def complex_nrmse(found: NDArray[Any], case: Case) -> float:
    """Complex NRMSE on the scored area after one complex least-squares factor."""
    a, b = (obj[case.scored, case.scored].astype(np.complex128).ravel() for obj in (found, case.truth))
    factor = np.vdot(a, b) / np.vdot(a, a)
    return float(np.linalg.norm(factor * a - b) / np.linalg.norm(b))


def report(name: str, states: Iterable[SolverState], case: Case, at: Sequence[int]) -> None:
    """Print error @ CPU-seconds at some iterations; scoring is not timed."""
    spent, begun, cells = 0.0, time.process_time(), []
    for state in states:
        spent += time.process_time() - begun
        if state.iteration in at:
            cells.append(f"{state.iteration}: {complex_nrmse(state.canvas.numpy(), case):.4f} @{spent:.1f}")
        if state.iteration >= max(at):
            break
        begun = time.process_time()
    print(f"  {name:34} {'   '.join(cells)}", flush=True)


def measure(case: Case, *, iterations: int) -> None:
    """Print the table of one scan: up to three times as many iterations as the solver does by default."""
    print(case.title, flush=True)
    config = SolverConfig(iterations=iterations, start_iterations=iterations * 3 // 4)
    passes, probe = batches_of(case.counts, case.positions), torch.from_numpy(case.probe)
    begun = time.process_time()
    survey = survey_scan(passes, probe)
    height, width = case.truth.shape
    optics = prepare(survey, probe, config=config, geometry=CanvasGeometry(origin=(0, 0), shape=(height, width)))
    start = blank_state(passes, optics)
    print(f"  c0 {survey.gauge.blank_in_source:.4f}, support {optics.support}, {time.process_time() - begun:.2f} CPU-s")
    at = [iterations * eighths // 8 for eighths in (1, 2, 4, 6, 8, 12, 24)]
    quadratic, longer = Prior(name="quadratic", weight=0.03), replace(config, iterations=3 * iterations)
    report(f"solver, {quadratic}", solve(passes, optics, prior=quadratic, config=longer, start=start), case, at)
    report("amplitude projection, no prior", project_amplitude(passes, optics, start=start), case, at)
    begun = time.process_time()
    frames = held_out_frames(permutation(0, Purpose.HELD_OUT, n=len(case.counts)))
    held_out = HeldOut(frames=frames, survey=survey, background=REPORTED_BACKGROUND)
    chosen = chosen_prior(try_priors(passes, optics, held_out=held_out, config=config))
    print(f"  chosen: {chosen} after {time.process_time() - begun:.1f} CPU-s")
    at = [sum(length for _, length in stages_of(chosen, config)) * eighths // 8 for eighths in range(2, 9)]
    report(f"solver, {chosen}", solve(passes, optics, prior=chosen, config=config, start=start), case, at)


def chosen_prior(trials: Iterable[Trial]) -> Prior:
    """The prior of the best trial; prints every candidate's loss as it comes."""
    done = []
    for trial in trials:
        print(f"  {trial.prior!s:20} held-out NLL {trial.loss:.5f}", flush=True)
        done.append(trial)
    return choose_prior(done).prior


def mix_like(path: Path) -> Case:
    """The recipe `mix-test` with probe and positions of another scan."""
    mix = plan_simulation(recipe_named("mix-test"), seed=0, like=path)
    geometry = mix.geometry
    counts = mix.counts(0, len(geometry.positions))
    return Case(
        title="mix", counts=counts, positions=geometry.positions, probe=geometry.probe, truth=mix.object, scored=SCORED
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Measure the file's lines, then the recipe `mix-test` with its probe and positions."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with lines_ci_n1e5_test.npz")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    path = options.data / "lines_ci_n1e5_test.npz"
    values = canonical_values(plan_ingest(path, Declaration()))
    positions = np.stack([values["position_y"], values["position_x"]], axis=1)
    with np.load(path) as npz:
        counts = npz["diff3d"]
    lines = Case(
        title="lines", counts=counts, positions=positions, probe=values["probe"], truth=values["object"], scored=SCORED
    )
    measure(lines, iterations=SolverConfig().iterations)
    measure(mix_like(path), iterations=SolverConfig().iterations)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
