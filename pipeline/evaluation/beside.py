"""The solver's object and the network's of the same scan beside each other, on the same colour scales."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pipeline.evaluation.planes import Planes, limits_of, phase_limits_of, seen_part
from pipeline.evaluation.sheet import Cell, Labels, Panel, draw_map, lay_out, map_height

Values: TypeAlias = NDArray[np.float32]

SOLVER: Final = "solver alone"
NETWORK: Final = "network"


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """Two objects of one scan, (y, x) complex64 on the same grid.

    coverage, origin_px, reference, reference_role : as in `figure.Reconstruction`.
    """

    solver: NDArray[np.complex64]
    network: NDArray[np.complex64]
    coverage: NDArray[np.float32]
    origin_px: tuple[int, int]
    reference: NDArray[np.complex64] | None
    reference_role: str


def draw_beside(pair: Pair, *, title: str, subtitle: str) -> Figure:
    """A sheet 2,400 pixels wide: amplitude and phase of both, how they differ, and how either errs where that is known.

    Each row has one colour scale; the error of an object is what is left of it and the reference after one complex
    factor. Cropping and grey as in `figure.draw`. Writes nothing.
    """
    where = {"origin_px": pair.origin_px}
    solver = seen_part(pair.solver, pair.coverage, reference=pair.reference, **where)
    network = seen_part(pair.network, pair.coverage, reference=pair.reference, **where)
    turned = seen_part(pair.solver, pair.coverage, reference=pair.network, **where)
    change = _relative(turned.object, turned.reference)
    changed = _panel(
        turned,
        change,
        _error_limits([change]),
        "network minus solver, modulus",
        f"relative to the solver: {_rms(change)}",
    )
    known = pair.reference is not None and bool(np.isfinite(solver.reference).any())
    role = pair.reference_role
    shown = [(SOLVER, solver, solver.object), (NETWORK, network, network.object)]
    if known:
        shown.append((role, solver, solver.reference))
    maps = [(name, planes, np.abs(values), np.angle(values)) for name, planes, values in shown]
    amplitude = _common([values for _, _, values, _ in maps], limits_of)
    phase = _common([values for _, _, _, values in maps], phase_limits_of)
    rows = [
        [_panel(p, a, amplitude, f"{name}, amplitude", "one scale for the row") for name, p, a, _ in maps],
        [_panel(p, f, phase, f"{name}, phase", "rad, one scale for the row") for name, p, _, f in maps],
    ]
    if known:
        errors = [_relative(planes.reference, planes.object) for planes in (solver, network)]
        limits = _error_limits(errors)
        rows.append(
            [
                _panel(planes, error, limits, f"{name} minus {role}, modulus", f"relative to the {role}: {_rms(error)}")
                for (name, planes, _), error in zip(shown, errors, strict=False)
            ]
        )
        rows[-1].append(changed)
    else:
        rows[0].append(changed)
    tall = map_height(solver)
    return lay_out([(tall, [(i, 1, p) for i, p in enumerate(row)]) for row in rows], title=title, subtitle=subtitle)


def _panel(planes: Planes, values: NDArray[Any], limits: tuple[float, float], name: str, below: str) -> Panel:
    def panel(cell: Cell) -> Labels:
        draw_map(cell, planes, values, limits)
        return name, below

    return panel


def _common(
    planes: Sequence[NDArray[Any]], limits: Callable[[NDArray[Any]], tuple[float, float]]
) -> tuple[float, float]:
    """Limits that hold for all of them."""
    return limits(np.concatenate([values.ravel() for values in planes]))


def _error_limits(errors: Sequence[NDArray[Any]]) -> tuple[float, float]:
    return 0.0, max(limits_of(error)[1] for error in errors)


def _relative(one: NDArray[np.complex64], other: NDArray[np.complex64]) -> NDArray[np.floating]:
    """|other - one| over the rms of `one`; NaN where either is unknown."""
    known = np.isfinite(one) & np.isfinite(other)
    rms = float(np.sqrt(np.mean(np.abs(one[known]) ** 2))) if known.any() else 0.0
    found: NDArray[np.floating] = np.where(known, np.abs(other - one), np.nan) / (rms or 1.0)
    return found


def _rms(relative: NDArray[np.floating]) -> str:
    known = relative[np.isfinite(relative)]
    return f"rms {np.sqrt(np.mean(known**2)):.3g}" if known.size else "unknown"
