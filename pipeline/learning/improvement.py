"""What a trained network makes of a scan, called from a program: object and predicted frames, nothing left on disk."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.config import TrainConfig
from pipeline.errors import ConfigError
from pipeline.learning.canvas import improved
from pipeline.learning.determinism import deterministic
from pipeline.learning.estimate import Estimate, estimate
from pipeline.learning.journal import Journal
from pipeline.learning.networks import UNet
from pipeline.learning.prepare import start_on
from pipeline.physics.forward import Frames, fields_of, intensity_of, pad_canvas, to_centre, windows_of, with_gain
from pipeline.physics.gauge import BLANK
from pipeline.physics.passes import Scene, open_scene
from pipeline.physics.prior import Prior
from pipeline.physics.refine import moved_frames


@dataclass(frozen=True, kw_only=True, slots=True)
class Improvement:
    """A scan's object as a network sees it.

    object : (y, x) complex64 in the source's gauge. origin_px : grid coordinate (y, x) of element [0, 0].
    canvas : the same in the solver's gauge. scene, estimate : what it began with. threads : of the computation.
    """

    object: NDArray[np.complex64]
    origin_px: tuple[int, int]
    canvas: Tensor
    scene: Scene
    estimate: Estimate
    threads: int

    def amplitudes(self, *, batch_size: int = 64) -> Iterator[NDArray[np.float32]]:
        """The frames that the object predicts: (B, N, N), amplitudes in the source's gauge, zero frequency centred.

        Every frame that the store does not call invalid, in the store's order, as `sequential` batches of a stream;
        the last batch may be shorter. Light that the loss takes for background is in them.

        Raises
        ------
        ConfigError
            `batch_size` is no positive number.
        """
        if batch_size < 1:
            raise ConfigError(f"batches of {batch_size} frames; at least 1 is needed", code="config.range")
        return self._amplitudes(batch_size)

    def _amplitudes(self, batch_size: int) -> Iterator[NDArray[np.float32]]:
        found, scene = self.estimate, self.scene
        padded = pad_canvas(self.canvas, outside=BLANK)
        behind = found.background if found.holding.loss == "poisson-background" else 0.0
        rows, positions = np.flatnonzero(scene.eligible), scene.positions
        for first in range(0, len(rows), batch_size):
            index = rows[first : first + batch_size]
            with torch.no_grad(), deterministic(threads=self.threads):
                asked = Frames(
                    intensity=torch.empty(0),
                    positions=torch.from_numpy(positions[index]),
                    index=torch.from_numpy(index),
                )
                frames = moved_frames(asked, shift=found.shift, gain=found.gain)
                fields = fields_of(padded, windows_of(frames.positions, found.held), found.held)
                light = to_centre(intensity_of(with_gain(fields, frames.gain))).add_(behind)
                amplitude: NDArray[np.float32] = light.sqrt_().div_(scene.photons_scale).numpy()
            yield amplitude


def improve_scan(
    store: Path,
    network_for: Callable[[int], UNet],
    *,
    prior: Prior,
    config: TrainConfig,
    probe: Tensor,
    photons_per_frame: float | None,
) -> Improvement:
    """Solve the scan at `store` and let a network improve it.

    Parameters
    ----------
    network_for : the network for frames of a side, or its refusal.
    prior, config : of the training. probe : (mode, N, N) complex64, used where the store has none.
    photons_per_frame : the mean of the scan, where its store does not tell.

    Raises
    ------
    NotFoundError, SourceError, IntegrityError, SchemaError, PlanError, ConfigError, DivergedError
        See `open_scene` and `estimate`.
    """
    # the prior is given, so nothing is left to choose: one pass of its only candidate is enough
    assert prior.name != "none", "no training chooses it"
    given = replace(config.prior, name=prior.name, weight=prior.weight, choice_iterations=1)
    solving = replace(config.solving, photons_per_frame=photons_per_frame, prior=given, num_workers=0)
    with deterministic(threads=config.threads), tempfile.TemporaryDirectory(prefix="ptychozarr-") as folder:
        scene = open_scene(store, photons_per_frame=photons_per_frame, probe=probe)
        network = network_for(scene.record.arrays["diffraction"].layout.shape[1])
        journal = Journal(Path(folder) / "states", identity={}, tell=lambda name, passes: lambda done: None)
        found = estimate(scene, solving, journal)
        start = start_on(
            scene, found, prior, journal, name="solve for the network", batch_pixels=solving.solver.batch_pixels,
            num_workers=0,
        )  # fmt: skip
        canvas = improved(network, start)
    return Improvement(
        object=found.held.gauge.object_to_source(canvas).numpy(),
        origin_px=found.held.geometry.origin,
        canvas=canvas,
        scene=scene,
        estimate=found,
        threads=config.threads,
    )
