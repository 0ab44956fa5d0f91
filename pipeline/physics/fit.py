"""How well an object explains the frames it was made from, each of them. One pass."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.config import LossName
from pipeline.physics.forward import (
    Frames,
    Optics,
    Passes,
    fields_of,
    intensity_of,
    pad_canvas,
    to_corner,
    windows_of,
    with_gain,
)
from pipeline.physics.gauge import BLANK
from pipeline.physics.losses import loss_of
from pipeline.physics.noise import expected_r_factor_parts, r_factor_parts
from pipeline.physics.solver import chosen_frames

_PIECE: Final = 32


@dataclass(frozen=True, kw_only=True, slots=True)
class Fit:
    """How well an object explains the frames it was made from.

    frame_loss : (frame,) float64, mean per good pixel; NaN where a frame was not used.
    r_factor, r_factor_floor : sum |sqrt I - sqrt l| / sum sqrt I, found and expected of photon noise alone (None where
        photons are unknown).
    """

    frame_loss: NDArray[np.float64]
    r_factor: float
    r_factor_floor: float | None


def fit_of(passes: Passes, canvas: Tensor, optics: Optics, *, n_frames: int, loss: LossName, background: float) -> Fit:
    """The fit of a canvas over all frames of the passes. Reads the scan once.

    Parameters
    ----------
    canvas : (canvas_y, canvas_x) complex, solver's gauge.
    n_frames : of the scan, those that do not stream included.
    background : b of the loss, photons per pixel; light where the loss says so.
    """
    frame_loss = np.full(n_frames, np.nan)
    padded = pad_canvas(canvas, outside=BLANK)
    mask = None if optics.bad is None else ~optics.bad.numpy()
    sums = np.zeros(4)
    for batch in passes():
        for frames in _few_at_a_time(batch):
            fields = with_gain(fields_of(padded, windows_of(frames.positions, optics), optics), frames.gain)
            light, measured = intensity_of(fields).double(), to_corner(frames.intensity).double()
            losses = loss_of(loss, measured, light, background=background)
            good = losses.flatten(1) if optics.bad is None else losses[:, ~optics.bad]
            frame_loss[frames.index.numpy()] = good.mean(1)
            if loss == "poisson-background":
                light += background
            parts = r_factor_parts(measured.numpy(), light.numpy(), good=mask)
            sums += [part.sum() for part in (*parts, *expected_r_factor_parts(light.numpy(), good=mask))]
    floor = None if loss == "amplitude" else float(sums[2] / sums[3])
    return Fit(frame_loss=frame_loss, r_factor=float(sums[0] / sums[1]), r_factor_floor=floor)


def _few_at_a_time(batch: Frames) -> Iterator[Frames]:
    """The frames of a batch in pieces whose float64 values stay small beside a solver's batch."""
    for first in range(0, len(batch.index), _PIECE):
        yield chosen_frames(batch, torch.arange(first, min(first + _PIECE, len(batch.index))))
