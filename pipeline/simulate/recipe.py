"""Named simulations: which object, probe, scan and dose. Values only; `scan` carries them out."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Final

from pipeline.errors import ConfigError
from pipeline.seeding import Purpose, words


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """A simulation by name.

    `part` tells apart the scans of one recipe that must not share an object (0 for training, 1 for testing): each
    has random streams of its own from the same seed. Sides in pixels; photons per frame are the mean over frames.
    """

    name: str
    about: str
    amplitude: str
    phase: str
    positions: str = "uniform"
    probe: str = "zone-plate"
    probe_modes: int = 1
    n_frames: int = 2000
    frame_side: int = 64
    object_side: int = 256
    photons_per_frame: float = 1e5
    part: int = 0

    def stream_seed(self, seed: int) -> int:
        """The seed of this part's own random streams."""
        return int(words(seed, Purpose.RECIPE_PART, self.part, n=1)[0] >> 1)


def _train_and_test(name: str, about: str, amplitude: str, phase: str) -> tuple[Recipe, Recipe]:
    return (
        Recipe(name=name, about=f"{about}; 2,000 frames", amplitude=amplitude, phase=phase),
        Recipe(
            name=f"{name}-test",
            about=f"{about}; another object, 1,000 frames",
            amplitude=amplitude,
            phase=phase,
            n_frames=1000,
            part=1,
        ),
    )


RECIPES: Final = {
    r.name: r
    for r in (
        *_train_and_test("mix", "dead leaves amplitude, unrelated lines phase", "dead-leaves", "lines"),
        *_train_and_test("lines-independent", "lines amplitude, unrelated lines phase", "lines", "lines"),
        *_train_and_test("lines", "lines amplitude, phase a function of it", "lines", "of-amplitude"),
        *_train_and_test(
            "dead-leaves", "dead leaves amplitude, unrelated dead leaves phase", "dead-leaves", "dead-leaves"
        ),
        *_train_and_test("grf", "Gaussian random amplitude, unrelated Gaussian random phase", "grf", "grf"),
        Recipe(
            name="star",
            about="Siemens star on a spiral scan, 128 px frames",
            amplitude="star",
            phase="of-amplitude",
            positions="spiral",
            n_frames=500,
            frame_side=128,
            object_side=480,
            photons_per_frame=4e5,
        ),
        Recipe(
            name="demo",
            about="dead leaves on a jittered raster, two probe modes; 400 frames",
            amplitude="dead-leaves",
            phase="lines",
            positions="raster",
            probe_modes=2,
            n_frames=400,
            object_side=192,
        ),
    )
}


def recipe_named(name: str) -> Recipe:
    """The recipe of this name.

    Raises
    ------
    ConfigError
        There is none; the nearest name is suggested.
    """
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=1)
        hint = f"did you mean {near[0]}?" if near else f"recipes: {', '.join(RECIPES)}"
        raise ConfigError(f"no recipe {name!r}", code="simulate.unknown_recipe", hint=hint)
    return RECIPES[name]
