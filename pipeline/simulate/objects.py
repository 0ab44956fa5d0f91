"""What the sample looks like: real textures in [0, 1] and the complex objects composed of them.

A texture is a pure function of a side and a generator. An object names one texture for its amplitude and one for
its phase; the two draw from streams of their own, so that neither tells anything about the other (the phase
`of-amplitude` is the easy exception). Real samples are like the former: a phase that follows the amplitude
teaches a network a shortcut.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pipeline.errors import ConfigError
from pipeline.seeding import Purpose, rng_for

Texture = Callable[[int, np.random.Generator], NDArray[np.float64]]
Limits = tuple[float, float]


def lines_texture(side: int, rng: np.random.Generator, *, n_lines: int = 400) -> NDArray[np.float64]:
    """Thin crossing lines under their own soft and softer shadows. (side, side) float64 in [0, 1].

    One-pixel segments between random points of a canvas twice as wide, blurred as G1 + 2 G5 + 5 G10 (Gaussians
    by sigma in pixels), of which the centre is kept: so lines enter and leave, and few of them end inside.
    """
    canvas = np.zeros((2 * side, 2 * side))
    for y0, x0, y1, x1 in rng.uniform(0, 2 * side - 1, (n_lines, 4)):
        n_points = int(max(abs(y1 - y0), abs(x1 - x0))) + 2
        rows = np.rint(np.linspace(y0, y1, n_points)).astype(np.intp)
        columns = np.rint(np.linspace(x0, x1, n_points)).astype(np.intp)
        canvas[rows, columns] = 1.0
    centre = slice(side // 2, side // 2 + side)
    return _scaled(_blurred(canvas, {1: 1.0, 5: 2.0, 10: 5.0})[centre, centre])


def points_texture(side: int, rng: np.random.Generator, *, fraction: float = 0.1) -> NDArray[np.float64]:
    """A `fraction` of random bright pixels, blurred as G1 + 5 G10. (side, side) float64 in [0, 1]."""
    bright = rng.random((side, side)) < fraction
    return _scaled(_blurred(bright.astype(np.float64), {1: 1.0, 10: 5.0}))


def gaussian_field(
    side: int, rng: np.random.Generator, *, index: float = -0.4, sigma_px: float = 1.0
) -> NDArray[np.float64]:
    """A Gaussian random field of power k**index, blurred by `sigma_px`. (side, side) float64 in [0, 1]."""
    spectrum = np.fft.fft2(rng.standard_normal((side, side)))
    k = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side)[None, :])
    k[0, 0] = np.inf if index < 0 else 0.0  # the mean is scaled away in any case
    field = np.fft.ifft2(spectrum * k ** (index / 2)).real
    return _scaled(ndimage.gaussian_filter(field, sigma_px, mode="wrap"))


def dead_leaves(
    side: int,
    rng: np.random.Generator,
    *,
    radius_range: tuple[float, float] = (0.03, 0.2),
    exponent: float = 3.0,
) -> NDArray[np.float64]:
    """Opaque discs, squares, rectangles, triangles and quadrilaterals, each of one grey, the first on top.

    (side, side) float64 in [0, 1]. Leaves are laid until no pixel is bare, each below those before it: what one
    sees looking up through an endless fall of leaves, without a first layer (Kendall & Thonnes 1999, perfect
    simulation). Radii (of the circle around a leaf, in units of `side`) have the density r**-exponent inside
    `radius_range`: with 3, leaves of every size cover about the same area, as in photographs (Lee, Mumford &
    Huang 2001).
    """
    grey = np.full((side, side), np.nan)
    pixels, n_bare = np.arange(side), side * side
    while n_bare:
        radius = side * _power_law(rng.random(), radius_range, exponent)
        centre = rng.uniform(-side * radius_range[1], side * (1 + radius_range[1]), 2)
        rows, columns = (slice(max(0, int(c - radius)), max(0, int(c + radius) + 2)) for c in centre)
        y, x = pixels[rows, None] - centre[0], pixels[None, columns] - centre[1]
        bare = _inside_leaf(y, x, radius, _leaf_angles(rng)) & np.isnan(grey[rows, columns])
        grey[rows, columns][bare] = rng.random()
        n_bare -= int(np.count_nonzero(bare))
    return _scaled(grey)


def siemens_star(side: int, *, n_spokes: int = 32) -> NDArray[np.float64]:
    """Bright spokes inside the inscribed disc, their edges one pixel soft. (side, side) float64 in [0, 1].

    The spokes' distance from their edge is measured along the arc: r asin(sin(n_spokes theta)) / n_spokes.
    """
    centred = np.arange(side) - side // 2
    r = np.hypot(centred[:, None], centred[None, :])
    theta = np.arctan2(centred[:, None], centred[None, :])
    arc_px = r * np.arcsin(np.sin(n_spokes * theta)) / n_spokes
    rim_px = 0.45 * side - r
    star: NDArray[np.float64] = np.clip(0.5 + arc_px, 0, 1) * np.clip(0.5 + rim_px, 0, 1)
    return star


def flat(side: int) -> NDArray[np.float64]:
    """No texture: the middle of the range everywhere. (side, side) float64, all 0.5."""
    return np.full((side, side), 0.5)


# name -> (texture, the range its [0, 1] is stretched to)
AMPLITUDES: dict[str, tuple[Texture, Limits]] = {
    "lines": (lines_texture, (0.3, 1.0)),
    "dead-leaves": (dead_leaves, (0.6, 1.1)),
    "grf": (gaussian_field, (0.3, 1.0)),
    "points": (points_texture, (0.3, 1.0)),
    "star": (lambda side, _: siemens_star(side), (0.3, 1.0)),
    "flat": (lambda side, _: flat(side), (1.0, 1.0)),
}
PHASES: dict[str, tuple[Texture | None, Limits]] = {
    "lines": (lines_texture, (-0.5, 0.5)),
    "dead-leaves": (dead_leaves, (-0.5, 0.5)),
    "grf": (gaussian_field, (-0.5, 0.5)),
    "flat": (lambda side, _: flat(side), (0.0, 0.0)),
    "of-amplitude": (None, (-0.5, 0.5)),
}


def make_object(amplitude: str, phase: str, side: int, seed: int) -> NDArray[np.complex64]:
    """The complex transmission composed of a named amplitude and a named phase. (side, side) complex64.

    Parameters
    ----------
    amplitude : one of `AMPLITUDES`.
    phase : one of `PHASES`, in radians; `of-amplitude` repeats the amplitude's texture.
    side : pixels of the square object.
    seed : the amplitude draws from `OBJECT_AMPLITUDE`, the phase from `OBJECT_PHASE`.

    Raises
    ------
    ConfigError
        No texture has that name.

    Examples
    --------
    >>> make_object("dead-leaves", "lines", 64, seed=7).shape
    (64, 64)
    """
    _check_name("amplitude", amplitude, tuple(AMPLITUDES))
    _check_name("phase", phase, tuple(PHASES))
    texture = AMPLITUDES[amplitude][0](side, rng_for(seed, Purpose.OBJECT_AMPLITUDE))
    draw, phase_range = PHASES[phase]
    phase_texture = texture if draw is None else draw(side, rng_for(seed, Purpose.OBJECT_PHASE))
    modulus = _between(texture, AMPLITUDES[amplitude][1])
    composed: NDArray[np.complex128] = modulus * np.exp(1j * _between(phase_texture, phase_range))
    return composed.astype(np.complex64)


def _leaf_angles(rng: np.random.Generator) -> NDArray[np.float64]:
    """Where the corners of a random leaf lie on the circle around it; none for a disc. (corners,) radians."""
    kind, turn, stretch = rng.integers(5), rng.uniform(0, 2 * np.pi), rng.uniform(0.3, 1.0)
    jitter = rng.uniform(-0.5, 0.5, 4)
    half = stretch * np.pi / 4
    corners = (
        np.empty(0),
        np.arange(4) * np.pi / 2,
        np.array([-half, half, np.pi - half, np.pi + half]),
        np.arange(3) * 2 * np.pi / 3 + jitter[:3],
        np.arange(4) * np.pi / 2 + jitter,
    )
    return turn + corners[kind]


def _inside_leaf(
    y: NDArray[np.float64], x: NDArray[np.float64], radius: float, angles: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Where a leaf covers the grid; y (h, 1) and x (1, w) are measured from its centre. (h, w) bool.

    Each side of a polygon inscribed in the circle is the half-plane of the chord between two corners.
    """
    inside = np.asarray(y**2 + x**2 <= radius**2)
    for first, second in zip(angles, np.append(angles[1:], angles[:1] + 2 * np.pi), strict=True):
        middle, half = (first + second) / 2, (second - first) / 2
        inside &= y * np.sin(middle) + x * np.cos(middle) <= radius * np.cos(half)
    return inside


