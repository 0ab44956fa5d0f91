"""The pictures of the documentation: one scan at a glance, and the conventions of a store.

`python examples/pictures.py [STORE] [--output docs/images]`. Without a store the recipe `star` is simulated first.
Coordinates are (x, y) in pixels of the finished picture.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import xarray as xr
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

from pipeline.picture import colour_wheel, complex_image, linear_image, log_image, save_png
from pipeline.scan.geometry import nearest_step, origin_offset, probe_diameter
from pipeline.scan.store import open_scan
from pipeline.simulate.forward import expected_intensity, extract_patches
from pipeline.simulate.recipe import recipe_named
from pipeline.simulate.scan import plan_simulation
from pipeline.simulate.write import write_store

Colour = str | int | tuple[int, ...]
Point = Sequence[float]
Picture = Image.Image

FINE = 4  # drawn this much larger, then averaged: that smooths lines and letters
INK, SOFT, LIGHT = (27, 31, 36), (89, 99, 110), (222, 226, 231)
BLUE, ORANGE, PINK = (9, 105, 218), (217, 119, 6), (207, 34, 110)
TEXT, TITLE = 22, 30
WIDTH, SIDE, TOP = 1836, 392, 116  # of a picture, and of the panels of the strip


def main() -> None:
    """Make both pictures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("store", nargs="?", type=Path, help="a store with probe and object")
    parser.add_argument("--output", type=Path, default=Path("docs/images"), help="folder of the PNG files")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        store = options.store or Path(scratch) / "star.zarr"
        if options.store is None:
            write_store(plan_simulation(recipe_named("star"), seed=0), store)
        scan = open_scan(store)
        if missing := {"probe", "object"} - set(scan):
            raise SystemExit(f"{store} has no {' and no '.join(sorted(missing))}, so there is nothing to draw")
        finish(scan_strip(scan), options.output / "scan.png")
    finish(conventions(), options.output / "axes.png")


