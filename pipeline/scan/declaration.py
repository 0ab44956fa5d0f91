"""What a user may say about a legacy file: the options that settle what its bytes leave open. No numpy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Final

from pipeline.config import read_toml
from pipeline.errors import ConfigError

STACK_KEYS: Final = ("diffraction", "diff3d")
ORIGINS: Final = ("n/2", "n/2-0.5", "corner")
"""What a source's coordinate points at: pixel n/2 of the frame's window, its exact middle, or its first pixel."""

CHOICES: Final = {
    "key": STACK_KEYS,
    "axes": ("fyx", "yxf", "yfx"),
    "quantity": ("counts", "intensity", "amplitude"),
    "contract": ("data-001",),
    "positions": ("pixel", "metre"),
    "position_origin": ORIGINS,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Declaration:
    """What the user says about a file; None says nothing."""

    key: str | None = None
    axes: str | None = None
    quantity: str | None = None
    contract: str | None = None
    positions: str | None = None
    pixel_size_m: float | None = None
    position_origin: str | None = None

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            value = getattr(self, name)
            if value is not None and value not in allowed:
                raise ConfigError(f"{name} is {value!r}; expected one of {', '.join(allowed)}", code="config.choice")
        if self.pixel_size_m is not None and not (self.pixel_size_m > 0 and math.isfinite(self.pixel_size_m)):
            raise ConfigError(f"pixel_size_m is {self.pixel_size_m}; expected a positive length", code="config.range")
        if self.positions == "metre" and self.pixel_size_m is None:
            raise ConfigError(
                "positions in metres need the object's pixel size", code="config.pixel_size", hint="--pixel-size-m"
            )

    def given(self) -> dict[str, object]:
        """What was said, by name."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}


def declared_for(path: Path, options: Declaration) -> Declaration:
    """The options, completed by `NAME.toml` beside `NAME.npz` where there is one. An option wins."""
    beside = path.with_suffix(".toml")
    if not beside.is_file():
        return options
    table = read_toml(beside, known=[f.name for f in fields(Declaration)])
    return replace(_typed(beside, table), **options.given())  # type: ignore[arg-type]  # names are checked above


def _typed(path: Path, table: Mapping[str, object]) -> Declaration:
    for name, value in table.items():
        wanted: type | tuple[type, ...] = (int, float) if name == "pixel_size_m" else str
        if not isinstance(value, wanted) or isinstance(value, bool):
            raise ConfigError(f"{path}: {name} is {value!r}", code="config.type")
    return Declaration(**table)  # type: ignore[arg-type]  # names and types are checked above
