"""Which prior a scan asks for: the one whose solve predicts frames best that it has not seen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.config import LossName, SolverConfig
from pipeline.errors import PlanError
from pipeline.physics.forward import (
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
from pipeline.physics.prior import Prior
from pipeline.physics.solver import SolverState, Survey, blank_state, kept, solve

CANDIDATES: Final = (
    *(Prior(name="quadratic", weight=weight) for weight in (0.0005, 0.004, 0.03, 0.2)),
    *(Prior(name="tv", weight=weight) for weight in (0.001, 0.003, 0.01)),
)
"""The priors that are tried."""

HELD_OUT_SHARE: Final = 0.1
"""Share of the frames that the choice is made on."""

_MARGIN: Final = 0.15


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldOut:
    """What is judged on: `frames` (frame,) bool by index in the scan, those in the middle of the `survey`'s box.

    background : b of the loss, photons per pixel: `losses.REPORTED_BACKGROUND`.
    """

    frames: NDArray[np.bool_]
    survey: Survey
    background: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """A prior and the loss of its solve on held-out frames, the mean over their good pixels."""

    prior: Prior
    loss: float


def held_out_frames(order: NDArray[np.int64], *, share: float = HELD_OUT_SHARE) -> NDArray[np.bool_]:
    """The first frames of a seeded order, as a mask. (frame,) int64 permutation -> (frame,) bool."""
    mask = np.zeros(len(order), dtype=np.bool_)
    mask[order[: round(share * len(order))]] = True
    return mask


def central(positions: Tensor, survey: Survey) -> Tensor:
    """Which positions lie in the scan's box shrunk by 15 % a side, where neighbours see the same. (B,) bool."""
    low, high = (torch.tensor(corner, dtype=positions.dtype) for corner in (survey.lowest, survey.highest))
    margin = _MARGIN * (high - low)
    return ((positions >= low + margin) & (positions <= high - margin)).all(1)


def held_out_loss(passes: Passes, canvas: Tensor, optics: Optics, *, held_out: HeldOut, loss: LossName) -> float:
    """Mean loss over good pixels of the held-out frames in the middle of the scan. Reads the scan once.

    Parameters
    ----------
    canvas : (canvas_y, canvas_x) complex, solver's gauge.

    Raises
    ------
    PlanError
        No held-out frame lies there.
    """
    total, n = 0.0, 0
    padded = pad_canvas(canvas, outside=BLANK)
    for batch in kept(passes(), held_out.frames):
        rows = central(batch.positions, held_out.survey).nonzero()[:, 0]
        if len(rows) == 0:
            continue  # MKL refuses transforms of nothing
        windows = windows_of(batch.positions[rows], optics)
        gain = None if batch.gain is None else batch.gain[rows]
        predicted = intensity_of(with_gain(fields_of(padded, windows, optics), gain)).double()
        measured = to_corner(batch.intensity[rows]).double()
        losses = loss_of(loss, measured, predicted, background=held_out.background)
        good = losses if optics.bad is None else losses[:, ~optics.bad]
        total, n = total + float(good.sum()), n + good.numel()
    if n == 0:
        raise PlanError("no held-out frame lies in the middle of the scan", code="physics.held_out")
    return total / n


def try_priors(
    passes: Passes,
    optics: Optics,
    *,
    held_out: HeldOut,
    config: SolverConfig,
    candidates: Sequence[Prior] = CANDIDATES,
) -> Iterator[Trial]:
    """Each candidate solved on the frames not held out and judged on those held out.

    The quadratic iterations that TV starts from are done once. `passes` must not bring frames that do not count.
    """
    others = ~held_out.frames
    blank = blank_state(passes, optics, use=others)
    tv_start: SolverState | None = None
    for prior in candidates:
        last = tv_start if prior.name == "tv" and tv_start is not None else blank
        for state in solve(passes, optics, prior=prior, config=config, start=last, use=others):
            last = state
            if prior.name == "tv" and state.iteration == config.start_iterations:
                tv_start = state
        loss = held_out_loss(passes, last.canvas, optics, held_out=held_out, loss=config.loss)
        yield Trial(prior=prior, loss=loss)


def choose_prior(trials: Sequence[Trial]) -> Trial:
    """The trial with the least held-out loss; the first of equals."""
    return min(trials, key=lambda trial: trial.loss)
