"""Patches as one object, batch after batch: only the canvas is kept, however many patches there are."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.physics.forward import CanvasGeometry, pad_canvas, scatter, windows_at
from pipeline.physics.groups import LEVEL_WEIGHT


class Placed(NamedTuple):
    """Some patches and where they lie: (F, S, S) complex, (F, 2) float64 (y, x) object pixels."""

    patches: Tensor
    positions: Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Reassembled:
    """An object made of patches.

    object : (y, x) complex on the canvas, in the gauge of the patches; `level` where no light fell.
    coverage : (y, x) real, what fell on each pixel: scattered sum |P|^2 / max |P|^2.
    """

    object: Tensor
    coverage: Tensor


def reassemble(placed: Iterable[Placed], light: Tensor, *, geometry: CanvasGeometry, level: float) -> Reassembled:
    """The mean of all patches that lie on a pixel, weighted by the probe's light.

    Parameters
    ----------
    light : (S, S) real, sum over modes of |P|^2 / max |P|^2.
    level : the object where no light fell.
    """
    dtype = light.to(torch.complex64).dtype if light.dtype == torch.float32 else torch.complex128
    num = pad_canvas(torch.zeros(geometry.shape, dtype=dtype), outside=0)
    den = pad_canvas(torch.zeros(geometry.shape, dtype=light.dtype), outside=0)
    for patches, positions in placed:
        windows = windows_at(positions, geometry=geometry, support=len(light), dtype=light.dtype)
        scatter(patches * light, windows, onto=num)
        scatter(light.expand(len(patches), -1, -1), windows, onto=den)
    coverage = den[1:-1, 1:-1].clone()
    return Reassembled(
        object=(num[1:-1, 1:-1] + LEVEL_WEIGHT * level) / (coverage + LEVEL_WEIGHT),
        coverage=coverage,
    )
