"""From the estimate of a scan to a training task, and from a trained network to an object."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.config import FitConfig, NetworkConfig, TrainConfig
from pipeline.learning.canvas import (
    BACKGROUND,
    INPUTS,
    N_SPLITS,
    CanvasTask,
    HalvesState,
    Start,
    blank_halves,
    halves_of,
    solve_halves,
    started,
)
from pipeline.learning.estimate import Estimate
from pipeline.learning.journal import Journal
from pipeline.learning.judging import finite, length_of
from pipeline.learning.networks import UNet, initialise
from pipeline.physics.passes import ScanPasses, Scene
from pipeline.physics.prior import Prior
from pipeline.physics.refine import moved
from pipeline.physics.solver import SolverState, blank_state, solve
from pipeline.stream.scan_stream import ScanStream
from pipeline.stream.waiting import TimedBatches


def canvas_network(config: NetworkConfig, *, seed: int) -> UNet:
    """The network of the model `canvas`, untrained: it changes nothing."""
    network = UNet(inputs=INPUTS, width=config.width, depth=config.depth, bfloat16=config.bfloat16)
    initialise(network, seed=seed)
    return network


def passes_of(scene: Scene, found: Estimate, *, batch_pixels: int, num_workers: int) -> ScanPasses:
    """Passes in the batches of the estimate's probe; positions and gains still as stored."""
    return ScanPasses(scene, batch_pixels=batch_pixels, n_modes=len(found.held.probe), num_workers=num_workers)


def canvas_task(scene: Scene, found: Estimate, config: TrainConfig, journal: Journal) -> CanvasTask:
    """The task of the model `canvas`: both halves of two splits solved with the estimate's prior, probe held.

    What the journal knows already is not done again.

    Raises
    ------
    DivergedError
        A solve met numbers that are not finite.
    """
    starts: list[Start] = []
    halves = np.stack([halves_of(n, seed=config.seed, n_frames=scene.n_frames) for n in range(N_SPLITS)])
    workers, pixels = config.num_workers, config.solver.batch_pixels
    with passes_of(scene, found, batch_pixels=pixels, num_workers=workers) as passes:
        for number, both in enumerate(halves):
            starts += _halves(scene_passes=passes, found=found, journal=journal, name=f"halves {number + 1}", both=both)
    return CanvasTask(
        network=canvas_network(config.network, seed=config.seed),
        starts=tuple(starts),
        halves=halves,
        optics=found.held,
        photons_scale=scene.photons_scale,
        shift=found.shift,
        gain=found.gain,
        loss_name=scene.loss,
        background=BACKGROUND if found.refined == "none" else found.background,
        seed=config.seed,
        batch_size=max(pixels // (len(found.held.probe) * scene.side**2), 1),
    )


def _halves(
    scene_passes: ScanPasses, found: Estimate, journal: Journal, *, name: str, both: NDArray[np.bool_]
) -> list[Start]:
    """What the network sees of either half of a split."""
    frames = moved(scene_passes, shift=found.shift, gain=found.gain)
    prior, config = found.chosen.prior, found.holding
    state, _ = journal.carry_on(
        name,
        HalvesState,
        passes=length_of(prior, config),
        begin=lambda: blank_halves(frames, found.held, halves=both),
        states=lambda start: finite(
            solve_halves(frames, found.held, prior=prior, config=config, start=start, halves=both), name
        ),
        done=lambda state: state.iteration,
        waited=lambda: scene_passes.waited_s,
    )
    return [started(frames, found.held, state.half(k), config=config, use=both[k]) for k in range(2)]


def start_on(
    scene: Scene,
    found: Estimate,
    prior: Prior,
    journal: Journal,
    *,
    name: str,
    batch_pixels: int,
    num_workers: int,
    use: NDArray[np.bool_] | None = None,
) -> Start:
    """What the network sees of a scan: its solve with a prior, probe and positions as the estimate has them.

    Parameters
    ----------
    name : of the phase, where a solve is to be made; the estimate's own serves where it is the same.
    use : (frame,) bool, the frames that count; None where all do.
    """
    config = found.holding
    with passes_of(scene, found, batch_pixels=batch_pixels, num_workers=num_workers) as passes:
        frames = moved(passes, shift=found.shift, gain=found.gain)
        if found.refined == "none" and use is None and prior == found.chosen.prior:
            blank = found.canvas.new_zeros(())
            state = SolverState(canvas=found.canvas, momentum=blank, iteration=config.iterations, den=found.den)
            return started(frames, found.held, state, config=config, use=None)
        state, _ = journal.carry_on(
            name,
            SolverState,
            passes=length_of(prior, config),
            begin=lambda: blank_state(frames, found.held, use=use),
            states=lambda start: finite(
                solve(frames, found.held, prior=prior, config=config, start=start, use=use), name
            ),
            done=lambda state: state.iteration,
            waited=lambda: passes.waited_s,
        )
        return started(frames, found.held, state, config=config, use=use)


def fit_batches(stream: ScanStream, *, step: int, num_workers: int) -> TimedBatches:
    """The batches of a training from a step on, epoch after epoch."""
    epoch, within = divmod(step, stream.plan(0).n_steps)
    stream.load_state_dict({**stream.state_dict(), "epoch": epoch, "step": within})
    return TimedBatches(stream, num_workers=num_workers)


def fit_stream(store: Path, config: TrainConfig) -> tuple[ScanStream, FitConfig]:
    """The stream of a training, as many epochs as its steps take, and the fit with its steps known.

    Raises
    ------
    PlanError
        Such batches cannot be cut from this scan.
    """
    once = ScanStream(store, replace(config.stream, seed=config.seed, epochs=1))
    in_epoch = once.plan(0).n_steps
    steps = config.fit.steps if config.fit.epochs is None else config.fit.epochs * in_epoch
    stream = ScanStream(
        store,
        replace(config.stream, seed=config.seed, epochs=max(-(-steps // in_epoch), 1)),
        labels=config.supervised,
    )
    return stream, replace(config.fit, steps=steps)