def _power_law(u: float, limits: tuple[float, float], exponent: float) -> float:
    """The value below which a share `u` of the density r**-exponent (exponent > 1) on `limits` lies."""
    low, high = (limit ** (1 - exponent) for limit in limits)
    return float((low + u * (high - low)) ** (1 / (1 - exponent)))


def _blurred(image: NDArray[np.float64], weight_of_sigma: dict[int, float]) -> NDArray[np.float64]:
    """The weighted sum of Gaussian blurs of an image, sigma in pixels. Same shape, float64."""
    total = np.zeros_like(image)
    for sigma, weight in weight_of_sigma.items():
        total += weight * ndimage.gaussian_filter(image, sigma)
    return total


def _scaled(texture: NDArray[np.float64]) -> NDArray[np.float64]:
    """The texture stretched to [0, 1]; a constant one becomes 0.5 everywhere."""
    low, high = texture.min(), texture.max()
    return (texture - low) / (high - low) if high > low else np.full_like(texture, 0.5)


def _between(texture: NDArray[np.float64], limits: tuple[float, float]) -> NDArray[np.float64]:
    """A texture of [0, 1] stretched to `limits`."""
    return limits[0] + (limits[1] - limits[0]) * texture


def _check_name(what: str, name: str, known: tuple[str, ...]) -> None:
    if name not in known:
        raise ConfigError(
            f"no {what} is called {name!r}; known: {', '.join(known)}",
            code=f"simulate.unknown_{what}",
            hint=f"choose one of {', '.join(known)}",
        )
