"""Small scans as patches of a known object, for the tests of patch networks."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.physics.forward import (
    BLANK,
    CanvasGeometry,
    Optics,
    extract,
    make_optics,
    pad_canvas,
    windows_at,
)
from pipeline.physics.gauge import Gauge
from tests.physics_scans import Scan


def optics_of(scan: Scan, *, support: int | None = None, dose: float = 1.0, valid: Tensor | None = None) -> Optics:
    """The optics of a scan in float64; with `dose`, its probe's energy is multiplied.

    The scan's own blank object is taken to be 0.65, near its mean amplitude.
    """
    probe = torch.from_numpy(scan.probe).to(torch.complex128) * dose**0.5
    geometry = CanvasGeometry(origin=(0, 0), shape=scan.geometry.shape)
    n = probe.shape[-1]
    return make_optics(probe, gauge=Gauge(blank_in_source=0.65), geometry=geometry, support=support or n, valid=valid)


def truth_of(scan: Scan, optics: Optics) -> Tensor:
    """The object in the solver's gauge. (y, x) complex128."""
    return optics.gauge.object_to_solver(torch.from_numpy(scan.truth).to(torch.complex128))


def cut(obj: Tensor, positions: Tensor, *, support: int) -> Tensor:
    """Patches of an object at (F, 2) positions, bilinear. (F, S, S) complex128."""
    geometry = CanvasGeometry(origin=(0, 0), shape=(obj.shape[0], obj.shape[1]))
    windows = windows_at(positions, geometry=geometry, support=support, dtype=torch.float64)
    return extract(pad_canvas(obj, outside=BLANK), windows)


def random_patches(n: int, side: int, *, seed: int = 0) -> Tensor:
    """(n, S, S) complex128 near the blank object."""
    rng = torch.Generator().manual_seed(seed)
    parts = torch.randn(n, side, side, 2, generator=rng, dtype=torch.float64)
    return BLANK + 0.1 * torch.view_as_complex(parts)
