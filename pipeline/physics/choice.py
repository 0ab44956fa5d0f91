"""Which prior a scan asks for: the one whose solve predicts frames best that it has not seen."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.config import LossName, PriorConfig
from pipeline.errors import PlanError
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
from pipeline.physics.noise import poisson_floor
from pipeline.physics.prior import Prior
from pipeline.physics.solver import kept

CANDIDATES: Final = (
    *(Prior(name="quadratic", weight=weight) for weight in (0.0005, 0.004, 0.03, 0.2)),
    *(Prior(name="tv", weight=weight) for weight in (0.001, 0.003, 0.01)),
)
"""The priors that are tried."""

HELD_OUT_SHARE: Final = 0.1
"""Share of the frames that are left out of a solve to judge it."""

_MARGIN: Final = 0.15


@dataclass(frozen=True, kw_only=True, slots=True)
class Split:
    """Which frames are left out of a solve and which of those judge it; (frame,) bool each, by index in the scan.

    held : a tenth of all. judged : those of them in the scan's box shrunk by 15 % a side.
    """

    held: NDArray[np.bool_]
    judged: NDArray[np.bool_]

    @property
    def solved(self) -> NDArray[np.bool_]:
        """The frames that a solve may see."""
        return ~self.held


def split_frames(order: NDArray[np.int64], positions: NDArray[np.float64], eligible: NDArray[np.bool_]) -> Split:
    """The first tenth of a seeded order is held out; where none of it could judge, the first frame that can.

    Parameters
    ----------
    order : (frame,) int64, a permutation. positions : (frame, 2) float64 (y, x). eligible : (frame,) bool.

    Raises
    ------
    PlanError
        No frame lies in the middle of the scan, or none would be left to solve with.
    """
    low, high = positions[eligible].min(0), positions[eligible].max(0)
    margin = _MARGIN * (high - low)
    central = eligible & ((positions >= low + margin) & (positions <= high - margin)).all(1)
    held = np.zeros(len(order), dtype=np.bool_)
    held[order[: round(HELD_OUT_SHARE * len(order))]] = True
    if not (held & central).any() and central.any():
        held[order[np.argmax(central[order])]] = True
    if not (held & central).any() or not (eligible & ~held).any():
        n = np.count_nonzero(eligible)
        lacks = "none lies" if not central.any() else "one alone lies"
        raise PlanError(
            f"of {n} frames {lacks} in the middle of the scan, its box shrunk by {_MARGIN:.0%} a side: one there must "
            "be held out to judge a solve of the others",
            code="physics.held_out",
        )
    return Split(held=held, judged=held & central)


def judged_frames(passes: Passes, canvas: Tensor, optics: Optics, *, split: Split) -> Iterator[tuple[Tensor, Tensor]]:
    """Measured and predicted photons of the good pixels of the frames that judge. Reads the scan once.

    Parameters
    ----------
    canvas : (canvas_y, canvas_x) complex, solver's gauge.

    Yields
    ------
    Two (pixel,) or (B, N, N) float64, in one order.
    """
    padded = pad_canvas(canvas, outside=BLANK)
    for batch in kept(passes(), split.judged):
        fields = with_gain(fields_of(padded, windows_of(batch.positions, optics), optics), batch.gain)
        predicted, measured = intensity_of(fields).double(), to_corner(batch.intensity).double()
        if optics.bad is not None:
            predicted, measured = predicted[:, ~optics.bad], measured[:, ~optics.bad]
        yield measured, predicted


def held_out_scores(
    passes: Passes, canvas: Tensor, optics: Optics, *, split: Split, loss: LossName, background: float
) -> tuple[float, float | None]:
    """Mean loss over good pixels of the frames that judge, and what photon noise alone would leave of it.

    Reads the scan once. The floor is what is expected if the canvas were the truth: with "poisson-background" the
    background makes counts, with "poisson" it makes none, with "amplitude" the floor is unknown, None.

    Parameters
    ----------
    canvas : (canvas_y, canvas_x) complex, solver's gauge.
    background : b of the loss, photons per pixel: `losses.REPORTED_BACKGROUND` where nothing was refined.
    """
    makes_counts = background if loss == "poisson-background" else 0.0
    found, floor, n = 0.0, 0.0, 0
    for measured, predicted in judged_frames(passes, canvas, optics, split=split):
        found += float(loss_of(loss, measured, predicted, background=background).sum())
        floor += float(poisson_floor(predicted.numpy() + makes_counts, background=background - makes_counts).sum())
        n += measured.numel()
    return found / n, None if loss == "amplitude" else floor / n


class HeldOutWitness:
    """The loss of the frames that judge, taken while a solve streams by, so that nothing is read for it."""

    def __init__(self, optics: Optics, *, split: Split, loss: LossName, background: float) -> None:
        """`background` b of the loss, photons per pixel."""
        self._optics, self._split, self._loss, self._background = optics, split, loss, background
        self._canvas: Tensor | None = None
        self._padded: Tensor | None = None
        self._total, self._n = 0.0, 0

    def __call__(self, frames: Frames, canvas: Tensor) -> None:
        """Add some held-out frames at a canvas (canvas_y, canvas_x)."""
        if self._padded is None or canvas is not self._canvas:
            self._canvas, self._padded = canvas, pad_canvas(canvas, outside=BLANK)
        for batch in kept([frames], self._split.judged):
            fields = with_gain(
                fields_of(self._padded, windows_of(batch.positions, self._optics), self._optics), batch.gain
            )
            self.compare(batch.index, to_corner(batch.intensity), intensity_of(fields))

    def compare(self, index: Tensor, measured: Tensor, predicted: Tensor) -> None:
        """Add those frames that judge. (B,) int64, (B, N, N) photons twice, in FFT order."""
        rows = torch.from_numpy(self._split.judged)[index].nonzero()[:, 0]
        if len(rows) == 0:
            return
        losses = loss_of(self._loss, measured[rows].double(), predicted[rows].double(), background=self._background)
        good = losses if self._optics.bad is None else losses[:, ~self._optics.bad]
        self._total, self._n = self._total + float(good.sum()), self._n + good.numel()

    def told(self) -> float | None:
        """The mean over good pixels of what was added since this was last asked; None where nothing was."""
        mean = self._total / self._n if self._n else None
        self._total, self._n, self._canvas, self._padded = 0.0, 0, None, None
        return mean


def candidates_of(config: PriorConfig) -> tuple[Prior, ...]:
    """The priors to try: all, those of one kind, or the one that is given."""
    if config.name == "auto":
        return CANDIDATES
    if config.weight is not None:
        return (Prior(name=config.name, weight=config.weight),)
    return tuple(prior for prior in CANDIDATES if prior.name == config.name)
