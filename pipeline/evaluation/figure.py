"""One reconstruction at a glance: what was found, what it rests on, how well it explains the frames.

Drawn with matplotlib's objects alone: no pyplot, no global state, the same pixels for the same values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from numpy.typing import NDArray

from pipeline.evaluation.planes import SEEN_FROM, Planes, limits_of, mean_distance, phase_limits_of, seen_part, thinned
from pipeline.evaluation.sheet import (
    BLUE,
    DPI,
    INK,
    LIGHT,
    NAME,
    PANEL,
    PINK,
    PLOT,
    SOFT,
    TEXT,
    WIDTH,
    Cell,
    Labels,
    Panel,
    bar,
    colours,
    draw_map,
    lay_out,
    map_axes,
    map_height,
    note,
    plain,
    plot_axes,
    printable,
)
from pipeline.picture import Limits, colour_wheel, complex_image, palette

Doubles: TypeAlias = NDArray[np.float64]

_MOST_DOTS, _MOST_ARROWS, _MOST_CURVES = 20_000, 600, 12


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """Loss on held-out frames over the iterations of one candidate; `chosen` marks the one that was taken."""

    label: str
    iterations: Sequence[int]
    losses: Sequence[float]
    chosen: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Reconstruction:
    """What a picture of a reconstruction needs. Pairs are (y, x); None is what was not refined or is not known.

    object : (y, x) complex64 in the gauge of the source.
    coverage : (y, x) float32, light that fell on each pixel, relative to the largest.
    origin_px : grid coordinate of element [0, 0].
    probe : (mode, N, N) complex64.
    positions : (frame, 2) float64 as used, pixels of the grid.
    position_shift : (frame, 2) float64 pixels, used minus stored.
    gain : (frame,) float64, light of each frame over the mean.
    frame_loss : (frame,) float64 per good pixel, NaN where the frame was not used; `loss_name` says which loss.
    convergence : held-out losses of the candidates.
    floor : the held-out loss that photon noise alone would give.
    reference : (y, x) complex64 on the same grid; `reference_role` is "truth" or "guess".
    """

    object: NDArray[np.complex64]
    coverage: NDArray[np.float32]
    origin_px: tuple[int, int]
    probe: NDArray[np.complex64]
    positions: Doubles
    position_shift: Doubles | None
    gain: Doubles | None
    frame_loss: Doubles
    loss_name: str
    convergence: tuple[Curve, ...]
    floor: float | None
    reference: NDArray[np.complex64] | None
    reference_role: str


@dataclass(frozen=True, kw_only=True, slots=True)
class _Scene:
    """What every panel draws from; the limits hold for object and reference alike."""

    found: Reconstruction
    planes: Planes
    amplitude: Limits
    phase: Limits


_Panel: TypeAlias = Callable[[Cell, _Scene], Labels]
_Row: TypeAlias = tuple[float, list[tuple[int, int, _Panel]]]


def _bound(panel: _Panel, scene: _Scene) -> Panel:
    return lambda cell: panel(cell, scene)


def draw(reconstruction: Reconstruction, title: str) -> Figure:
    """A sheet 2,400 pixels wide: object, coverage, probe, shifts and losses, beside a reference where there is one.

    Objects are cropped to what was seen, and are block means beyond 1,500 pixels a side. Grey is what got less than a
    tenth of the largest coverage. Phases are relative to their mean. Writes nothing.
    """
    r = reconstruction
    planes = seen_part(r.object, r.coverage, origin_px=r.origin_px, reference=r.reference)
    amplitude, phase = limits_of(np.abs(planes.object)), phase_limits_of(np.angle(planes.object))
    scene = _Scene(found=r, planes=planes, amplitude=amplitude, phase=phase)
    rows = _rows(r, map_height(planes))
    return lay_out(
        [(tall, [(first, n, _bound(panel, scene)) for first, n, panel in panels]) for tall, panels in rows],
        title=title,
        subtitle=_subtitle(r),
    )


def _rows(found: Reconstruction, tall: float) -> list[_Row]:
    rows: list[_Row] = [(tall, [(0, 1, _amplitude), (1, 1, _phase), (2, 1, _coverage)])]
    if found.reference is not None:
        rows.append((tall, [(0, 1, _reference_amplitude), (1, 1, _reference_phase), (2, 1, _difference)]))
    rows.append((max(tall, PLOT), [(0, 1, _probe), (1, 1, _shifts), (2, 1, _losses)]))
    if found.gain is None:
        return [*rows, (PLOT, [(0, 3, _convergence)])]
    return [*rows, (PLOT, [(0, 2, _convergence), (2, 1, _gain)])]


def _subtitle(found: Reconstruction) -> str:
    n_used, (n_modes, side, _) = int(np.isfinite(found.frame_loss).sum()), found.probe.shape
    frames = f"{n_used:,} of {len(found.frame_loss):,} frames of {side} x {side} px"
    grid = "object of {:,} x {:,} px, cropped to what was seen".format(*found.object.shape)
    return f"{frames} · {grid} · probe modes: {n_modes}"


def _amplitude(cell: Cell, scene: _Scene) -> Labels:
    draw_map(cell, scene.planes, np.abs(scene.planes.object), scene.amplitude)
    return "Object, amplitude", "grey: less than 10 % of the largest coverage"


def _phase(cell: Cell, scene: _Scene) -> Labels:
    draw_map(cell, scene.planes, np.angle(scene.planes.object), scene.phase)
    return "Object, phase", "rad, relative to its mean"


def _reference_amplitude(cell: Cell, scene: _Scene) -> Labels:
    draw_map(cell, scene.planes, np.abs(scene.planes.reference), scene.amplitude)
    return f"{scene.found.reference_role}, amplitude", "scaled to the object by least squares"


def _reference_phase(cell: Cell, scene: _Scene) -> Labels:
    draw_map(cell, scene.planes, np.angle(scene.planes.reference), scene.phase)
    return f"{scene.found.reference_role}, phase", "rad, turned to the object by least squares"


def _difference(cell: Cell, scene: _Scene) -> Labels:
    reference = scene.planes.reference
    known = np.isfinite(reference)
    rms = float(np.sqrt(np.mean(np.abs(reference[known]) ** 2))) if known.any() else 0.0
    relative = np.abs(scene.planes.object - reference) / (rms or 1.0)
    draw_map(cell, scene.planes, relative, (0.0, limits_of(relative)[1]))
    whole = f"rms {np.sqrt(np.mean(relative[known] ** 2)):.3g}" if rms else "unknown"
    role = scene.found.reference_role
    return f"Object minus {role}, modulus", f"relative to the rms of the {role}: {whole}"


def _coverage(cell: Cell, scene: _Scene) -> Labels:
    coverage, (left, right, bottom, top) = scene.planes.coverage, scene.planes.extent
    ax = draw_map(cell, scene.planes, coverage, (0.0, 1.0))
    _dots(ax, scene, thinned(scene.found.positions, _MOST_DOTS), 0.3, color="white")
    known = np.ma.masked_invalid(coverage)
    if min(coverage.shape) > 1 and known.count() and known.min() < SEEN_FROM < known.max():
        y, x = ((np.arange(n) + 0.5) / n for n in coverage.shape)
        ax.contour(left + (right - left) * x, top + (bottom - top) * y, known, [SEEN_FROM], colors=PINK, linewidths=1)
    return "Coverage and scan positions", "light on a pixel over its largest; line: 10 %"


def _dots(ax: Axes, scene: _Scene, positions: Doubles, size: float, **how: Any) -> None:
    """Positions as dots as wide as `size` times the mean distance in the scan, at least 1.2 and at most 8 points."""
    points_per_px = 72 * WIDTH * ax.get_position().width / scene.planes.size[1]
    wide = float(np.clip(size * points_per_px * mean_distance(scene.found.positions), 1.2, 8.0))
    ax.scatter(positions[:, 1], positions[:, 0], s=wide**2, linewidths=0, **how)


def _probe(cell: Cell, scene: _Scene) -> Labels:
    probe, side = scene.found.probe, scene.found.probe.shape[-1]
    power = np.nansum(np.abs(probe.astype(np.complex128)) ** 2, axis=(1, 2))
    centre = slice(side // 4, side - side // 4)
    inner = np.nansum(np.abs(probe[:, centre, centre].astype(np.complex128)) ** 2)
    shown = probe[:, centre, centre] if inner > 0.99 * power.sum() else probe
    n_columns, gap, line = {1: 1, 2: 2, 3: 2, 4: 2}.get(len(probe), 3), 0.1, 0.2
    n_rows = -(-len(probe) // n_columns)
    tile = min((cell.width + gap) / n_columns - gap, min(cell.height, PANEL) / n_rows - line)
    for i, mode in enumerate(shown):
        x, y = (tile + gap) * (i % n_columns), (tile + line + 0.04) * (i // n_columns)
        ax = cell.axes(x, y, tile, tile)
        ax.imshow(complex_image(mode))
        ax.set(xticks=[], yticks=[])
        share = f"{100 * power[i] / power.sum():.3g} %" if power.sum() > 0 else "unknown"
        cell.write(x, y + tile + 0.14, f"{i + 1}: {share}")
    wheel = cell.axes((tile + gap) * n_columns + 0.02, 0, 0.5, 0.5)
    wheel.imshow(colour_wheel(200))
    wheel.set_axis_off()
    part = f"{side} x {side} px" if shown is probe else f"central {shown.shape[-1]} of {side} px"
    return "Probe, share of each mode", f"{part}; hue: phase, brightness: amplitude"


def _shifts(cell: Cell, scene: _Scene) -> Labels:
    positions, shift = scene.found.positions, scene.found.position_shift
    ax, (width, height) = map_axes(cell, scene.planes, LIGHT)
    length = np.zeros(len(positions)) if shift is None else np.hypot(*shift.T)
    known = length[np.isfinite(length)]
    if shift is None or not known.any():
        _dots(ax, scene, thinned(positions, _MOST_DOTS), 0.4, color=BLUE)
        return "Scan positions", "as stored" if shift is None else "refined, none moved" if known.size else "unknown"
    y, x, dy, dx = thinned(np.column_stack([positions, shift]), _MOST_ARROWS).T
    longest = float(np.percentile(known, 99)) or float(known.max())
    arrows = ax.quiver(
        x, y, dx, dy, angles="xy", scale_units="inches", scale=longest / 0.2, units="inches", width=0.009, color=BLUE
    )
    unit = float(f"{longest:.0e}")
    key = {"labelpos": "S", "labelcolor": INK, "fontproperties": {"size": TEXT}}
    ax.quiverkey(arrows, 1 + 0.3 / width, 1 - 0.08 / height, unit, f"{plain(unit)} px", **key)
    some = f"; {len(x):,} frames shown" if len(x) < len(shift) else ""
    return "Position shifts", f"median {np.median(known):.2g} px, largest {known.max():.2g} px{some}"


def _losses(cell: Cell, scene: _Scene) -> Labels:
    loss, positions = scene.found.frame_loss, scene.found.positions
    limits, cmap, used = limits_of(loss, tails=1), colours(palette()), np.isfinite(loss)
    ax, panel = map_axes(cell, scene.planes, LIGHT)
    rows = thinned(np.column_stack([positions, loss])[used], _MOST_DOTS)
    rows = rows[np.argsort(rows[:, 2], kind="stable")]  # the worst on top
    _dots(ax, scene, rows[:, :2], 0.9, c=rows[:, 2], cmap=cmap, norm=Normalize(*limits))
    _dots(ax, scene, thinned(positions[~used], _MOST_DOTS), 0.6, color=PINK)
    bar(cell, panel, cmap, limits)
    unused = "" if used.all() else f"; pink: {np.sum(~used):,} not used"
    return f"{scene.found.loss_name} of each frame", f"mean over its good pixels{unused}"


def _convergence(cell: Cell, scene: _Scene) -> Labels:
    curves = [curve for curve in scene.found.convergence if np.isfinite(curve.losses[-1:]).any()]
    best_last = sorted(curves, key=lambda curve: (not curve.chosen, curve.losses[-1]))[:_MOST_CURVES]
    best_last.sort(key=lambda curve: -curve.losses[-1])
    ax = plot_axes(cell, cell.width - 1.85, "iteration")
    for i, curve in enumerate(best_last):
        ax.plot(
            curve.iterations,
            curve.losses,
            color=PINK if curve.chosen else palette()[210 - 200 * i // len(best_last)] / 255,
            linewidth=2.4 if curve.chosen else 1.1,
            marker="o" if len(curve.losses) < 3 else None,
            markersize=4,
            zorder=3 if curve.chosen else 2,
            label=f"{curve.losses[-1]:#.4g}  {curve.label}{', chosen' if curve.chosen else ''}",
        )
    ends = [curve.losses[-1] for curve in best_last]
    if scene.found.floor is not None:
        ends.append(scene.found.floor)
        ax.axhline(ends[-1], color=INK, linewidth=1, linestyle="--", label=f"{ends[-1]:#.4g}  photon noise alone")
    if ends:
        _loss_axis(ax, best_last, ends)
        ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1.03), frameon=False, fontsize=TEXT, labelcolor=INK)
    else:
        note(ax, "not recorded", SOFT)
    return (
        "Loss on held-out frames",
        f"{scene.found.loss_name} of frames the solve did not see; right: its last value",
    )


def _loss_axis(ax: Axes, curves: Sequence[Curve], ends: Sequence[float]) -> None:
    """From the least of the last values up, without the first quarter; logarithmic over more than a factor of three."""
    least, most = min(ends), max(ends)
    late = np.concatenate([ends, *(curve.losses[len(curve.losses) // 4 :] for curve in curves)])
    top = max(float(late[np.isfinite(late)].max()), most + 2 * (most - least))
    if 0 < 3 * least < top:
        ax.set(yscale="log", ylim=(0.9 * least, 1.1 * top))
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_minor_locator(NullLocator())
        ax.yaxis.set_major_formatter(FuncFormatter(plain))
        return
    rim = 0.05 * (top - least) or 0.05 * abs(top) or 0.05
    ax.set_ylim(least - rim, top + rim)


def _gain(cell: Cell, scene: _Scene) -> Labels:
    gain = scene.found.gain
    assert gain is not None, "its panel is laid out only where there is one"
    ax = plot_axes(cell, cell.width, "frame")
    frames, values = thinned(np.column_stack([np.arange(len(gain)), gain]), _MOST_DOTS).T
    ax.set_xlim(-0.5 - 0.02 * len(gain), 1.02 * len(gain) - 0.5)
    ax.axhline(1, color=SOFT, linewidth=0.6)
    ax.scatter(frames, values, s=2, color=BLUE, linewidths=0)
    known = gain[np.isfinite(gain)]
    return "Gain of each frame", f"{known.min():.3f} to {known.max():.3f} of the mean" if known.size else "unknown"


def draw_losses(losses: Sequence[float], title: str) -> Figure:
    """The loss of each training step, and its mean over the last fiftieth of the training."""
    figure = Figure(figsize=(9, 3.6), dpi=DPI, facecolor="white")
    ax = figure.add_axes((0.09, 0.17, 0.88, 0.68))
    ax.set_title(printable(title), loc="left", color=INK, fontsize=NAME, parse_math=False)
    steps = np.arange(1, len(losses) + 1)
    ax.plot(steps, losses, ".", color=BLUE, markersize=2, alpha=0.5, label="each step")
    width = max(len(losses) // 50, 1)
    if len(losses) >= width:
        means = np.convolve(np.asarray(losses), np.ones(width) / width, mode="valid")
        ax.plot(steps[width - 1 :], means, color=PINK, linewidth=1.5, label=f"mean of {width}")
    ax.set_xlabel("step", color=SOFT, fontsize=TEXT)
    ax.set_ylabel("training loss", color=SOFT, fontsize=TEXT)
    ax.tick_params(labelsize=TEXT)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize=TEXT, loc="lower right", bbox_to_anchor=(1, 1), ncols=2)
    return figure
