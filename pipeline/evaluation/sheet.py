"""What pictures of a run are made of: cells on a sheet, maps with their colour bars, plots over whole numbers.

Drawn with matplotlib's objects alone: no pyplot, no global state, the same pixels for the same values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from pipeline.evaluation.planes import Planes
from pipeline.picture import Limits, palette, phase_image

DPI, WIDTH, PANEL, PITCH, LEFT = 200, 12.0, 2.75, 3.86, 0.72  # all lengths in inches
TOP, SHORTEST, TALLEST, ABOVE, BELOW, PLOT = 0.85, 0.9, 4.2, 0.58, 0.5, 2.3
INK, SOFT, LIGHT, BLUE, PINK = "#1b1f24", "#59636e", "#f0f2f5", "#0969da", "#cf226e"
UNSEEN: Final = (128 / 255, 128 / 255, 128 / 255)
TITLE, NAME, TEXT = 16.0, 11.0, 8.5
STEPS: Final = (1, 2, 5, 10)


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """A place on the sheet, in inches from its left and its top."""

    sheet: Figure
    x: float
    y: float
    width: float
    height: float

    def axes(self, x: float, y: float, width: float, height: float) -> Axes:
        """Axes whose left top lies at (x, y) inside the cell."""
        tall = float(self.sheet.get_figheight())
        left, bottom = (self.x + x) / WIDTH, 1 - (self.y + y + height) / tall
        ax = self.sheet.add_axes((left, bottom, width / WIDTH, height / tall))
        ax.spines[:].set(color=SOFT, linewidth=0.6)
        ax.tick_params(labelsize=TEXT, colors=SOFT, labelcolor=INK, length=3, width=0.6, pad=2)
        return ax

    def write(self, x: float, y: float, text: str, colour: str = SOFT, size: float = TEXT) -> None:
        """Text with its baseline at (x, y) inside the cell."""
        place = (self.x + x) / WIDTH, 1 - (self.y + y) / float(self.sheet.get_figheight())
        self.sheet.text(*place, text, color=colour, fontsize=size, parse_math=False)


Labels: TypeAlias = tuple[str, str]
"""Name and subtitle of a panel."""

Panel: TypeAlias = Callable[[Cell], Labels]
"""Draws into its cell."""

Row: TypeAlias = tuple[float, Sequence[tuple[int, int, Panel]]]
"""Height in inches, and panels with their first column and their number of columns."""


def lay_out(rows: Sequence[Row], *, title: str, subtitle: str) -> Figure:
    """A sheet 2,400 pixels wide with lettered panels."""
    height = TOP + sum(tall + ABOVE + BELOW for tall, _ in rows)
    sheet = Figure(figsize=(WIDTH, height), dpi=DPI, facecolor="white")
    head = Cell(sheet=sheet, x=LEFT, y=0, width=WIDTH, height=TOP)
    head.write(0, 0.45, printable(title), INK, TITLE)
    head.write(0, 0.7, subtitle)
    letters, y = iter("abcdefghijklm"), TOP
    for tall, panels in rows:
        for column, n_columns, panel in panels:
            width = PITCH * (n_columns - 1) + PANEL
            cell = Cell(sheet=sheet, x=LEFT + PITCH * column, y=y + ABOVE, width=width, height=tall)
            name, below = panel(cell)
            cell.write(0, -0.28, next(letters), BLUE, NAME)
            cell.write(0.17, -0.28, name[:1].upper() + name[1:], INK, NAME)
            cell.write(0, -0.1, below)
        y += tall + ABOVE + BELOW
    return sheet


def map_height(planes: Planes) -> float:
    """Inches that maps of these planes get."""
    return float(np.clip(PANEL * planes.size[0] / planes.size[1], SHORTEST, TALLEST))


def save(figure: Figure, path: Path) -> None:
    """Write the sheet as a PNG; the same sheet gives the same bytes."""
    figure.savefig(path, format="png", dpi=DPI, metadata={"Software": None})


def printable(title: str) -> str:
    """The title on one line no longer than the sheet, with "?" for what the font cannot write."""
    font = get_font(findfont("DejaVu Sans"))
    line = "".join(c if font.get_char_index(ord(c)) else "?" for c in " ".join(title.split()))
    return line if len(line) <= 72 else f"{line[:47]} ... {line[-20:]}"


def colours(rgb: NDArray[np.uint8]) -> Colormap:
    """Pixels (n, 3) as a colour map; grey where there is no number."""
    return ListedColormap(rgb / 255).with_extremes(bad=UNSEEN)


def map_axes(cell: Cell, planes: Planes, background: Any) -> tuple[Axes, tuple[float, float]]:
    """Axes of the seen part of the grid in its proportions, and their width and height in inches."""
    tall, wide = planes.size
    zoom = min(cell.width / wide, min(cell.height, TALLEST) / tall)
    width, height = zoom * wide, zoom * tall
    ax = cell.axes(0, 0, width, height)
    left, right, bottom, top = planes.extent
    ax.set(xlim=(left, right), ylim=(bottom, top), facecolor=background)
    ax.set_xlabel("x, px", fontsize=TEXT, color=SOFT, loc="right", labelpad=1)
    ax.set_ylabel("y, px", fontsize=TEXT, color=SOFT, loc="top", labelpad=1)
    for axis, length in ((ax.xaxis, width), (ax.yaxis, height)):
        axis.set_major_locator(MaxNLocator(max(1, round(length / 0.5)), steps=STEPS, integer=True, min_n_ticks=1))
        axis.set_visible(length > 0.4)  # room for a number
    return ax, (width, height)


def bar(cell: Cell, panel: tuple[float, float], cmap: Colormap, limits: Limits) -> None:
    """A colour bar to the right of a panel of these width and height."""
    ax = cell.axes(panel[0] + 0.09, 0, 0.1, max(panel[1], SHORTEST))
    cell.sheet.colorbar(ScalarMappable(Normalize(*limits), cmap), cax=ax)
    ax.yaxis.set_major_locator(MaxNLocator(5, steps=STEPS))
    ax.yaxis.set_major_formatter(FuncFormatter(plain))
    ax.spines[:].set_visible(False)


def draw_map(cell: Cell, planes: Planes, values: NDArray[Any], limits: Limits) -> Axes:
    """Values on the palette with their bar; phases that wrap in the colours of the wheel."""
    wraps = limits == (-np.pi, np.pi)
    cmap = colours(phase_image(np.linspace(-np.pi, np.pi, 256)[None])[0] if wraps else palette())
    ax, panel = map_axes(cell, planes, UNSEEN)
    known = np.ma.masked_invalid(values)
    ax.imshow(known, cmap=cmap, norm=Normalize(*limits), extent=planes.extent, aspect="auto")
    if known.count() == 0:
        note(ax, "nothing seen", "white")
    bar(cell, panel, cmap, limits)
    return ax


def plot_axes(cell: Cell, width: float, below: str) -> Axes:
    """Axes of a plot over whole numbers."""
    ax = cell.axes(0, 0, width, cell.height)
    ax.spines[["top", "right"]].set_visible(False)
    ax.xaxis.set_major_locator(MaxNLocator(max(1, round(width / 0.6)), steps=STEPS, integer=True, min_n_ticks=1))
    ax.yaxis.set_major_locator(MaxNLocator(6, steps=STEPS))
    ax.yaxis.set_major_formatter(FuncFormatter(plain))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    ax.set_xlabel(below, fontsize=TEXT, color=SOFT, loc="right", labelpad=1)
    return ax


def note(ax: Axes, text: str, colour: str) -> None:
    """Words in the middle of axes."""
    ax.text(0.5, 0.5, text, color=colour, fontsize=TEXT, ha="center", va="center", transform=ax.transAxes)


def plain(value: float, _: int | None = None) -> str:
    """A number as people write it."""
    return f"{value:.6g}".replace("-", "\N{MINUS SIGN}")