def scan_strip(scan: xr.Dataset) -> Picture:
    """One scan at a glance: frames, probe, scan map and object, side by side."""
    scale = scan.attrs["photons_scale"]
    unit = "photons" if scale else "intensity (relative)"
    intensity = (scan.diffraction.astype(np.float64) * (scale or 1.0)) ** 2
    totals, peak = intensity.sum(("detector_y", "detector_x")).values, float(intensity.max())
    shown = np.argsort(totals, kind="stable")[[0, len(totals) // 3, 2 * len(totals) // 3, -1]]
    image = blank(660)
    heading(
        image, 40, "a", f"Four of {len(totals):,} frames", "{1} x {2} pixels, one log scale".format(*intensity.shape)
    )
    draw_frames(image, 40, intensity.isel(frame=shown).values, shown, peak)
    decades = [0, *(10.0**k for k in range(int(np.log10(peak)) + 1))]
    colour_bar(image, 40, {t: np.log10(1 + t) / np.log10(1 + peak) for t in decades}, f"{unit} per pixel")
    draw_probe(image, 484, scan.probe.values)
    draw_map(image, 968, scan, totals, shown)
    low, extent = totals.min(), max(np.ptp(totals), 1e-9)
    marks = {t: (t - low) / extent for t in round_ticks(low, low + extent, 4)}
    colour_bar(image, 968, marks, f"{unit} per frame")
    draw_object(image, 1404, scan)
    return image


def draw_frames(image: Picture, left: float, frames: np.ndarray, index: np.ndarray, peak: float) -> None:
    """Four frames on one log scale."""
    tile, step = (SIDE - 8) / 2, (SIDE + 8) / 2
    for i, (frame, number) in enumerate(zip(frames, index, strict=True)):
        x, y = left + step * (i % 2), TOP + step * (i // 2)
        paste(image, log_image(frame, (0, peak)), (x, y, tile, tile))
        write(image, (x + 10, y + 8), f"{i + 1}   frame {number}", "white", halo=3)


def draw_probe(image: Picture, left: float, probe: np.ndarray) -> None:
    """Every mode as a complex image, with its share of the power, and the wheel that explains the colours."""
    power, side = np.sum(np.abs(probe) ** 2, axis=(1, 2)), probe.shape[-1]
    centre = slice(side // 4, side // 4 + side // 2)
    if np.sum(np.abs(probe[:, centre, centre]) ** 2) > 0.99 * power.sum():
        probe = probe[:, centre, centre]
    heading(image, left, "b", "Probe", f"central {probe.shape[-1]} of {side} pixels; % of the power")
    n_columns = 1 if len(probe) <= 2 else int(np.ceil(np.sqrt(len(probe))))
    n_rows = -(-len(probe) // n_columns)
    width, tile = ((SIDE - 8 * (n - 1)) / n for n in (n_columns, n_rows))
    for i, mode in enumerate(probe):
        x, y = left + (width + 8) * (i % n_columns), TOP + (tile + 8) * (i // n_columns)
        box(image, (x, y, width, tile), fill="black")
        paste(image, complex_image(mode), (x + (width - tile) / 2, y, tile, tile))
        write(image, (x + 10, y + 8), f"mode {i + 1}   {100 * power[i] / power.sum():.0f} %", "white", halo=3)
    scale_bar(image, left, TOP + tile, tile / probe.shape[-1], tile, "white")
    paste(image, colour_wheel(368), (left, TOP + SIDE + 28, 92, 92))
    write(image, (left + 110, TOP + SIDE + 44), "hue: phase, 0 to the right", SOFT)
    write(image, (left + 110, TOP + SIDE + 78), "brightness: amplitude", SOFT)


def draw_map(image: Picture, left: float, scan: xr.Dataset, totals: np.ndarray, shown: np.ndarray) -> None:
    """Where the probe was, coloured by the light of each frame, with the probe's size at the frames shown."""
    zoom, diameter = SIDE / max(scan.object.shape), probe_diameter(scan.probe.values)
    positions = np.stack([scan.position_y.values, scan.position_x.values], axis=1)
    step = nearest_step(positions) or diameter
    heading(image, left, "c", "Scan positions", f"{step:.1f} px apart; circles: probe, {diameter:.0f} px")
    box(image, (left, TOP, SIDE, SIDE), fill=(240, 242, 245))
    places = (left, TOP) + (positions[:, ::-1] + 0.5) * zoom
    for place, colour in zip(places, linear_image(totals[None])[0], strict=True):
        disc(image, place, float(np.clip(0.36 * step * zoom, 2, 8)), fill=tuple(map(int, colour)), edge=SOFT, width=1)
    radius = diameter / 2 * zoom
    for i, place in enumerate(places[shown]):
        disc(image, place, radius + 1, edge="white", width=7)
        disc(image, place, radius, edge=PINK, width=3)
        write(image, (place[0] + radius + 6, place[1]), str(i + 1), PINK, anchor="lm", halo=4)
    object_axis(image, left, scan.object.shape)
    for t in round_ticks(0, 0.8 * max(scan.object.shape), 4):
        y = TOP + (t + 0.5) * zoom
        line(image, [(left - 6, y), (left, y)], SOFT)
        write(image, (left - 10, y), f"{t:.0f}", INK, anchor="rm")
    write(image, (left - 10, TOP + SIDE), "y, px", SOFT, anchor="rb")
    scale_bar(image, left, TOP + SIDE, zoom, SIDE, INK)


def draw_object(image: Picture, left: float, scan: xr.Dataset) -> None:
    """The object as a complex image, with the outline of what the probe lit."""
    obj, zoom = scan.object.values, SIDE / max(scan.object.shape)
    heading(image, left, "d", "Object", f"{scan.object.attrs.get('role', 'as stored')}, complex; line: what was lit")
    frame = (left, TOP, obj.shape[1] * zoom, obj.shape[0] * zoom)
    paste(image, complex_image(obj), frame)
    lit, inside = Image.new("L", image.size), Image.new("L", image.size)
    for y, x in zip(scan.position_y.values, scan.position_x.values, strict=True):
        place = (left + (x + 0.5) * zoom, TOP + (y + 0.5) * zoom)
        disc(lit, place, probe_diameter(scan.probe.values) / 2 * zoom, fill=255)
    box(inside, frame, fill=255)
    outline = ImageChops.subtract(lit, lit.filter(ImageFilter.MinFilter(2 * FINE + 1)))
    image.paste((255, 255, 255), mask=ImageChops.multiply(outline, inside))
    object_axis(image, left, obj.shape)
    scale_bar(image, left, TOP + frame[3], zoom, frame[2], "white")
    modulus, phase = np.abs(obj), np.angle(obj)
    write(image, (left, TOP + SIDE + 56), f"amplitude {modulus.min():.2f} ... {modulus.max():.2f}", SOFT)
    write(image, (left, TOP + SIDE + 90), f"phase {phase.min():.2f} ... {phase.max():.2f} rad", SOFT)


def conventions() -> Picture:
    """Axes and window on the object, the three origins of a position, zero frequency on the detector."""
    n, p, cell, top = 16, (15, 22), 24, 170
    obj = np.ones((30, 40), np.complex64)
    obj[9:21, 18:20] = obj[9:11, 18:27] = obj[14:16, 18:24] = 0.6 * np.exp(1.2j)  # the letter F
    patch = extract_patches(obj, np.array([p], np.float64), n)
    radius = np.hypot(*np.ogrid[-n // 2 : n // 2, -n // 2 : n // 2])
    frame = expected_intensity(patch, 40 * np.exp(-((radius / 6) ** 2)).astype(np.complex64)[None])[0]
    image = blank(760)
    draw_object_grid(image, 108, top, obj, p, n)
    heading(image, 908, "b", "Window", "what sources point at, and what is added")
    draw_cells(image, 940, top, patch[0], cell)
    draw_origins(image, 940, top, n, cell)
    heading(image, 1380, "c", "Detector", "dims (detector_y, detector_x), log scale")
    paste(image, log_image(frame), (1412, top, n * cell, n * cell))
    draw_zero_frequency(image, 1412, top, n, cell)
    for left, k in ((left, k) for left in (940, 1412) for k in (0, n // 2, n - 1)):
        write(image, (left + (k + 0.5) * cell, top - 8), str(k), SOFT, anchor="mb")
        write(image, (left - 8, top + (k + 0.5) * cell), str(k), SOFT, anchor="rm")
    return image


def draw_object_grid(image: Picture, left: float, top: float, obj: np.ndarray, p: tuple[int, int], n: int) -> None:
    """The object's pixels with their axes, and the rows and columns that the frame at p sees."""
    cell, (height, width) = 15.0, obj.shape
    right, bottom = left + width * cell, top + height * cell
    heading(image, left - 68, "a", "Object", "dims (object_y, object_x): y down, x right")
    draw_cells(image, left, top, obj, cell)
    arrow(image, (left - 14, top - 14), (right, top - 14), "x")
    arrow(image, (left - 14, top - 14), (left - 14, bottom), "y")
    for k in range(0, width, 10):
        write(image, (left + (k + 0.5) * cell, top - 22), str(k), SOFT, anchor="mb")
    for k in range(0, height, 10):
        write(image, (left - 26, top + (k + 0.5) * cell), str(k), SOFT, anchor="rm")
    window = (left + (p[1] - n // 2) * cell, top + (p[0] - n // 2) * cell, n * cell, n * cell)
    box(image, window, edge=BLUE, width=4)
    for name, k, side, shift in (("- N/2", 0, "r", 10), ("", n // 2, "m", 0), ("+ N/2 - 1", n - 1, "l", -10)):
        x, y = window[0] + (k + 0.5) * cell, window[1] + (k + 0.5) * cell
        row, column = (
            f"p_{axis} {name} = {at - n // 2 + k}".replace("  ", " ") for axis, at in zip("yx", p, strict=True)
        )
        line(image, [(window[0] + window[2], y), (right + 10, y)], BLUE)
        line(image, [(x, window[1] + window[3]), (x, bottom + 10)], BLUE)
        write(image, (right + 16, y), row, BLUE, anchor="lm")
        write(image, (x + shift, bottom + 16), column, BLUE, anchor=side + "t")
    disc(image, (left + (p[1] + 0.5) * cell, top + (p[0] + 0.5) * cell), 7, fill=BLUE, edge="white", width=2)
    disc(image, (left + cell / 2, top + cell / 2), 6, fill=INK)
    write(image, (left + 22, top + 6), "(0, 0): centre of the first pixel", INK, halo=4)
    write(image, (left, bottom + 60), f"Blue: the frame at p = {p} sees N = {n} rows and columns;", SOFT)
    write(image, (left, bottom + 90), "p lies on pixel N/2 of its window.", SOFT)


def draw_origins(image: Picture, left: float, top: float, n: int, cell: float) -> None:
    """What the three kinds of source coordinates point at, in the window."""
    box(image, (left, top, n * cell, n * cell), edge=BLUE, width=4)
    kinds = {
        "n/2": (n / 2, "pixel N/2"),
        "n/2-0.5": (n / 2 - 0.5, "the exact middle"),
        "corner": (0, "the first pixel"),
    }
    for row, (origin, colour) in enumerate(zip(kinds, (BLUE, ORANGE, PINK), strict=True)):
        at, what = kinds[origin]
        disc(image, (left + (at + 0.5) * cell, top + (at + 0.5) * cell), 9, fill=colour, edge="white", width=3)
        y = top + n * cell + 40 + 34 * row
        disc(image, (left + 9, y), 9, fill=colour)
        write(image, (left + 30, y), origin, colour, anchor="lm")
        write(image, (left + 126, y), what, SOFT, anchor="lm")
        write(image, (left + 312, y), f"+ {origin_offset(origin, n):g}", INK, anchor="lm")


def draw_zero_frequency(image: Picture, left: float, top: float, n: int, cell: float) -> None:
    """Which pixel of the detector is zero frequency."""
    y = top + n * cell + 40
    box(image, (left + n // 2 * cell, top + n // 2 * cell, cell, cell), edge=PINK, width=4)
    box(image, (left, y - 9, 18, 18), edge=PINK, width=4)
    write(image, (left + 30, y), f"zero frequency: [H//2, W//2] = [{n // 2}, {n // 2}]", PINK, anchor="lm")
    write(
        image, (left + 30, y + 34), f"pixel 0 ... {n - 1} is frequency -{n // 2} ... {n // 2 - 1},", SOFT, anchor="lm"
    )
    write(image, (left + 30, y + 64), "in units of 1 / (N object pixels)", SOFT, anchor="lm")


def draw_cells(image: Picture, left: float, top: float, obj: np.ndarray, cell: float) -> None:
    """A small object as squares, dark where it is not 1."""
    height, width = (n * cell for n in obj.shape)
    paste(image, np.where(np.isclose(obj, 1)[..., None], 252, SOFT).astype(np.uint8), (left, top, width, height))
    for x in left + cell * np.arange(1, obj.shape[1]):
        line(image, [(x, top), (x, top + height)], LIGHT, width=1)
    for y in top + cell * np.arange(1, obj.shape[0]):
        line(image, [(left, y), (left + width, y)], LIGHT, width=1)
    box(image, (left, top, width, height), edge=SOFT, width=2)


def heading(image: Picture, left: float, letter: str, title: str, below: str) -> None:
    """A panel's letter, title and subtitle."""
    write(image, (left, 28), letter, BLUE, size=TITLE)
    write(image, (left + 30, 28), title, INK, size=TITLE)
    write(image, (left, 72), below, SOFT)


def colour_bar(image: Picture, left: float, ticks: dict[float, float], below: str) -> None:
    """The palette under a panel, with `ticks` {number: place 0 ... 1}."""
    y = TOP + SIDE + 46
    paste(image, linear_image(np.arange(256)[None]), (left, y, SIDE, 18))
    free = 0.0
    for text, place in ((f"{number:,.0f}", place) for number, place in ticks.items()):
        half = ImageFont.load_default(TEXT).getlength(text) / 2
        x = min(max(place * SIDE, half), SIDE - half)
        if x - half >= free:  # numbers that would touch are left out
            line(image, [(left + place * SIDE, y + 18), (left + place * SIDE, y + 24)], SOFT)
            write(image, (left + x, y + 28), text, INK, anchor="mt")
            free = x + half + 12
    write(image, (left + SIDE / 2, y + 58), below, SOFT, anchor="mt")


def object_axis(image: Picture, left: float, shape: tuple[int, int]) -> None:
    """Ticks along x under a panel; the centre of pixel 0 is half a pixel inside."""
    for t in round_ticks(0, 0.8 * max(shape), 4):
        x = left + (t + 0.5) * SIDE / max(shape)
        line(image, [(x, TOP + SIDE), (x, TOP + SIDE + 6)], SOFT)
        write(image, (x, TOP + SIDE + 10), f"{t:.0f}", INK, anchor="mt")
    write(image, (left + SIDE, TOP + SIDE + 10), "x, px", SOFT, anchor="rt")


def scale_bar(image: Picture, left: float, bottom: float, zoom: float, width: float, colour: Colour) -> None:
    """A round length of about a quarter of the panel, low on the left."""
    length = round_ticks(0, width / zoom, 4)[1]
    line(image, [(left + 14, bottom - 16), (left + 14 + length * zoom, bottom - 16)], colour, width=5)
    write(image, (left + 14, bottom - 24), f"{length:g} px", colour, anchor="lb")


def arrow(image: Picture, start: Point, stop: Point, name: str) -> None:
    """An arrow along an axis with its name at the end."""
    along = np.sign(np.subtract(stop, start))
    line(image, [start, stop], INK, width=3)
    tip = [np.add(stop, 12 * along), np.add(stop, 7 * along[::-1]), np.subtract(stop, 7 * along[::-1])]
    ImageDraw.Draw(image).polygon([fine(corner) for corner in tip], fill=INK)
    write(image, np.add(stop, 26 * along), name, INK, anchor="mm")


def round_ticks(low: float, high: float, n: int) -> list[float]:
    """About n round numbers from `low` to `high`."""
    rough = (high - low) / n
    decade = 10.0 ** np.floor(np.log10(rough))
    step = next(m * decade for m in (1, 2, 5, 10) if m * decade >= 0.8 * rough)
    return [float(k * step) for k in range(int(np.ceil(low / step)), int(np.floor(high / step)) + 1)]


def blank(height: int) -> Picture:
    """White paper."""
    return Image.new("RGB", (FINE * WIDTH, FINE * height), "white")


def finish(image: Picture, path: Path) -> None:
    """Average the fine pixels and write the picture, in 64 levels a channel, which no eye tells from 256."""
    save_png(path, (np.asarray(image.reduce(FINE)) >> 2) * np.uint8(4) + np.uint8(3))
    print(path)


def fine(at: Point) -> tuple[float, ...]:
    """A point on the paper."""
    return tuple(FINE * float(v) for v in at)


def paste(image: Picture, rgb: np.ndarray, where: Point) -> None:
    """Pixels stretched over (left, top, width, height), each a sharp rectangle."""
    x, y, width, height = map(round, fine(where))
    image.paste(Image.fromarray(rgb).resize((width, height), Image.Resampling.NEAREST), (x, y))


def write(
    image: Picture, at: Point, text: str, colour: Colour, *, size: int = TEXT, anchor: str = "la", halo: int = 0
) -> None:
    """A line of text; `anchor` as in Pillow, `halo` the width of a rim that sets it off what lies below."""
    rim = INK if colour == "white" else "white"
    font, draw = ImageFont.load_default(FINE * size), ImageDraw.Draw(image)
    draw.text(fine(at), text, colour, font, anchor, stroke_width=FINE * halo, stroke_fill=rim)


def line(image: Picture, points: Sequence[Point], colour: Colour, width: int = 2) -> None:
    """A straight line."""
    ImageDraw.Draw(image).line([fine(p) for p in points], colour, FINE * width)


def disc(
    image: Picture, at: Point, radius: float, *, fill: Colour | None = None, edge: Colour | None = None, width: int = 0
) -> None:
    """A disc or a circle."""
    ImageDraw.Draw(image).circle(fine(at), FINE * radius, fill, edge, FINE * width)


def box(
    image: Picture, where: Point, *, fill: Colour | None = None, edge: Colour | None = None, width: int = 0
) -> None:
    """A rectangle (left, top, width, height), its edge inside."""
    x, y, w, h = fine(where)
    ImageDraw.Draw(image).rectangle((x, y, x + w - 1, y + h - 1), fill, edge, FINE * width)


if __name__ == "__main__":
    main()
